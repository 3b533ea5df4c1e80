"""Description of the machine, and the doctor's report."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
import os
import platform
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

from .context import Context, Stop

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "triton", "numpy", "safetensors", "torch_tensorrt", "tensorrt")
# Lines of nvidia-smi -q that say in which state the device is.
STATE = re.compile(
    r"^\s*(Product Name|Driver Version|CUDA Version|Compute Mode|MIG Mode|Current(?= +:)|Persistence Mode|ECC Mode|"
    r"Performance State|Total|Used|Graphics|SM|Memory|Power Draw|Current Power Limit|GPU Current Temp|"
    r"GPU Operation Mode|Virtualization Mode|SW Power Cap|HW Slowdown|HW Thermal Slowdown)\s*:.*$"
)


def said(*command: str, seconds: float = 10.0, cwd: Path | None = None) -> str:
    """Output of a command, or the reason why there is none."""
    if shutil.which(command[0]) is None:
        return "not found"
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds, check=False, cwd=cwd
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no answer: {type(error).__name__}"
    return done.stdout.strip() or done.stderr.strip() or f"exit status {done.returncode}"


def first_line(text: str) -> str:
    return text.strip().splitlines()[0] if text.strip() else ""


def environment(context: Context) -> None:
    """Versions, tools and switches. Ends the run where PyTorch finds no device to run on."""
    for name, value in _software():
        context.fact(name, value)
    import torch

    import bcnet_fast

    context.fact("bcnet_fast", f"{bcnet_fast.__version__}, native extension: {_native_extension()}")
    context.fact("CUDA of torch", torch.version.cuda or "none: torch was built without it")
    for name, value in _switches(torch):
        context.fact(name, value)
    context.fact("nvidia-smi", _nvidia_smi())
    if context.device == "cpu":
        from bcnet_fast.doctor import cpu_name

        context.fact("device", f"{cpu_name()}, {torch.get_num_threads()} threads")
        return
    if not torch.cuda.is_available():
        raise Stop(f"torch {torch.__version__} finds no CUDA device (torch.version.cuda: {torch.version.cuda})")
    for name, value in _device(torch):
        context.fact(name, value)
    total = float(torch.ones(1000, device="cuda").sum())
    if total != 1000:
        raise Stop(f"a sum of 1000 ones on the device is {total}")


def _software():
    yield "python", f"{platform.python_version()}, {platform.platform()}"
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed"
    commit = said("git", "rev-parse", "--short", "HEAD", cwd=ROOT)
    changed = said("git", "status", "--porcelain", "--untracked-files=no", cwd=ROOT)
    clean = changed.startswith(("exit status 0", "not found"))
    yield "commit", first_line(commit) + ("" if clean else " with uncommitted changes")
    for tool in ("gcc", "g++", "nvcc", "ptxas"):
        lines = said(tool, "--version").splitlines() or [""]
        yield tool, lines[-2].strip() if tool in ("nvcc", "ptxas") and len(lines) > 1 else lines[0]
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    yield "Python.h", str(header) if header.is_file() else f"not in {header.parent}"
    yield "compute-sanitizer", sanitizer_path() or "not found"
    cache = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton")
    parent = next(path for path in (cache, *cache.parents) if path.exists())
    yield "Triton's cache", f"{cache}{'' if os.access(parent, os.W_OK) else ', not writable'}"
    memory = "unknown"
    with contextlib.suppress(OSError, ValueError, AttributeError):
        memory = f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    yield "host", f"{os.cpu_count()} cores, {memory}"
    set_here = [name for name in os.environ if re.match(r"(CUDA|NVIDIA|TORCH|PYTORCH|TRITON|CUBLAS|BCNET)_", name)]
    yield "variables", ", ".join(f"{name}={os.environ[name]}" for name in sorted(set_here)) or "none of interest"


def sanitizer_path() -> str | None:
    """Where compute-sanitizer is, on the PATH or where the CUDA toolkit puts it."""
    places = [shutil.which("compute-sanitizer")]
    for root in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if root:
            places += [f"{root}/bin/compute-sanitizer", f"{root}/compute-sanitizer/compute-sanitizer"]
    return next((place for place in places if place and os.access(place, os.X_OK)), None)


def _native_extension() -> str:
    from bcnet_fast.ops import native

    found = "yes" if native.module is not None else f"no ({first_line(str(native.reason))})"
    module, reason = native.cuda()
    return f"{found}; CUDA extension: {'yes' if module is not None else f'no ({first_line(str(reason))})'}"


def _switches(torch):
    """Switches for the precision of float32 products, as a fresh process has them."""
    for name, owner in (("matmul", torch.backends.cuda.matmul), ("cudnn", torch.backends.cudnn)):
        for switch in ("allow_tf32", "fp32_precision", "allow_fp16_reduced_precision_reduction"):
            with contextlib.suppress(Exception):
                yield f"{name}.{switch}", str(getattr(owner, switch))


def _nvidia_smi() -> str:
    text = said("nvidia-smi", "-q", seconds=20)
    lines = [line.rstrip() for line in text.splitlines() if STATE.match(line)]
    return "\n".join(lines[:60]) if len(lines) > 1 else first_line(text)


def _device(torch):
    properties = torch.cuda.get_device_properties(0)
    major, minor = torch.cuda.get_device_capability(0)
    free, total = torch.cuda.mem_get_info(0)
    yield "device", f"{properties.name}, sm_{major}{minor}, {properties.multi_processor_count} multiprocessors"
    yield "memory", f"{total / 2**30:.1f} GiB, of which {free / 2**30:.1f} GiB are free"
    query = "driver_version,mig.mode.current,clocks.max.sm,clocks.max.mem,power.limit,compute_mode"
    answer = said("nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader", "-i", "0")
    parts = [part.strip() for part in first_line(answer).split(",")]
    if len(parts) == 6:
        yield "driver", parts[0]
        yield "MIG", parts[1]
        yield "clocks, power", f"{parts[2]} SM, {parts[3]} memory, {parts[4]}"
    else:
        yield "driver", first_line(answer)
    yield "devices", torch.cuda.device_count()
    yield "architectures of torch", " ".join(torch.cuda.get_arch_list())
    yield "shared memory of a block", getattr(properties, "shared_memory_per_block_optin", "unknown")
    yield "L2", getattr(properties, "L2_cache_size", "unknown")
    with contextlib.suppress(Exception):
        yield "cuDNN", torch.backends.cudnn.version()


def doctor(context: Context) -> None:
    """The doctor's text, and a failure for each of its lines that is one."""
    from bcnet_fast import doctor

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        code = doctor.main([])
    text = printed.getvalue()
    context.fact("text", text)
    (context.out / "doctor.txt").write_text(text, encoding="utf-8")
    context.file(context.out / "doctor.txt")
    wrong = [line.strip() for line in text.splitlines() if " FAIL" in line]
    for line in wrong:
        context.failure(re.sub(r"\s{2,}", "  ", line))
    context.check(code == 0 or bool(wrong), f"the doctor's exit code is {code}")
