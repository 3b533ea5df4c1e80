"""One-dimensional Soft-NMS over one or many sets of segments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ..text import alternatives
from . import native, reference
from .backends import choose
from .refusals import check_number, check_rows, name_of, refuse, refuse_device, refuse_dtype, refuse_shape, refuse_type
from .registration import register

METHODS = ("gaussian", "linear", "hard")
DTYPES = (torch.float32, torch.float64)


class _Options(NamedTuple):
    """The options of one call, checked; names as in `soft_nms`."""

    method: str
    sigma: float
    threshold_low: float
    threshold_high: float
    min_score: float
    max_proposals: int | None
    length_epsilon: float


def soft_nms(
    segments: torch.Tensor,
    scores: torch.Tensor,
    *,
    sigma: float = 0.5,
    method: str = "gaussian",
    iou_threshold: float | tuple[float, float] = 0.0,
    min_score: float = 0.0,
    max_proposals: int | None = None,
    offsets: torch.Tensor | None = None,
    length_epsilon: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pick the best segment, lower the scores of those that overlap it, and repeat, best first.

    Source: Bodla et al., "Soft-NMS", ICCV 2017; in one dimension as in ActionFormer and OpenTAD.

    Args:
        segments: start and end in any unit, [n, 2] float32 or float64, end >= start.
        scores: [n], in the dtype and on the device of segments.
        sigma: width of the Gaussian, > 0; the other methods ignore it.
        method: factor of a score, where t is the tIoU of its segment and the picked one:
            "gaussian": exp(-t^2 / sigma), computed as exp(t^2 * (-1 / sigma)), if t > threshold;
            "linear": 1 - t if t > 0 and t >= threshold;
            "hard": 0 if t > 0 and t >= threshold, which is ordinary NMS.
        iou_threshold: the threshold, or a pair (low, high) for low + (high - low) * length of the picked segment. BSN
            and BMN use the pair with lengths relative to the video.
        min_score: a candidate is dropped for good once its score is below this, or not above 0.
        max_proposals: most picks of a set; None for no limit.
        offsets: bounds of V independent sets, [V + 1] int64, from 0 to n, not decreasing. Set v is the rows offsets[v]
            to offsets[v + 1] - 1. None for one set. The CPU works on several sets at a time.
        length_epsilon: added to each length in t = intersection / (length_a + length_b - intersection), which is 0 if
            the intersection is empty. None for 1e-6 with float32, as in the compiled code of ActionFormer and OpenTAD,
            and 0 with float64.

    Returns:
        (segments [k, 2], scores [k], indices [k] int64) of the picks, set after set, each in the order of picking. The
        scores are those at the time of picking, the indices rows of the input. The set of each pick is
        `torch.bucketize(indices, offsets, right=True) - 1`.

    The bits do not depend on backend, processor or number of threads. All arithmetic is in the dtype of the inputs, in
    the order of the formulas above, one factor multiplied after the other. The exponential is the package's own (within
    1.03 ulp).

    Equal scores are picked in the order of an array that starts in input order and changes as in the in-place loops of
    ActionFormer and OpenTAD. The picked candidate trades places with the first one not yet picked. After the decay,
    places are scanned upward: the last candidate replaces a dropped one, and its place is scanned again. So float32
    is a drop-in replacement for their code, except that the very first pick must pass min_score too.

    On CUDA, all sets are processed in one launch. The host waits for the device, because the number of picks decides
    the sizes of the outputs: once, and once more if offsets are passed. If the CUDA extension was not built, the inputs
    are copied to the host and the results back.

    Not differentiable. Convert float16 and bfloat16 first: their many ties would decide the order.

    Raises:
        TypeError: an argument is not a tensor or number, or its dtype is not listed above.
        ValueError: an argument has another shape, device or range, or is NaN or infinite.
    """
    low, high = _pair(iou_threshold)
    _check_tensors(segments, scores, offsets)
    if length_epsilon is None:
        length_epsilon = 1e-6 if segments.dtype == torch.float32 else 0.0
    _check_options(_Options(method, sigma, low, high, min_score, max_proposals, length_epsilon), segments.dtype)
    parameters = [sigma, low, high, min_score, length_epsilon]
    return _soft_nms(segments.detach(), scores.detach(), offsets, method, parameters, max_proposals)


def _pair(iou_threshold: float | tuple[float, float]) -> tuple[float, float]:
    if not isinstance(iou_threshold, (tuple, list)):
        return iou_threshold, iou_threshold
    if len(iou_threshold) != 2:
        refuse("soft_nms", "iou_threshold", repr(iou_threshold), "a number or a pair of them")
    return iou_threshold[0], iou_threshold[1]


