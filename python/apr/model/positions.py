"""What the layers of a model need to know of the positions of a batch: rotary tables and masks."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from apr.model.attention import window_mask
from apr.model.rotary import rotary_rows, rotary_tables

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from apr.model.attention import Mask
    from apr.model.layers import LayerKind


class View(NamedTuple):
    """What the layers of one kind need to know of the positions of a batch."""

    cos: Tensor | None
    """Cosines of the rotary angles, float32 [T, rotated elements]; None without rotary positions."""
    sin: Tensor | None
    mask: Mask
    """Which positions each position attends to; None for itself and all before it."""
    last: int | None = None
    """The only query attends to this many keys, the last ones; None for what `mask` says."""


def views(kinds: Iterable[LayerKind], start: int, length: int, device: torch.device) -> dict[LayerKind, View]:
    """Return the view of each kind of layer for the positions `start` to `start + length`."""
    result = {}
    for kind in dict.fromkeys(kinds):
        cos = sin = None
        if kind.rope is not None:
            cos, sin = rotary_tables(kind.rope, start, length, device)
        result[kind] = View(cos, sin, window_mask(kind.window, start, length, device))
    return result


class Steps:
    """The views of single positions, each after all before it. Their tables are computed once.

    Args:
        kinds: the kinds of layers.
        length: the number of positions.
        device: where the tables are.
    """

    def __init__(self, kinds: Iterable[LayerKind], length: int, device: torch.device) -> None:
        # Computed again for every token, they took a tenth of the time of a token of SmolLM2-135M.
        self._rows = {
            kind: None if kind.rope is None else rotary_rows(kind.rope, length, device)
            for kind in dict.fromkeys(kinds)
        }
        self._keys = torch.arange(length, device=device)

    def at(self, position: int) -> dict[LayerKind, View]:
        """Return the view of each kind of layer for one position that the host knows."""
        result = {}
        for kind, rows in self._rows.items():
            cos = sin = None
            if rows is not None:
                cos, sin = (table[position : position + 1] for table in rows)
            bites = kind.window is not None and position >= kind.window
            result[kind] = View(cos, sin, None, kind.window if bites else None)
        return result

    def at_unknown(self, position: Tensor) -> dict[LayerKind, View]:
        """Return the same for a position that only the device knows, as a captured graph needs it.

        Args:
            position: int64 [1]. The masks are bool [1, positions]: a graph always reads all keys.
        """
        result = {}
        for kind, rows in self._rows.items():
            cos = sin = None
            if rows is not None:
                cos, sin = (table.index_select(0, position) for table in rows)
            mask = self._keys <= position
            if kind.window is not None:
                mask &= self._keys > position - kind.window
            result[kind] = View(cos, sin, mask[None])
        return result
