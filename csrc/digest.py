"""The files of each native extension, and a digest of their contents that binds a build to them.

setup.py compiles the digest into the extension. bcnet_fast compares it on import where it finds this folder, which is
the case in a checkout: an editable install does not rebuild C++ by itself, and new Python must not call an old build.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

_FOLDER = Path(__file__).absolute().parent
_CUDA_BINDINGS = _FOLDER / "python" / "bindings_cuda.cpp"


def sources(extension: str) -> list[Path]:
    """The files that the compiler is called with: of "_C", the extension for the CPU, or of "_C_cuda"."""
    if extension == "_C_cuda":
        return [_CUDA_BINDINGS, *sorted(_FOLDER.glob("cuda/*.cu"))]
    return sorted(set(_FOLDER.glob("*/*.cpp")) - {_CUDA_BINDINGS})


def headers() -> list[Path]:
    """The files that sources include, the same for both extensions."""
    return sorted(_FOLDER.glob("*/*.h"))


def digest(extension: str) -> str:
    """A digest of the names and contents of an extension's files, and of setup.py, which has the compiler's flags."""
    total = hashlib.blake2b(digest_size=8)
    for path in (*sources(extension), *headers(), _FOLDER.parent / "setup.py"):
        total.update(f"{path.relative_to(_FOLDER.parent).as_posix()}\0".encode())
        # Line ends as in Git: a checkout with those of Windows is the same code.
        total.update(path.read_bytes().replace(b"\r\n", b"\n"))
    return total.hexdigest()
