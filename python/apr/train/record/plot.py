"""`loss.png`: training and held-out loss over the tokens seen."""

from __future__ import annotations

import io
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from apr.files import as_utf8, write_atomically

if TYPE_CHECKING:
    from pathlib import Path

_DOTS_PER_INCH = 150
_BLUE, _PALE, _RED = "#2f6fab", "#c3d6e8", "#c0392b"
# The losses of more steps than this are drawn as a pale band under their moving mean. Losses of small batches
# jump by more than a short run improves.
FEW_STEPS = 12
# The mean is over 1/40 of the steps; in a short run over 8, or over a quarter of them.
_SMOOTHING, _LEAST_WIDTH, _LARGEST_SHARE = 40, 8, 4


def plot_losses(records: list[dict[str, Any]], path: Path, *, target: float | None, title: str) -> None:
    """Draw the records of `train.jsonl` to a PNG file, which is written atomically.

    Args:
        records: records of steps and evaluations.
        path: the PNG file.
        target: the held-out loss to reach, in nats; None if there is none.
        title: names the model and the data.
    """
    # Without pyplot, which keeps global state and may try to open a window: a run works in any thread.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    steps = [(r["tokens_seen"], r["train_loss"]) for r in records if r.get("train_loss") is not None]
    evaluations = [(r["tokens_seen"], r["val_loss"]) for r in records if r.get("val_loss") is not None]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    many = len(steps) > FEW_STEPS
    if steps:
        axes.plot(*zip(*steps, strict=True), color=_PALE if many else _BLUE, lw=1, label="train, each step")
    if many:
        axes.plot(*zip(*smoothed(steps), strict=True), color=_BLUE, lw=1.6, label="train, smoothed")
    if evaluations:
        axes.plot(*zip(*evaluations, strict=True), "o-", color=_RED, lw=1.6, ms=4, label="held-out")
        best = min(evaluations, key=lambda point: point[1])
        axes.plot(*best, "*", color=_RED, ms=13, mec="white", label=f"best held-out: {best[1]:.4f}")
        for point in {evaluations[0], evaluations[-1]}:
            axes.annotate(f"{point[1]:.3f}", point, textcoords="offset points", xytext=(0, 9), ha="center",
                          fontsize=8, color=_RED)  # fmt: skip
    if target is not None:
        axes.axhline(target, color="#555555", lw=0.9, ls="--", label=f"target: {target:g}")
    axes.set_title(
        as_utf8(title), fontsize=10, loc="left", parse_math=False
    )  # a file name may contain dollar signs
    axes.set_xlabel("training tokens seen")
    axes.set_ylabel("cross entropy, nats per token")
    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.margins(x=0.03, y=0.08)
    axes.grid(visible=True, color="#eeeeee", lw=0.8)
    axes.set_axisbelow(True)
    if steps or evaluations or target is not None:
        # Below the axes: within them it covers a line of some run, wherever it is put.
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    png = io.BytesIO()
    # Without matplotlib's version in the file, the same run draws the same bytes.
    figure.savefig(png, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    write_atomically(path, png.getbuffer())


def smoothed(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return moving means of (x, loss) pairs in their order, each at the middle of its window."""
    width = max(len(points) // _SMOOTHING, min(_LEAST_WIDTH, len(points) // _LARGEST_SHARE))
    # A sum that is carried along: a mean over each window by itself would be quadratic in a long run.
    sums = [0.0, *accumulate(loss for _, loss in points)]
    return [
        (points[first + width // 2][0], (sums[first + width] - sums[first]) / width)
        for first in range(len(points) - width + 1)
    ]