def _check_tensors(segments: torch.Tensor, scores: torch.Tensor, offsets: torch.Tensor | None) -> None:
    """Raise for tensors that no backend supports, as far as it shows without reading values, so that it traces."""
    tensors = {"segments": segments, "scores": scores}
    if offsets is not None:
        tensors["offsets"] = offsets
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            refuse_type("soft_nms", name, tensor, "a tensor")
    if segments.dim() != 2 or segments.shape[1] != 2:
        refuse_shape("soft_nms", "segments", segments, "[n, 2]")
    if segments.dtype not in DTYPES:
        refuse_dtype("soft_nms", "segments", segments.dtype, DTYPES)
    if scores.dim() != 1 or scores.shape[0] != segments.shape[0]:
        refuse_shape("soft_nms", "scores", scores, f"[{segments.shape[0]}] to fit segments")
    if scores.dtype != segments.dtype:
        refuse_dtype("soft_nms", "scores", scores.dtype, [segments.dtype], " as segments is")
    if offsets is not None and offsets.dtype != torch.int64:
        refuse_dtype("soft_nms", "offsets", offsets.dtype, [torch.int64])
    if offsets is not None and (offsets.dim() != 1 or offsets.shape[0] == 0):
        refuse_shape("soft_nms", "offsets", offsets, "[V + 1]")
    for name, tensor in tensors.items():
        if tensor.device != segments.device:
            refuse_device("soft_nms", name, tensor, segments, "segments")


def _check_options(options: _Options, dtype: torch.dtype) -> None:
    """Raise for options out of range; dtype is that of the segments."""
    method, sigma, low, high, min_score, max_proposals, length_epsilon = options
    numbers = {"sigma": sigma, "iou_threshold": low, "the second iou_threshold": high, "min_score": min_score}
    for name, value in {**numbers, "length_epsilon": length_epsilon}.items():
        check_number("soft_nms", name, value)
    check_number("soft_nms", "max_proposals", 0 if max_proposals is None else max_proposals, integer=True)
    if method not in METHODS:
        refuse("soft_nms", "method", repr(method), alternatives(METHODS))
    tiny = torch.finfo(dtype).tiny
    if not tiny <= sigma < math.inf:
        refuse("soft_nms", "sigma", sigma, f"a number > 0, finite and not below {tiny:.2g}")
    if not (math.isfinite(low) and math.isfinite(high)):
        refuse("soft_nms", "iou_threshold", (low, high), "finite numbers")
    if not math.isfinite(min_score):
        refuse("soft_nms", "min_score", min_score, "a finite number")
    if max_proposals is not None and max_proposals < 0:
        refuse("soft_nms", "max_proposals", max_proposals, "a number >= 0, or None")
    if not (length_epsilon >= 0 and math.isfinite(length_epsilon)):
        refuse("soft_nms", "length_epsilon", length_epsilon, "a finite number >= 0, or None")


def _check_values(segments: np.ndarray, scores: np.ndarray, offsets: np.ndarray) -> None:
    """Raise for values that no backend supports."""
    n = len(scores)
    with np.errstate(invalid="ignore", over="ignore"):
        # NaN or infinite if a start or an end is.
        lengths = segments[:, 1] - segments[:, 0]
    good = (lengths >= 0) & (lengths < math.inf)
    check_rows("soft_nms", "segments", segments, good, "finite numbers with end >= start and a finite length")
    check_rows("soft_nms", "scores", scores, np.isfinite(scores), "finite numbers")
    first, last = offsets[[0, -1]]
    if first != 0 or last != n:
        refuse("soft_nms", "offsets", f"{first} to {last}", f"0 to {n}, the number of segments")
    good = offsets[1:] >= offsets[:-1]
    if not good.all():
        before, after = offsets[good.argmin() :][:2]
        refuse("soft_nms", "offsets", f"{before} and then {after}", "numbers that do not decrease")


