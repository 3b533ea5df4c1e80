"""Residual connection and LayerNorm without scale and shift, over rows of D columns.

    z = x + residual        out = (z - mean(z)) * rstd        rstd = 1 / sqrt(variance(z) + eps)

with x, residual and out [rows, D], rstd [rows] float32. A row stays in registers between its sums and its output: x and
residual are read once, out is written once, z never reaches memory. Two operators (a sum, a LayerNorm) also write z and
read it again: 5 passes instead of 3. Rows longer than the largest block are read three times, later times from the
cache. The mean is taken in two steps, of z less its first element and of z less the first mean. So neither an offset
common to a row nor an outlier costs digits, and a row of equal elements gives zeros.

Backward, with g the gradient of out. The gradient of x, and of residual as well, is

    rstd * (g - mean(g) - out * mean(g * out))

so only out and rstd are kept. Every element has one writer and a fixed order of sums, so the bits repeat.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ._common import TARGETS, Config, Launch

# Variants by block of columns; the last is also the step in which longer rows are read. Each thread has 16 elements:
# two to four 128-bit loads of each input, all under way before the first sum. Each variant compiles for all targets
# without spills (bench/aot.py, Triton 3.9). None was timed, for want of a GPU.
CONFIGS = {
    block: Config({"ROWS": max(1, 512 // block), "BLOCK": block}, max(1, block // 512), 1, TARGETS)
    for block in (128, 512, 1024, 2048, 4096, 8192)
}
LARGEST = max(CONFIGS)


@triton.jit
def _relative_sum(x, residual, origin, row_mask, column, columns):
    """Return x + residual - origin, [ROWS, BLOCK], and 0 outside of the columns."""
    mask = row_mask & (column < columns)
    z = tl.load(x + column, mask=mask, other=0.0).to(tl.float32)
    z += tl.load(residual + column, mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, z - origin, 0.0)


@triton.jit
def _add_layer_norm_fwd_kernel(
    x, residual, out, rstd, rows, columns, eps, x_stride, residual_stride,
    LONG: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    row_mask = row < rows
    column = tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    x += row * x_stride
    residual += row * residual_stride
    out += row * columns
    first = tl.load(x, mask=row_mask, other=0.0).to(tl.float32)
    first += tl.load(residual, mask=row_mask, other=0.0).to(tl.float32)

    if LONG:
        centre = first  # [ROWS, 1]
        for start in range(0, columns, BLOCK):
            z = _relative_sum(x, residual, first, row_mask, start + column, columns)
            centre += tl.sum(z, 1, keep_dims=True) / columns
        mean = tl.zeros([ROWS, 1], tl.float32)
        square = tl.zeros([ROWS, 1], tl.float32)
        for start in range(0, columns, BLOCK):
            z = _relative_sum(x, residual, centre, row_mask, start + column, columns)
            mean += tl.sum(z, 1, keep_dims=True) / columns
            square += tl.sum(z * z, 1, keep_dims=True) / columns
        scale = tl.rsqrt(square - mean * mean + eps)
        for start in range(0, columns, BLOCK):
            z = _relative_sum(x, residual, centre, row_mask, start + column, columns)
            mask = row_mask & (start + column < columns)
            tl.store(out + start + column, ((z - mean) * scale).to(out.dtype.element_ty), mask=mask)
    else:
        mask = row_mask & (column < columns)
        z = _relative_sum(x, residual, 0.0, row_mask, column, columns)
        centre = first + tl.sum(tl.where(mask, z - first, 0.0), 1, keep_dims=True) / columns
        z = tl.where(mask, z - centre, 0.0)
        z = tl.where(mask, z - tl.sum(z, 1, keep_dims=True) / columns, 0.0)
        scale = tl.rsqrt(tl.sum(z * z, 1, keep_dims=True) / columns + eps)
        tl.store(out + column, (z * scale).to(out.dtype.element_ty), mask=mask)
    tl.store(rstd + row, scale, mask=row_mask)


@triton.jit
def _add_layer_norm_bwd_kernel(
    grad, out, rstd, grad_input, rows, columns, grad_stride, out_stride,
    LONG: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]  # [ROWS, 1]
    row_mask = row < rows
    column = tl.arange(0, BLOCK)[None, :]  # [1, BLOCK]
    grad += row * grad_stride
    out += row * out_stride
    grad_input += row * columns
    scale = tl.load(rstd + row, mask=row_mask, other=0.0)

    if LONG:
        mean = tl.zeros([ROWS, 1], tl.float32)
        slope = tl.zeros([ROWS, 1], tl.float32)
        for start in range(0, columns, BLOCK):
            mask = row_mask & (start + column < columns)
            g = tl.load(grad + start + column, mask=mask, other=0.0).to(tl.float32)
            y = tl.load(out + start + column, mask=mask, other=0.0).to(tl.float32)
            mean += tl.sum(g, 1, keep_dims=True) / columns
            slope += tl.sum(g * y, 1, keep_dims=True) / columns
        for start in range(0, columns, BLOCK):
            mask = row_mask & (start + column < columns)
            g = tl.load(grad + start + column, mask=mask, other=0.0).to(tl.float32)
            y = tl.load(out + start + column, mask=mask, other=0.0).to(tl.float32)
            result = (g - mean - y * slope) * scale
            tl.store(grad_input + start + column, result.to(grad_input.dtype.element_ty), mask=mask)
    else:
        mask = row_mask & (column < columns)
        g = tl.load(grad + column, mask=mask, other=0.0).to(tl.float32)
        y = tl.load(out + column, mask=mask, other=0.0).to(tl.float32)
        mean = tl.sum(g, 1, keep_dims=True) / columns
        slope = tl.sum(g * y, 1, keep_dims=True) / columns
        result = (g - mean - y * slope) * scale
        tl.store(grad_input + column, result.to(grad_input.dtype.element_ty), mask=mask)


def _rows(tensor: torch.Tensor) -> torch.Tensor:
    """View `tensor` as [rows, D] with unit column stride; copies only if its strides do not allow that."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _launch(kernel, first: torch.Tensor, arguments: dict) -> Launch:
    rows, columns = first.shape
    config = CONFIGS[next((block for block in CONFIGS if block >= columns), LARGEST)]
    arguments |= {"rows": rows, "columns": columns, "LONG": columns > LARGEST}
    return Launch(kernel, (triton.cdiv(rows, config.tiles["ROWS"]),), arguments, config)


