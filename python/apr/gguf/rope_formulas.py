"""Formulas of rotary scaling that models and GGUF files share."""

from __future__ import annotations

from math import log, nextafter, sqrt


def yarn_attention_factor(factor: float, weight: float = 1.0) -> float:
    """Return YaRN's factor of cosines and sines (https://arxiv.org/abs/2309.00071, equation 22).

    Args:
        factor: by how much the context grew.
        weight: `mscale` in transformers' generalization of the equation.
    """
    return 0.1 * weight * log(factor) + 1.0 if factor > 1 else 1.0


def longrope_attention_factor(factor: float, original: int) -> float:
    """Return the factor of cosines and sines that LongRoPE suggests (https://arxiv.org/abs/2402.13753).

    Args:
        factor: by how much the context grew.
        original: the context before.
    """
    return sqrt(1 + log(factor) / log(original)) if factor > 1 < original else 1.0


def rotary_fraction(dim: int, head_dim: int) -> float:
    """Return the `partial_rotary_factor` from which transformers computes `dim`: int(head_dim * factor)."""
    fraction = dim / head_dim
    # 49 * (1 / 49) is less than 1.
    return fraction if int(head_dim * fraction) == dim else nextafter(fraction, 1.0)
