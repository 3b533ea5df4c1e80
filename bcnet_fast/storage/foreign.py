"""Signatures of files of other kinds and other projects, so that an error can name them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from ..errors import InputError
from .address import Address

# Beginning of weight names -> project, by the attributes of its networks: opentad/models/detectors of OpenTAD,
# libs/modeling/meta_archs.py of TriDet and ActionFormer, mmaction/models/heads of mmaction2.
_WEIGHTS = {
    "rpn_head.": "OpenTAD",
    "roi_head.": "OpenTAD",
    "projection.": "OpenTAD",
    "start_head.": "TriDet",
    "backbone.embd.": "ActionFormer or a network derived from it",
    "cls_head.fc_cls.": "an action recogniser of mmaction2",
}

_CONTENT = {
    b"\x93NUMPY": "a NumPy array",
    b"\x89HDF": "an HDF5 file",
    b"PK": "a zip archive, such as .npz or a PyTorch checkpoint",
    b"\x80": "a pickle",
}

# Protocols 0 and 1, which Python 2 wrote, have no magic number.
_PICKLE = re.compile(
    rb"\x80[\x01-\x08]|[}\]]q|\((?:dp|lp|ip|i[a-z_]+\n|c[\w.]+\n)"
    rb"|c(?:copy_reg|copyreg|__builtin__|builtins|numpy|pandas|torch)[\w.]*\n"
)

_VIDEO = "a video: extract features from it first"
_CHECKPOINT = "a checkpoint: infer takes it with --checkpoint"
_SUFFIXES = {
    **dict.fromkeys((".mp4", ".avi", ".mkv", ".mov", ".webm"), _VIDEO),
    **dict.fromkeys((".jpg", ".jpeg", ".png"), "a picture: extract features from the video first"),
    **dict.fromkeys((".pkl", ".pickle"), "a pickle, which is never loaded: save the arrays as .npy"),
    **dict.fromkeys((".safetensors", ".pth", ".tar", ".ckpt"), _CHECKPOINT),
    ".json": "annotations or results",
    ".zip": "an archive: unpack it first",
}


def project_of(names: Iterable[str]) -> str | None:
    """The project whose networks have weights of these names, or None."""
    names = [name.removeprefix("module.") for name in names]
    found = (project for start, project in _WEIGHTS.items() if any(name.startswith(start) for name in names))
    return next(found, None)


def content_of(start: bytes) -> str:
    """`; it looks like a NumPy array`, by the first bytes of a file; empty where they are of no known kind."""
    found = next((kind for magic, kind in _CONTENT.items() if start.startswith(magic)), None)
    return f"; it looks like {found}" if found else ""


def refuse_pickle(path: Path, start: bytes) -> None:
    """Raise InputError, which says how to convert it, where the first bytes of a file are those of a pickle."""
    if _PICKLE.match(start):
        raise InputError(
            f"{path} is a pickle, which can run any code and is never loaded; if you trust it, convert it: python -c "
            "\"import json, pickle; json.dump(pickle.load(open('IN.pkl', 'rb')), open('OUT.json', 'w'), "
            'default=lambda value: value.tolist())"'
        )


def no_features(path: Path | Address) -> str:
    """`; this looks like a video: ...`, by the name of a file without features; empty where it says nothing."""
    found = _SUFFIXES.get(path.suffix.lower())
    return f"; {path.name} looks like {found}" if found else ""