def forward_launch(x, residual, out, rstd, eps) -> Launch:
    """Return the forward launch. Requires: out and rstd are contiguous."""
    x, residual = _rows(x), _rows(residual)
    strides = {"x_stride": x.stride(0), "residual_stride": residual.stride(0)}
    arguments = {"x": x, "residual": residual, "out": out, "rstd": rstd, "eps": eps, **strides}
    return _launch(_add_layer_norm_fwd_kernel, x, arguments)


def backward_launch(grad, out, rstd, grad_input) -> Launch:
    """Return the backward launch. Requires: grad_input is contiguous."""
    grad, out = _rows(grad), _rows(out)
    strides = {"grad_stride": grad.stride(0), "out_stride": out.stride(0)}
    arguments = {"grad": grad, "out": out, "rstd": rstd.contiguous(), "grad_input": grad_input, **strides}
    return _launch(_add_layer_norm_bwd_kernel, grad, arguments)


def launch(x, residual, out, rstd, eps) -> None:
    """Fill out [..., D], and rstd [...] in float32."""
    if x.numel():
        forward_launch(x, residual, out, rstd, eps).run()


def launch_backward(grad, out, rstd, grad_input) -> None:
    """Fill grad_input [..., D], the gradient of x and residual."""
    if grad.numel():
        backward_launch(grad, out, rstd, grad_input).run()
