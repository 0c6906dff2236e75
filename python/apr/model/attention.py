"""Attention over all positions before, or over a window of them, by the fastest kernel that can."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from functools import lru_cache, partial
from typing import TYPE_CHECKING, TypeAlias

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.nn.attention.flex_attention import BlockMask

# torch.nn.attention.flex_attention is imported where a fused kernel runs: it takes 2 s, for SymPy.

# The fused kernel takes no narrower heads.
_FUSED_HEAD_DIM = 16
# Shapes, dtypes and softcaps that it is compiled for in one process.
_FUSED_VARIANTS = 256

Mask: TypeAlias = "Tensor | BlockMask | None"
"""Which keys each query attends to: bool [T, S], blocks of a fused kernel, or None for all up to its own."""


def window_mask(window: int | None, start: int, length: int, device: torch.device) -> Mask:
    """Return the mask for queries at positions `start` to `start + length` over keys from position 0 on.

    Args:
        window: the number of positions that a query attends to, its own included; None for all.
        start: the number of keys before the first query, which a cache holds.
        length: the number of queries.
        device: where the mask is used. On CUDA, windows over many queries are blocks of a fused kernel.
    """
    keys = start + length
    bites = window is not None and keys > window
    if not bites and (start == 0 or length == 1):
        return None
    if device.type == "cuda" and length > 1:
        return _blocks(window if bites else None, start, length, device)
    queries = torch.arange(start, keys, device=device)[:, None]
    positions = torch.arange(keys, device=device)
    mask = positions <= queries
    return mask & (positions > queries - window) if bites and window is not None else mask


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, softcap: float | None) -> Tensor:
    """Return the mean of values, weighted by the softmax of scaled scores.

    Args:
        q: [B, heads, T, head_dim].
        k: [B, kv_heads, S, head_dim]; each of its heads serves heads / kv_heads heads of `q`.
        v: as `k`.
        mask: as `window_mask` returns it. None: query i attends to the keys up to S - T + i.
        scale: the factor of the scores.
        softcap: if set, scores become softcap * tanh(score / softcap).

    Returns:
        [B, heads, T, head_dim].
    """
    if (mask is not None and not isinstance(mask, Tensor)) or (
        softcap is not None and q.is_cuda and q.shape[2] > 1
    ):
        return _flex(q, k, v, mask, scale, softcap)
    if q.shape[2] == 1:
        # The heads of a group become the queries of their one head of keys: nothing is repeated in memory.
        grouped = q.reshape(q.shape[0], k.shape[1], -1, q.shape[3])
        return _plain(grouped, k, v, mask, scale, softcap, causal=False).reshape(q.shape)
    return _plain(q, k, v, mask, scale, softcap, causal=mask is None)


def _plain(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None, *, causal: bool
) -> Tensor:
    """Run torch's own attention, or the product of all scores where it has no softcap."""
    if softcap is None:
        # With enable_gqa, k and v are not repeated in memory for each head of their group.
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, is_causal=causal, scale=scale, enable_gqa=True
        )
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    scores = softcap * torch.tanh(q @ k.transpose(-1, -2) * scale / softcap)
    if causal:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(
            k.shape[2] - q.shape[2]
        )
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    # transformers' order: softmax in float32, rounded before the product.
    return torch.softmax(scores, -1, dtype=torch.float32).to(v.dtype) @ v


def _flex(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float, softcap: float | None) -> Tensor:
    """Run the kernel that torch generates. It holds no [T, S] tensor and skips the blocks outside windows."""
    if isinstance(mask, Tensor):
        raise TypeError("a fused kernel needs a BlockMask")
    if mask is None:
        mask = _blocks(None, k.shape[2] - q.shape[2], q.shape[2], q.device)

    capped = None if softcap is None else partial(_capped, softcap)
    width = q.shape[3]
    if width < _FUSED_HEAD_DIM:
        # Zeros add nothing to a score, and their values are cut off again.
        q, k, v = (F.pad(part, (0, _FUSED_HEAD_DIM - width)) for part in (q, k, v))
    with nullcontext() if torch.compiler.is_compiling() else _always_compiled():
        out = _compiled()(q, k, v, block_mask=mask, scale=scale, enable_gqa=True, score_mod=capped)
    return out[..., :width]


@contextmanager
def _always_compiled() -> Iterator[None]:
    """Compile the fused kernel whatever the caller has decided: eagerly, it would hold all scores."""
    # Generation turns compilation off, and torch compiles one function for 8 shapes only before it gives up.
    with (
        torch.compiler.set_stance("default"),
        torch._dynamo.config.patch(recompile_limit=_FUSED_VARIANTS),  # noqa: SLF001 (documented under this name)
    ):
        yield


def _capped(softcap: float, score: Tensor, *_: Tensor) -> Tensor:
    return softcap * torch.tanh(score / softcap)


@lru_cache(maxsize=8)
def _blocks(window: int | None, start: int, length: int, device: torch.device) -> BlockMask:
    from torch.nn.attention.flex_attention import create_block_mask

    def visible(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        seen = key <= query + start
        return seen if window is None else seen & (key > query + start - window)

    return create_block_mask(visible, None, None, length, start + length, device=str(device))


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    # An error where torch would otherwise run it eagerly.
    return torch.compile(flex_attention, fullgraph=True)
