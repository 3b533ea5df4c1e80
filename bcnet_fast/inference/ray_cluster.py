"""The Ray cluster of a run: an existing one, or one on this machine that ends with the run."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..storage.output import is_running

LOCAL, AUTO = "local", "auto"
_ADDRESS = re.compile(r"[^\s/]+:\d{1,5}")
_SESSION = re.compile(r"bcnet-ray-(\d+)-[0-9a-f]{4}")  # a folder, with the number of the driver
_ANSWER_S = 10.0
_LONGEST_TEMPORARY = 16  # characters; names of sockets have a limit
_OBJECTS_BYTES = 256 << 20  # most memory for what processes share: names of an archive
# For a cluster that is started here; a user's own values come first.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ROTATION_MAX_BYTES": str(1 << 20),  # of each log file
    "RAY_ROTATION_BACKUP_COUNT": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
}


def require_ray() -> Any:
    """The module ray. InputError: it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise InputError("Ray is not installed, which --ray needs: pip install 'bcnet_fast[ray]'") from error
    return ray


def require_address(address: str) -> None:
    """InputError: not the address of a cluster, such as a video that follows the flag --ray, or none answers."""
    if address in (LOCAL, AUTO):
        return
    if not _ADDRESS.fullmatch(address):
        raise InputError(
            f"--ray is {address!r:.80}, expected HOST:PORT of a cluster that this machine belongs to, auto, or nothing "
            "for the cores of this machine"
        )
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_ANSWER_S).close()  # Ray itself would try for minutes
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--ray {address} does not answer ({reason}), expected a cluster that runs") from error


@contextlib.contextmanager
def cluster(address: str, cpus: int | None = None) -> Iterator[Any]:
    """Connect to a cluster, and yield the module ray. One that is connected to already is used, and left connected.

    address: HOST:PORT; "auto" for the cluster of this machine; "local" to start one, without a dashboard, which ends
        with the block. It ends as well if this process is killed.
    cpus: CPUs of a cluster that is started. None: all of this machine.

    InputError: Ray is not installed, or there is no cluster.
    """
    require_address(address)
    ray = require_ray()
    if ray.is_initialized():
        yield ray
        return
    with contextlib.ExitStack() as stack:
        restore = stack.enter_context(_signals())
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": "critical"}
        if address == LOCAL:
            folder = stack.enter_context(_session_folder())
            common |= {"num_cpus": cpus, "include_dashboard": False, "_temp_dir": str(folder)}
            common |= {"object_store_memory": _OBJECTS_BYTES}
            stack.enter_context(_environment(_QUIET))
        stack.callback(ray.shutdown)
        try:
            ray.init(address=address, **common)
        except SystemExit:  # Ray's answer to SIGTERM while it starts
            restore()
            signal.raise_signal(signal.SIGTERM)
            raise
        except Exception as error:  # Exception itself where a node does not start in time
            reason = str(error).strip().partition("\n")[0].rstrip(".")
            raise InputError(f"--ray {address}: {reason}; expected a cluster that runs") from error
        restore()
        yield ray


def most_workers(ray: Any, cpus: int, gpus: float, free_cpus: int = 0) -> int:
    """How many workers the machines of the cluster have room for beside other work, at least one."""
    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            free_here = min(free_cpus, int(has.get("CPU", 0)))
            fits = int((has.get("CPU", 0) - free_here) // cpus)
            free_cpus -= free_here
            room += min(fits, int(has.get("GPU", 0) / gpus)) if gpus else fits
    return max(1, room)


@contextlib.contextmanager
def _session_folder() -> Iterator[Path]:
    """A folder for sockets and logs, removed at the end; also removes those that killed drivers have left."""
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) > _LONGEST_TEMPORARY:
        parent = Path("/tmp")
    for path in parent.glob("bcnet-ray-*"):
        match = _SESSION.fullmatch(path.name)
        if match and not is_running(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)
    folder = parent / f"bcnet-ray-{os.getpid()}-{secrets.token_hex(2)}"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Set missing environment variables, for processes that are started inside the block."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _signals() -> Iterator[Callable[[], None]]:
    """Keep the signal handlers, which Ray replaces while it starts; yield the function that restores them.

    Ray turns what a handler raises during a wait into a plain KeyboardInterrupt; this raises the original again.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before: dict[int, Any] = {number: signal.getsignal(number) for number in numbers}
    raised: list[BaseException] = []

    def noting(number: int, frame: Any) -> None:
        try:
            before[number](number, frame)
        except BaseException as error:
            raised.append(error)
            raise

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, noting if callable(handler) else handler)

    try:
        yield restore
    except KeyboardInterrupt:
        if raised:
            raise raised[0] from None
        raise
    finally:
        for number, handler in before.items():
            # A handler that was set meanwhile, to ignore further signals, stays.
            if signal.getsignal(number) is noting:
                signal.signal(number, handler)
