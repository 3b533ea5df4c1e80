"""One-dimensional Soft-NMS over one or many sets of segments."""

from __future__ import annotations

import math

import numpy as np
import torch

from . import native as _native
from . import reference
from .backends import call, check_number, choose

METHODS = ("gaussian", "linear", "hard")
DTYPES = (torch.float32, torch.float64)


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
    """Pick the best segment, lower the scores of those that overlap it, and so on, best first.

    Args:
        segments: [n, 2] float32 or float64, start and end in any unit, end >= start.
        scores: [n], of the same dtype and device.
        sigma: width of the Gaussian, > 0; the other methods do not use it.
        method: by what a score is multiplied, with t the tIoU of its segment with the picked one:
            "gaussian": exp(-t^2 / sigma), computed as exp(t^2 * (-1 / sigma)), where t > threshold;
            "linear": 1 - t where t > 0 and t >= threshold;
            "hard": 0 where t > 0 and t >= threshold, which is ordinary NMS.
        iou_threshold: the threshold, or a pair (low, high) for low + (high - low) * length of the picked segment,
            which BSN and BMN use with lengths relative to the video.
        min_score: a candidate is dropped for good once its score is below this, or not above 0.
        max_proposals: stop after so many picks in a set; None for no limit.
        offsets: [V + 1] int64, from 0 up to n, not decreasing: V independent sets, where set v is the rows
            offsets[v] to offsets[v + 1] - 1. None for one set. The CPU works on several sets at a time.
        length_epsilon: added to each length in t = intersection / (length_a + length_b - intersection), which is 0
            where the intersection is empty. None means 1e-6 for float32, as the compiled code of ActionFormer and
            OpenTAD has it, and 0 for float64.

    Returns:
        (segments [k, 2], scores [k], indices [k]) of the picks: in the order of picking within a set, set after set.
        The scores are those at the time of picking; `indices` (int64) are rows of the input, so that the set of each
        pick is `torch.bucketize(indices, offsets, right=True) - 1`.

    The result has the same bits for every backend, processor and number of threads: all arithmetic is in the dtype of
    the inputs, in the order of the formulas above, one factor multiplied after the other, with an exponential of the
    package's own (within 1.03 ulp). Equal scores go by place in an array that begins in input order and changes as
    the in-place loops of ActionFormer and OpenTAD change it: the picked candidate trades places with the first one not
    yet picked; after the decay, places are scanned upward, a dropped candidate is replaced by the last one, and its
    place looked at again. So float32 is a drop-in for their code, except that the very first pick must pass min_score.

    On CUDA, all sets are worked on in one launch. The host waits for the device, because the number of picks decides
    the sizes of the outputs: once, and once more where offsets are given. Where the CUDA extension was not built, the
    inputs are copied to the host and the result back.

    Not differentiable. float16 and bfloat16 scores must be converted first, since their ties would decide the order.

    Raises:
        TypeError: an argument is no tensor, or has a dtype other than stated.
        ValueError: an argument has another shape, device or range than stated, NaN or infinity included.
    """
    low, high = _pair(iou_threshold)
    _check(segments, scores, offsets, method, sigma, low, high, min_score, max_proposals, length_epsilon)
    if length_epsilon is None:
        length_epsilon = 1e-6 if segments.dtype == torch.float32 else 0.0
    segments, scores = segments.detach(), scores.detach()
    options = method, sigma, low, high, min_score, max_proposals, length_epsilon
    return call(_soft_nms, _run, segments, scores, offsets, *options)


def _pair(iou_threshold: float | tuple[float, float]) -> tuple[float, float]:
    if not isinstance(iou_threshold, (tuple, list)):
        return iou_threshold, iou_threshold
    if len(iou_threshold) != 2:
        raise ValueError(f"soft_nms: iou_threshold must be a number or a pair of them, got {iou_threshold!r}")
    return iou_threshold[0], iou_threshold[1]


