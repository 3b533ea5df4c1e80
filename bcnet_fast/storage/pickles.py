"""Tensors in PyTorch's own files, which are pickles: read without running the code that a pickle may hold."""

from __future__ import annotations

import contextlib
import math
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..errors import InputError
from .address import Address
from .arrays import require_bounded
from .files import require_possible_count
from .remote import size_of

SAFE_SINCE = (2, 10)
_LARGEST_RECORD = 64 << 20  # bytes of a record that is not a tensor; PyTorch makes several copies of it
_LEGACY = "CVE-2025-32434 and CVE-2026-24747"  # of torch.load with weights_only=True, before 2.6 and before 2.10


def load_tensors(path: Path | Address, limit: int, flag: str | None = None, file: IO[bytes] | None = None) -> Any:
    """Read a file of `torch.save` that holds tensors and plain containers only.

    file: read instead of `path`, which names it in messages.
    limit: bytes that its tensors may have, unpacked.
    flag: sets this limit.

    InputError: this PyTorch is older than 2.10, or the file is larger or holds other objects. Raises whatever else a
    damaged file makes PyTorch raise.
    """
    require_safe_pytorch(path)
    content = path if file is None else file
    if zipfile.is_zipfile(content):
        with zipfile.ZipFile(content) as archive:
            size = _unpacked(archive, path)
    else:  # as before PyTorch 1.6: the pickle comes first
        size = size_of(path)
        with open(path, "rb") if file is None else contextlib.nullcontext(file) as raw:
            _refuse_bytearray(raw.read(_LARGEST_RECORD), path)
    if file is not None:
        file.seek(0)
    if size > limit:
        by_flag = f" ({flag})" if flag else ""
        raise InputError(
            f"{path} has {size / 2**30:.3g} GiB of tensors, expected at most {limit / 2**30:.3g} GiB{by_flag}"
        )
    with warnings.catch_warnings():
        # PyTorch warns about old pickle protocols, which it reads nevertheless, and about kinds of tensors.
        warnings.simplefilter("ignore")
        try:
            return torch.load(content, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # its message explains how to run the code
            hint = (
                "; mmengine (mmaction2) wrote it, see docs/how_to/convert_weights.md"
                if "mmengine" in str(error)
                else ""
            )
            raise InputError(
                f"{path}: damaged, or holds other objects than tensors; expected tensors only, because pickled code is "
                f"never run{hint}"
            ) from error


def _unpacked(archive: zipfile.ZipFile, path: Path | Address) -> int:
    """Bytes of all records. InputError: one that is no tensor is large, or asks for memory by a number."""
    require_bounded(archive)
    records = archive.infolist()
    tensors = {record.filename for record in records if re.search(r"(^|/)data/[^/]+$", record.filename)}
    require_possible_count(len(tensors), path)
    for record in records:
        if record.file_size > _LARGEST_RECORD and record.filename not in tensors:
            raise InputError(
                f"{path}: {record.filename} has {record.file_size >> 20} MiB, expected at most "
                f"{_LARGEST_RECORD >> 20} MiB of what is no tensor"
            )
        if record.filename.endswith("data.pkl"):
            _refuse_bytearray(archive.read(record), path)
    return sum(record.file_size for record in records)


def _refuse_bytearray(pickled: bytes, path: Path | Address) -> None:
    if b"bytearray" in pickled:
        raise InputError(f"{path} has a bytearray, which may have any size; expected tensors only")


def require_safe_pytorch(path: Path | Address) -> None:
    """Raise InputError where `torch.load` may run code of the file in spite of weights_only=True."""
    found = re.match(r"(\d+)\.(\d+)(\.\d+(?:a|b|rc)\d*)?", torch.__version__)
    release: tuple[int, ...] = (int(found[1]), int(found[2])) if found else ()
    preview = found is not None and found[3] is not None and release == SAFE_SINCE
    if release < SAFE_SINCE or preview:
        raise InputError(
            f"{path}: PyTorch {torch.__version__} may run code of a pickle ({_LEGACY}), expected 2.10 or later; "
            "save features as .npy, or convert the file where PyTorch is newer"
        )


def is_plain(value: Any) -> bool:
    """Whether a value is a dense tensor in memory: not sparse, quantized, nested or on the device "meta"."""
    return (
        type(value) in (Tensor, torch.nn.Parameter)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not value.is_quantized
        and not value.is_nested
    )


def bytes_of(tensor: Tensor) -> int:
    """Bytes of all elements; an expanded tensor has fewer in memory."""
    return math.prod(tensor.shape) * tensor.element_size()
