"""Triton kernels of the fast layers on a GPU. Importing this module imports Triton.

`FastLayers` calls them between matrix products. Each reads and writes its tensors once, which is what their
time consists of. A test compares the whole with autograd over the decoder.
"""

# Parameters of kernels have no annotation but `constexpr`, and constants are upper case, as in Triton.
# ruff: noqa: ANN001, ANN202, N803
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

if TYPE_CHECKING:
    from torch import Tensor

# Rows that one program of a norm takes at a time.
_NORM_ROWS, _NORM_WARPS = 4, 4
# Programs of a norm's backward pass: four for each of an H100's 132 multiprocessors. Each adds up the
# gradient of the weight over its rows.
_NORM_PROGRAMS = 528
# Positions of one head that one program of the rotation takes.
_ROTATION_ROWS = 64
_GATE_BLOCK, _GATE_WARPS = 1024, 4


def norm_programs(rows: int) -> int:
    """Return into how many partial sums `norm_backward` divides so many rows."""
    return min(_NORM_PROGRAMS, -(-rows // _NORM_ROWS))


def rotation_blocks(rows: int) -> int:
    """Return into how many partial sums `rotate_back` divides so many rows."""
    return -(-rows // _ROTATION_ROWS)


def add_norm(x: Tensor, branch: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Add a branch to the residual stream, and normalize the sum (RMSNorm, https://arxiv.org/abs/1910.07467).

    Args:
        x: contiguous [N, H].
        branch: as `x`; None to add nothing.
        weight: [H].
        eps: added to the mean square.

    Returns:
        The sum, rounded to the dtype of `x`: `x` itself without a branch; its norm, [N, H] in that dtype; and
        the reciprocal of the root mean square of each row, float32 [N].
    """
    rows, width = x.shape
    total = x if branch is None else torch.empty_like(x)
    normed, scales = torch.empty_like(x), torch.empty(rows, dtype=torch.float32, device=x.device)
    _add_norm[(triton.cdiv(rows, _NORM_ROWS),)](
        x,
        x if branch is None else branch,
        weight,
        total,
        normed,
        scales,
        rows,
        eps,
        ADD=branch is not None,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        ROWS=_NORM_ROWS,
        num_warps=_NORM_WARPS,
    )
    return total, normed, scales


@triton.jit
def _add_norm(
    x,
    branch,
    weight,
    total,
    normed,
    scales,
    rows,
    eps,
    ADD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
    at = row[:, None].to(tl.int64) * WIDTH + column[None, :]
    values = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if ADD:
        values += tl.load(branch + at, mask=inside, other=0.0).to(tl.float32)
        rounded = values.to(x.dtype.element_ty)
        tl.store(total + at, rounded, mask=inside)
        values = rounded.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 1) / WIDTH + eps)
    tl.store(scales + row, scale, mask=row < rows)
    factor = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)
    out = values * scale[:, None] * factor[None, :]
    tl.store(normed + at, out.to(x.dtype.element_ty), mask=inside)


def norm_backward(
    gradient: Tensor, x: Tensor, weight: Tensor, scales: Tensor, residual: Tensor | None, sums: Tensor
) -> Tensor:
    """Compute the gradient of a norm's input, and add it to that of the residual stream.

    Args:
        gradient: gradient of the norm's output, contiguous [N, H].
        x: what was normalized, [N, H].
        weight: [H].
        scales: what `add_norm` returned, float32 [N].
        residual: gradient of the residual stream after the norm, [N, H], overwritten by that before it; None
            for the last norm, which nothing bypasses.
        sums: float32 [`norm_programs`, H], overwritten: the gradient of `weight` is their sum.

    Returns:
        The gradient of the residual stream before the norm: `residual`, if there is one.
    """
    rows, width = x.shape
    out = torch.empty_like(x) if residual is None else residual
    _norm_backward[(len(sums),)](
        gradient,
        x,
        weight,
        scales,
        out,
        sums,
        rows,
        ADD=residual is not None,
        WIDTH=width,
        BLOCK=triton.next_power_of_2(width),
        ROWS=_NORM_ROWS,
        PROGRAMS=len(sums),
        num_warps=_NORM_WARPS,
    )
    return out


@triton.jit
def _norm_backward(
    gradient,
    x,
    weight,
    scales,
    out,
    sums,
    rows,
    ADD: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    PROGRAMS: tl.constexpr,
):
    program = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    factor = tl.load(weight + column, mask=column < WIDTH, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(program * ROWS, rows, PROGRAMS * ROWS):
        row = first + tl.arange(0, ROWS)
        inside = (row < rows)[:, None] & (column < WIDTH)[None, :]
        at = row[:, None].to(tl.int64) * WIDTH + column[None, :]
        grad = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
        scale = tl.load(scales + row, mask=row < rows, other=0.0)[:, None]
        unit = tl.load(x + at, mask=inside, other=0.0).to(tl.float32) * scale
        total += tl.sum(grad * unit, 0)
        grad *= factor
        grad = (grad - unit * (tl.sum(grad * unit, 1) / WIDTH)[:, None]) * scale
        if ADD:
            grad += tl.load(out + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + at, grad.to(x.dtype.element_ty), mask=inside)
    tl.store(sums + program * WIDTH + column, total, mask=column < WIDTH)


def rotate_heads(projected: Tensor, heads: int, cos: Tensor, sin: Tensor) -> None:
    """Rotate the first heads of each row in place (https://arxiv.org/abs/2104.09864), halves as pairs.

    Args:
        projected: contiguous [N, columns]: rows are positions 0 to T - 1 again and again, columns are heads.
        heads: the number of heads to rotate.
        cos: cosines of the angles, contiguous float32 [T, head_dim / 2].
        sin: sines, likewise.
    """
    rows, columns = projected.shape
    length, half = cos.shape
    _rotate[(rotation_blocks(rows), heads)](
        projected,
        cos,
        sin,
        rows,
        columns,
        length,
        HALF=half,
        BLOCK=triton.next_power_of_2(half),
        ROWS=_ROTATION_ROWS,
    )


@triton.jit
def _rotate(
    projected, cos, sin, rows, columns, length, HALF: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < HALF)[None, :]
    angle = (row % length)[:, None] * HALF + column[None, :]
    c = tl.load(cos + angle, mask=inside, other=0.0)
    s = tl.load(sin + angle, mask=inside, other=0.0)
    at = projected + row[:, None].to(tl.int64) * columns + tl.program_id(1) * 2 * HALF + column[None, :]
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    dtype = projected.dtype.element_ty
    tl.store(at, (first * c - second * s).to(dtype), mask=inside)
    tl.store(at + HALF, (second * c + first * s).to(dtype), mask=inside)


def rotate_back(
    gradient: Tensor, out: Tensor, first: int, tables: tuple[Tensor, Tensor] | None, sums: Tensor | None
) -> None:
    """Write the gradient of rotated heads, rotated back, to their columns of the projection's gradient.

    Args:
        gradient: [B, heads, T, head_dim], with neighbors in its last dimension.
        out: contiguous [B * T, columns].
        first: the column of the first head.
        tables: cosines and sines as for `rotate_heads`; None for heads that were not rotated.
        sums: float32 [`rotation_blocks`, columns]: the gradient of a bias is their sum; None without one.
    """
    _, heads, length, width = gradient.shape
    rows, columns = out.shape
    cos, sin = tables or (gradient, gradient)
    _rotate_back[(rotation_blocks(rows), heads)](
        gradient,
        *gradient.stride()[:3],
        out,
        first,
        cos,
        sin,
        out if sums is None else sums,
        rows,
        columns,
        length,
        ROTATES=tables is not None,
        SUMS=sums is not None,
        HALF=width // 2,
        BLOCK=triton.next_power_of_2(width // 2),
        ROWS=_ROTATION_ROWS,
    )


@triton.jit
def _rotate_back(
    gradient,
    batch_stride,
    head_stride,
    row_stride,
    out,
    first_column,
    cos,
    sin,
    sums,
    rows,
    columns,
    length,
    ROTATES: tl.constexpr,
    SUMS: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < HALF)[None, :]
    start = (row // length).to(tl.int64) * batch_stride + (row % length) * row_stride
    source = gradient + start[:, None] + tl.program_id(1) * head_stride + column[None, :]
    first = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=inside, other=0.0).to(tl.float32)
    if ROTATES:
        angle = (row % length)[:, None] * HALF + column[None, :]
        c = tl.load(cos + angle, mask=inside, other=0.0)
        s = tl.load(sin + angle, mask=inside, other=0.0)
        turned = first * c + second * s
        second = second * c - first * s
        first = turned
    place = first_column + tl.program_id(1) * 2 * HALF + column
    at = out + row[:, None].to(tl.int64) * columns + place[None, :]
    tl.store(at, first.to(out.dtype.element_ty), mask=inside)
    tl.store(at + HALF, second.to(out.dtype.element_ty), mask=inside)
    if SUMS:
        sums += tl.program_id(0) * columns + place
        tl.store(sums, tl.sum(first, 0), mask=column < HALF)
        tl.store(sums + HALF, tl.sum(second, 0), mask=column < HALF)


def gated(gate_up: Tensor) -> Tensor:
    """Return silu(gate) * up (https://arxiv.org/abs/2002.05202), [N, I], of both together, [N, 2 I]."""
    rows, columns = gate_up.shape
    width = columns // 2
    out = torch.empty(rows, width, dtype=gate_up.dtype, device=gate_up.device)
    _gated[(rows, triton.cdiv(width, _GATE_BLOCK))](
        gate_up, out, WIDTH=width, BLOCK=_GATE_BLOCK, num_warps=_GATE_WARPS
    )
    return out


@triton.jit
def _gated(gate_up, out, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    gate = tl.load(gate_up + row * 2 * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    product = gate * tl.sigmoid(gate) * up
    tl.store(out + row * WIDTH + column, product.to(out.dtype.element_ty), mask=inside)


def gated_backward(gradient: Tensor, gate_up: Tensor) -> None:
    """Overwrite gate and up, [N, 2 I], by their gradients, from that of `gated`, contiguous [N, I]."""
    rows, width = gradient.shape
    _gated_backward[(rows, triton.cdiv(width, _GATE_BLOCK))](
        gradient, gate_up, WIDTH=width, BLOCK=_GATE_BLOCK, num_warps=_GATE_WARPS
    )


@triton.jit
def _gated_backward(gradient, gate_up, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    gates, ups = gate_up + row * 2 * WIDTH + column, gate_up + row * 2 * WIDTH + WIDTH + column
    gate = tl.load(gates, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(ups, mask=inside, other=0.0).to(tl.float32)
    grad = tl.load(gradient + row * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    dtype = gate_up.dtype.element_ty
    tl.store(gates, (grad * up * (sigmoid + silu * (1 - sigmoid))).to(dtype), mask=inside)
    tl.store(ups, (grad * silu).to(dtype), mask=inside)