def _run(
    segments: torch.Tensor,
    scores: torch.Tensor,
    offsets: torch.Tensor | None,
    method: str,
    parameters: Sequence[float],
    max_proposals: int | None,
) -> tuple[torch.Tensor, ...]:
    """Return what `soft_nms` returns; parameters are sigma, both thresholds, min_score and length_epsilon."""
    sigma, low, high, min_score, length_epsilon = parameters
    options = _Options(method, sigma, low, high, min_score, max_proposals, length_epsilon)
    device = segments.device
    backend = choose("soft_nms", device)
    if backend == "native" and device.type == "cuda":
        return _run_cuda(segments, scores, offsets, options, torch.cuda.current_stream(device).cuda_stream)
    # In NumPy from here on, in host memory: PyTorch's threads, which its own functions would use for the checks, spin
    # for a while after their work and would take the processor from ours.
    rows, values = (tensor.detach().cpu().contiguous().numpy() for tensor in (segments, scores))
    bounds = np.array([0, len(scores)], np.int64) if offsets is None else offsets.cpu().contiguous().numpy()
    run = _run_reference if backend == "reference" else _run_native
    return tuple(torch.from_numpy(array).to(device) for array in run(rows, values, bounds, options))


def _run_reference(
    segments: np.ndarray, scores: np.ndarray, offsets: np.ndarray, options: _Options
) -> tuple[np.ndarray, ...]:
    _check_values(segments, scores, offsets)
    indices, picked_scores = reference.soft_nms(segments, scores, offsets, **options._asdict())
    return segments[indices], picked_scores, indices


def _native_options(options: _Options) -> dict[str, Any]:
    most = -1 if options.max_proposals is None else options.max_proposals
    return options._asdict() | {"method": METHODS.index(options.method), "max_proposals": most}


def _run_native(
    segments: np.ndarray, scores: np.ndarray, offsets: np.ndarray, options: _Options
) -> tuple[np.ndarray, ...]:
    threads = torch.get_num_threads()
    try:
        return native.module.soft_nms(segments, scores, offsets, **_native_options(options), threads=threads)
    except ValueError:
        # The C++ code checks all values too, and faster, but names neither the value nor its place.
        _check_values(segments, scores, offsets)
        raise


def _run_cuda(
    segments: torch.Tensor, scores: torch.Tensor, offsets: torch.Tensor | None, options: _Options, stream: int
) -> tuple[torch.Tensor, ...]:
    """Run the CUDA extension on the device of the inputs, on a stream.

    Waits for the device once for the counts of picks, which give the sizes of the outputs and whether all values are
    valid, and once more for the offsets if there are any.
    """
    segments, scores = segments.detach().contiguous(), scores.detach().contiguous()
    n, device = len(scores), scores.device
    index = device.index or 0  # None under emulation only
    if offsets is None:
        bounds = np.array([0, n])
        offsets = torch.arange(2, device=device) * n
    else:
        offsets = offsets.contiguous()
        bounds = offsets.cpu().numpy()
        if bounds[0] != 0 or bounds[-1] != n or (bounds[1:] < bounds[:-1]).any():
            _check_values(segments.cpu().numpy(), scores.cpu().numpy(), bounds)
    if n == 0:
        return segments.clone(), scores.clone(), offsets.new_empty(0)

    module, _ = native.cuda()
    dtype = name_of(scores.dtype)
    limit = module.soft_nms_shared_limit(index)
    plan = getattr(module, f"plan_soft_nms_{dtype}")(n, len(bounds) - 1, int(np.diff(bounds).max()), limit)
    workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=device)
    picks, picked_scores, counts = offsets.new_empty(n), torch.empty_like(scores), torch.empty_like(offsets[1:])
    getattr(module, f"soft_nms_{dtype}")(
        *(tensor.data_ptr() for tensor in (segments, scores, offsets)),
        candidates=n,
        sets=len(bounds) - 1,
        **_native_options(options),
        plan=plan,
        device=index,
        stream=stream,
        workspace=workspace.data_ptr(),
        indices=picks.data_ptr(),
        picked_scores=picked_scores.data_ptr(),
        counts=counts.data_ptr(),
    )
    counts_on_host = counts.cpu().numpy()
    if (counts_on_host < 0).any():
        _check_values(segments.cpu().numpy(), scores.cpu().numpy(), bounds)
    total = int(counts_on_host.sum())
    # The picks of a set start at its offset. The shift leads from their places in the result to those.
    shift = offsets[:-1] - (counts.cumsum(0) - counts)
    places = torch.arange(total, device=device) + shift.repeat_interleave(counts, output_size=total)
    picks = picks[places]
    return segments[picks], picked_scores[places], picks


def _fake(segments, scores, offsets, method, parameters, max_proposals):
    picks = torch.library.get_ctx().new_dynamic_size()
    return segments.new_empty(picks, 2), scores.new_empty(picks), scores.new_empty(picks, dtype=torch.int64)


_soft_nms = register(
    "soft_nms",
    "(Tensor segments, Tensor scores, Tensor? offsets, str method, float[] parameters, int? max_proposals) "
    "-> (Tensor, Tensor, Tensor)",
    _run,
    _fake,
)
