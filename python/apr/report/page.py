"""The page: curves and words put into one HTML file that needs nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.errors import UsageError, named_extras
from apr.files import write_atomically
from apr.report.curves import Chart, Curve, Points, chart, thinned
from apr.report.recorded import RecordedRun, number, read_run
from apr.report.words import compared, figures, sections, sentences, status
from apr.train.record.plot import FEW_STEPS, smoothed

if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike

_SMOOTHED_POINTS = 500


def write_report(run_dir: str | PathLike[str], out: str | PathLike[str] | None = None) -> Path:
    """Write a page about a run, whatever became of it, and return its path.

    The file needs no other file and no network. The same run directory gives the same bytes.

    Args:
        run_dir: the directory of the run.
        out: the file to write, or to replace; `report.html` in the run directory by default.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such directory.
        RefusedError: the directory is not that of a run, or one of its files is damaged.
        UsageError: the name of the file does not end in .html.
    """
    run = read_run(Path(run_dir))
    charts = _charts([run], "step")
    about = {"runs": [_about(run)], "sections": sections(run)}
    return _write(Path(run_dir) / "report.html" if out is None else Path(out), run.name, charts, about)


def write_comparison(
    first: str | PathLike[str], second: str | PathLike[str], out: str | PathLike[str] | None = None
) -> Path:
    """Write a page with the curves of two runs over each other and what differs between them.

    Args:
        first: the directory of run A.
        second: the directory of run B.
        out: the file to write, or to replace; `comparison.html` in the directory of run B by default.

    Raises:
        FileNotFoundError, NotADirectoryError: there is no such directory.
        RefusedError: a directory is not that of a run, or one of its files is damaged.
        UsageError: the name of the file does not end in .html.
    """
    a, b = runs = [read_run(Path(path)) for path in (first, second)]
    # Steps of another size are not the same amount of training.
    sizes = {run.config.tokens_per_step for run in runs if run.config is not None}
    charts = _charts(runs, "step" if len(sizes) <= 1 else "tokens_seen")
    about = {
        "runs": [_about(run) | {"letter": letter} for run, letter in zip(runs, "AB", strict=True)],
        "sections": compared(a, b),
    }
    target = Path(second) / "comparison.html" if out is None else Path(out)
    return _write(target, f"{a.name} and {b.name}", charts, about)


def _about(run: RecordedRun) -> dict[str, Any]:
    word, kind = status(run)
    return {
        "name": run.name,
        "status": word,
        "kind": kind,
        "sentences": sentences(run),
        "figures": figures(run),
    }


def _charts(runs: Sequence[RecordedRun], x: str) -> list[Chart]:
    losses, rates, speeds = [], [], []
    for run, letter in zip(runs, "AB", strict=False):
        of = f"{letter} " if len(runs) > 1 else ""
        kind = f"run-{letter.lower()}" if len(runs) > 1 else ""
        steps = thinned(run.steps, "train_loss", "tokens_per_sec")
        train = _points(steps, x, "train_loss")
        many = len(run.steps) > FEW_STEPS
        # Beside another run, a band of single steps would hide the other's; hovering still shows them.
        alone = len(runs) == 1
        losses.append(
            Curve(
                f"{of}train",
                f"train {kind} {'pale' if many else ''}",
                train,
                drawn=alone or not many,
                labeled=not many,
            )
        )
        if many:
            mean = smoothed([(at, y) for at, y in _points(run.steps, x, "train_loss") if y is not None])
            thin = max(1, len(mean) // _SMOOTHED_POINTS)
            losses.append(Curve(f"{of}train", f"train {kind}", mean[::-thin][::-1], hovers=False))
        held_out = _points(thinned(run.evaluations, "val_loss"), x, "val_loss")
        losses.append(Curve(f"{of}held-out", f"held-out {kind}", held_out, dots=True))
        rates.append(
            Curve("learning rate" if alone else letter, kind, _points(steps, x, "lr"), labeled=not alone)
        )
        speeds.append(
            Curve(
                "tokens/s" if alone else letter, kind, _points(steps, x, "tokens_per_sec"), labeled=not alone
            )
        )
    # All charts end where the last of the curves does, so that one place is one step in all of them.
    last = max((at for curve in losses for at, _ in curve.points), default=0) or 1
    axis = ("steps" if x == "step" else "training tokens", last)
    made = (
        chart("Loss", "nats per token", losses, axis, height=272, from_zero=False),
        chart("Learning rate", "", rates, axis, height=128, from_zero=True),
        chart("Throughput", "tokens per second", speeds, axis, height=128, from_zero=True),
    )
    return [one for one in made if one is not None]


def _points(records: Sequence[dict[str, Any]], x: str, y: str) -> Points:
    return [(number(record.get(x)) or 0.0, number(record.get(y))) for record in records]


def _write(out: Path, title: str, charts: list[Chart], about: dict[str, Any]) -> Path:
    if out.suffix.lower() not in {".html", ".htm"}:
        # A second run directory, or a model, must not be taken for the page and be replaced.
        raise UsageError(f"{out}: the page is an HTML file; pass a name that ends in .html", path=out)
    with named_extras():
        from jinja2 import Environment, FileSystemLoader, StrictUndefined

    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = pages.get_template("page.html").render(
        title=title, charts=charts, hover=[one.hover for one in charts], **about
    )
    # Names and texts in the files may have halves of surrogate pairs, which UTF-8 does not have.
    write_atomically(out, page.encode(errors="backslashreplace"))
    return out
