"""The native extension, when it was built: `module`, else None, and then `reason` says why not."""

from __future__ import annotations

from types import ModuleType

# Raised together with the constant of the same name in csrc/bindings.cpp whenever a signature there changes: an
# editable install does not rebuild C++ by itself, and an old build must not be called with new arguments.
INTERFACE = 3

module: ModuleType | None = None
reason: str | None = None

try:
    from . import _C
except ImportError as error:
    reason = (
        f"the native extension was not built or cannot be loaded ({error}); run 'pip install -e .' with a C++ compiler"
    )
else:
    if _C.INTERFACE == INTERFACE:
        module = _C
    else:
        reason = (
            f"the native extension is of interface {_C.INTERFACE}, expected {INTERFACE}; run 'pip install -e .' again"
        )
