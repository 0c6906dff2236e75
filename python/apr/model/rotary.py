"""Rotary position embeddings (https://arxiv.org/abs/2104.09864): frequencies, tables, rotation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from apr.model.rope import Rope, RopeScaling


def rotary_tables(rope: Rope, start: int, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines of positions `start` to `start + length`: float32 [length, rope.dim]."""
    frequencies = rotary_frequencies(rope, start + length).to(device)
    positions = torch.arange(start, start + length, dtype=torch.float32, device=device)
    angles = torch.outer(positions, frequencies)
    # Pairs are neighbors, or a head's two halves.
    angles = angles.repeat_interleave(2, -1) if rope.interleaved else torch.cat((angles, angles), -1)
    factor = 1.0 if rope.scaling is None else rope.scaling.attention_factor
    return angles.cos() * factor, angles.sin() * factor


def rotary_rows(rope: Rope, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the tables of positions 0 to `length`, each as a pass that ends with it computes it.

    They differ from those of one pass over all positions where frequencies depend on the length of the input.

    Returns:
        Cosines and sines, float32 [length, rope.dim].
    """
    scaling = rope.scaling
    depends = scaling is not None and scaling.rope_type in {"dynamic", "longrope"}
    context = (scaling.original_max_position_embeddings or 0) if scaling is not None and depends else length
    parts = [rotary_tables(rope, 0, min(length, context), device)]
    if length > context and scaling is not None and scaling.rope_type == "longrope":
        parts.append(rotary_tables(rope, context, length - context, device))
    else:
        parts += [rotary_tables(rope, position, 1, device) for position in range(context, length)]
    return torch.cat([cos for cos, _ in parts]), torch.cat([sin for _, sin in parts])


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Rotate the pairs of elements of [B, heads, T, head_dim] that `cos` and `sin` cover; the others stay.

    The computation is in float32 and rounded once, because a cosine in bfloat16 is off by up to 0.4 %.
    """
    dim = cos.shape[-1]
    rotated, rest = (x, None) if dim == x.shape[-1] else (x[..., :dim], x[..., dim:])
    if interleaved:
        turned = torch.stack((-rotated[..., 1::2], rotated[..., ::2]), -1).flatten(-2)
    else:
        first, second = rotated.chunk(2, dim=-1)
        turned = torch.cat((-second, first), dim=-1)
    out = (rotated * cos + turned * sin).to(x.dtype)
    return out if rest is None else torch.cat((out, rest), -1)


def rotary_frequencies(rope: Rope, length: int) -> Tensor:
    """Return rotary frequencies, in radians per position, for `length` tokens of input: float32 [dim / 2]."""
    # The same operations as in transformers, so that both round alike.
    exponents = torch.arange(0, rope.dim, 2, dtype=torch.int64).float() / rope.dim
    scaling = rope.scaling
    if scaling is None:
        return 1.0 / rope.theta**exponents
    if scaling.rope_type == "linear":
        return 1.0 / rope.theta**exponents / scaling.factor
    if scaling.rope_type == "llama3":
        return _llama3(1.0 / rope.theta**exponents, scaling)
    if scaling.rope_type == "yarn":
        return _yarn(rope, scaling, exponents)
    context = scaling.original_max_position_embeddings or 0
    if scaling.rope_type == "dynamic":
        # The base grows with the input once that is longer than the context.
        growth = scaling.factor * max(length, context) / context - (scaling.factor - 1)
        theta: float = rope.theta * growth ** (rope.dim / (rope.dim - 2))
        return 1.0 / theta**exponents
    factors = scaling.long_factor if length > context else scaling.short_factor
    scale = torch.tensor(factors, dtype=torch.float32)
    return 1.0 / (scale * rope.theta**exponents)


def _llama3(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Divide frequencies with long waves by `factor`, keep short waves, interpolate in between."""
    context, low, high = (
        scaling.original_max_position_embeddings or 0,
        scaling.low_freq_factor or 1.0,
        scaling.high_freq_factor or 1.0,
    )
    wavelengths = 2 * math.pi / frequencies
    smooth = ((context / wavelengths - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies


def _yarn(rope: Rope, scaling: RopeScaling, exponents: Tensor) -> Tensor:
    """Divide the frequencies with fewer than `beta_slow` turns in the old context by `factor`.

    Those with more than `beta_fast` turns stay, and in between it is interpolated by index.
    """
    context = scaling.original_max_position_embeddings or 0

    def index_of(turns: float) -> float:
        return rope.dim * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first, last = index_of(scaling.beta_fast or 32.0), index_of(scaling.beta_slow or 1.0)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rope.dim - 1)
    if first == last:
        last += 0.001  # transformers' way out of a division by zero
    ramp = ((torch.arange(rope.dim // 2, dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
    frequencies = rope.theta**exponents
    return 1.0 / (scaling.factor * frequencies) * ramp + 1.0 / frequencies * (1 - ramp)
