"""`loss.png`: train and held-out loss over tokens."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from apr.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

_DOTS_PER_INCH = 120


def plot_losses(records: list[dict[str, Any]], path: Path, *, target: float) -> None:
    """Draw the records of `train.jsonl`; written atomically.

    Args:
        records: steps and evaluations.
        path: of the PNG.
        target: held-out loss to reach, nats.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps = [r for r in records if r.get("train_loss") is not None]
    evaluations = [r for r in records if r.get("val_loss") is not None]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot([r["tokens_seen"] for r in steps], [r["train_loss"] for r in steps], color="#9ab6d3", lw=1,
              label="train, each step")  # fmt: skip
    axes.plot([r["tokens_seen"] for r in evaluations], [r["val_loss"] for r in evaluations], "o-",
              color="#c0392b", lw=1.6, ms=5, label="held-out")  # fmt: skip
    for record in evaluations:
        axes.annotate(f"{record['val_loss']:.3f}", (record["tokens_seen"], record["val_loss"]),
                      textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)  # fmt: skip
    axes.axhline(target, color="#555555", lw=0.8, ls=":", label=f"target {target:g}")
    axes.set_xlabel("tokens seen")
    axes.set_ylabel("cross entropy, nats a token")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    png = io.BytesIO()
    # No version in the file: the same run draws the same picture.
    figure.savefig(png, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    write_atomically(path, png.getbuffer())
