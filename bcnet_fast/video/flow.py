"""Optical flow between two pictures, by OpenCV or by RAFT of torchvision.

Each pair is computed alone, so that a flow depends on nothing but its two pictures.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..errors import InputError

# Flow [H, W, 2] float32, pixels in x and y, from the first picture [H, W, 3] uint8 to the second.
FlowEstimator = Callable[[np.ndarray, np.ndarray], np.ndarray]
INSTALL = "pip install 'bcnet_fast[flow]'"
_RAFT_BLOCK = 8  # RAFT takes pictures whose sides are multiples of this


def opencv_flow(method: str) -> FlowEstimator:
    """TV-L1 with the settings of OpenCV, or DIS with its medium preset. InputError: OpenCV, or its part, is missing."""
    try:
        cv2: Any = importlib.import_module("cv2")
    except ImportError as error:
        raise InputError(f"--flow {method} requires OpenCV: {INSTALL}") from error
    if method == "dis":
        solver = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    elif hasattr(cv2, "optflow"):
        solver = cv2.optflow.DualTVL1OpticalFlow_create()
    else:
        raise InputError(f"--flow tv-l1 requires OpenCV with its contributed modules: {INSTALL}")

    def estimate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        grey = [cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY) for picture in (first, second)]
        return solver.calc(*grey, None)

    return estimate


def raft_flow(network: torch.nn.Module, device: torch.device) -> FlowEstimator:
    """RAFT of torchvision. Pictures are padded to multiples of 8 by repeating their borders, as its authors do."""
    network = network.eval().requires_grad_(False).to(device)

    @torch.inference_mode()
    def estimate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        height, width = first.shape[:2]
        more = -height % _RAFT_BLOCK, -width % _RAFT_BLOCK
        top, left = more[0] // 2, more[1] // 2
        pictures = [
            torch.nn.functional.pad(
                torch.from_numpy(picture).to(device).permute(2, 0, 1)[None].float() / 127.5 - 1,
                (left, more[1] - left, top, more[0] - top),
                mode="replicate",
            )
            for picture in (first, second)
        ]
        flow = network(*pictures)[-1][0, :, top : top + height, left : left + width]
        return np.ascontiguousarray(flow.permute(1, 2, 0).float().cpu().numpy())

    return estimate