def _check(segments, scores, offsets, method, sigma, low, high, min_score, max_proposals, length_epsilon) -> None:
    """Raise for what can be told without reading a tensor's values, which tracing (torch.compile) cannot do."""

    def refuse(error, argument, wanted, got):
        raise error(f"soft_nms: {argument} must be {wanted}, got {got}")

    tensors = {"segments": segments, "scores": scores}
    if offsets is not None:
        tensors["offsets"] = offsets
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            refuse(TypeError, name, "a tensor", type(tensor).__name__)
    if segments.dim() != 2 or segments.shape[1] != 2:
        refuse(ValueError, "segments", "[n, 2]", f"shape {list(segments.shape)}")
    if segments.dtype not in DTYPES:
        refuse(TypeError, "segments", "float32 or float64", segments.dtype)
    if scores.dim() != 1 or scores.shape[0] != segments.shape[0]:
        refuse(ValueError, "scores", f"[{segments.shape[0]}] to fit segments", f"shape {list(scores.shape)}")
    if scores.dtype != segments.dtype:
        refuse(TypeError, "scores", f"{segments.dtype} as segments is", scores.dtype)
    if offsets is not None and offsets.dtype != torch.int64:
        refuse(TypeError, "offsets", "int64", offsets.dtype)
    if offsets is not None and (offsets.dim() != 1 or offsets.shape[0] == 0):
        refuse(ValueError, "offsets", "[V + 1]", f"shape {list(offsets.shape)}")
    for name, tensor in tensors.items():
        if tensor.device != segments.device:
            refuse(ValueError, name, f"on {segments.device} as segments is", f"a tensor on {tensor.device}")
    given = {"sigma": sigma, "iou_threshold": low, "its upper end": high, "min_score": min_score}
    for name, value in {**given, "length_epsilon": 0.0 if length_epsilon is None else length_epsilon}.items():
        check_number("soft_nms", name, value)
    check_number("soft_nms", "max_proposals", 0 if max_proposals is None else max_proposals, integer=True)
    if method not in METHODS:
        refuse(ValueError, "method", " or ".join(METHODS), repr(method))
    tiny = torch.finfo(segments.dtype).tiny
    if not tiny <= sigma < math.inf:
        refuse(ValueError, "sigma", f"> 0, finite and not below {tiny:.2g}", sigma)
    if not (math.isfinite(low) and math.isfinite(high)):
        refuse(ValueError, "iou_threshold", "finite", (low, high))
    if not math.isfinite(min_score):
        refuse(ValueError, "min_score", "finite", min_score)
    if max_proposals is not None and max_proposals < 0:
        refuse(ValueError, "max_proposals", ">= 0 or None", max_proposals)
    if length_epsilon is not None and not (length_epsilon >= 0 and math.isfinite(length_epsilon)):
        refuse(ValueError, "length_epsilon", ">= 0 and finite, or None", length_epsilon)


def _check_values(segments: np.ndarray, scores: np.ndarray, offsets: np.ndarray) -> None:
    """Raise for values that no backend takes."""
    n = len(scores)
    with np.errstate(invalid="ignore", over="ignore"):
        # NaN or infinite where a start or an end is.
        lengths = segments[:, 1] - segments[:, 0]
    good = (lengths >= 0) & (lengths < math.inf)
    if not good.all():
        row = int(good.argmin())
        raise ValueError(
            "soft_nms: segments must be finite, with end >= start and a finite length, "
            f"got {segments[row].tolist()} in row {row} of {n}"
        )
    good = np.isfinite(scores)
    if not good.all():
        row = int(good.argmin())
        raise ValueError(f"soft_nms: scores must be finite, got {scores[row]} in row {row} of {n}")
    first, last = offsets[[0, -1]]
    if first != 0 or last != n:
        raise ValueError(f"soft_nms: offsets must go from 0 to {n}, the number of segments, got {first} to {last}")
    good = offsets[1:] >= offsets[:-1]
    if not good.all():
        before, after = offsets[good.argmin() :][:2]
        raise ValueError(f"soft_nms: offsets must not decrease, got {before} and then {after}")


def _run(
    segments, scores, offsets, method, sigma, threshold_low, threshold_high, min_score, max_proposals, length_epsilon
):
    device = segments.device
    backend = choose("soft_nms", device)
    options = method, sigma, threshold_low, threshold_high, min_score, max_proposals, length_epsilon
    if backend == "native" and device.type == "cuda":
        return _run_cuda(torch.cuda.current_stream(device).cuda_stream, segments, scores, offsets, *options)
    # In NumPy from here on, in host memory: PyTorch's threads, which it would use for the checks, keep spinning for a
    # while after their work, and would take the processor from ours.
    arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in (segments, scores)]
    arrays.append(np.array([0, len(scores)], np.int64) if offsets is None else offsets.cpu().contiguous().numpy())
    run = _run_reference if backend == "reference" else _run_native
    return tuple(torch.from_numpy(array).to(device) for array in run(*arrays, *options))


# The schema is written out because PyTorch before 2.6 cannot read it from annotations that are strings.
_soft_nms = torch.library.custom_op(
    "bcnet_fast::soft_nms",
    _run,
    mutates_args=(),
    schema="(Tensor segments, Tensor scores, Tensor? offsets, str method, float sigma, float threshold_low, "
    "float threshold_high, float min_score, int? max_proposals, float length_epsilon) -> (Tensor, Tensor, Tensor)",
)


def _run_reference(segments, scores, offsets, *options):
    _check_values(segments, scores, offsets)
    indices, picked_scores = reference.soft_nms(segments, scores, offsets, *options)
    return segments[indices], picked_scores, indices


def _run_native(segments, scores, offsets, method, sigma, low, high, min_score, max_proposals, length_epsilon):
    most = -1 if max_proposals is None else max_proposals
    options = METHODS.index(method), sigma, low, high, min_score, most, length_epsilon, torch.get_num_threads()
    try:
        return _native.module.soft_nms(segments, scores, offsets, *options)
    except ValueError:
        # It looks at all values itself, in less time, but says less about them.
        _check_values(segments, scores, offsets)
        raise


def _run_cuda(stream, segments, scores, offsets, method, sigma, low, high, min_score, max_proposals, length_epsilon):
    """By the CUDA extension, on the inputs' device.

    Waits for the device once for the counts of picks, which are the sizes of the outputs and say whether all values
    were good, and once for the offsets where they are given.
    """
    segments, scores = segments.detach().contiguous(), scores.detach().contiguous()
    n, device = len(scores), scores.device
    index = device.index or 0  # None under emulation alone
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

    module, _ = _native.cuda()
    dtype = str(scores.dtype).removeprefix("torch.")
    limit = module.soft_nms_shared_limit(index)
    plan = getattr(module, f"plan_soft_nms_{dtype}")(n, len(bounds) - 1, int(np.diff(bounds).max()), limit)
    workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=device)
    picks, picked_scores, counts = offsets.new_empty(n), torch.empty_like(scores), torch.empty_like(offsets[1:])
    most = -1 if max_proposals is None else max_proposals
    inputs, outputs = (segments, scores, offsets), (workspace, picks, picked_scores, counts)
    getattr(module, f"soft_nms_{dtype}")(
        *(tensor.data_ptr() for tensor in inputs),
        *(n, len(bounds) - 1, METHODS.index(method), sigma, low, high, min_score, most, length_epsilon),
        *(plan, index, stream),
        *(tensor.data_ptr() for tensor in outputs),
    )
    counts_on_host = counts.cpu().numpy()
    if (counts_on_host < 0).any():
        _check_values(segments.cpu().numpy(), scores.cpu().numpy(), bounds)
    total = int(counts_on_host.sum())
    # The picks of a set begin at its offset. From their places in the result to those:
    shift = offsets[:-1] - (counts.cumsum(0) - counts)
    places = torch.arange(total, device=device) + shift.repeat_interleave(counts, output_size=total)
    picks = picks[places]
    return segments[picks], picked_scores[places], picks


@_soft_nms.register_fake
def _soft_nms_fake(segments, scores, *_):
    picks = torch.library.get_ctx().new_dynamic_size()
    return segments.new_empty(picks, 2), scores.new_empty(picks), scores.new_empty(picks, dtype=torch.int64)
