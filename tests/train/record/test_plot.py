"""The picture of a run's losses."""

import pytest


def test_the_picture_names_what_it_shows(tmp_path):
    """It has losses, target, best point and title; a run without an evaluation has a picture too."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from apr.train.record.plot import plot_losses

    drawn, original = [], Figure.savefig
    records = [{"tokens_seen": 64 * n, "train_loss": 5 - n / 50} for n in range(120)]
    records += [{"tokens_seen": 64 * n, "val_loss": loss} for n, loss in ((0, 5.2), (60, 3.9), (119, 4.1))]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            Figure, "savefig", lambda self, *a, **k: (drawn.append(self), original(self, *a, **k))
        )
        plot_losses(records, tmp_path / "a.png", target=2.2, title="m on $_$ d")
        plot_losses(records[:1], tmp_path / "b.png", target=2.2, title="m on d")
    axes = drawn[0].axes[0]
    assert isinstance(axes, Axes)
    assert axes.get_title(loc="left") == "m on $_$ d"  # a name may hold what sets formulas
    (legend,) = drawn[0].legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert labels == [
        "train, each step",
        "train, smoothed",
        "held-out",
        "best held-out: 3.9000",
        "target: 2.2",
    ]
    smooth = axes.get_lines()[1]
    assert smooth.get_ydata()[0] == pytest.approx(5 - 3.5 / 50)  # of the first eight
    assert smooth.get_xdata()[0] == 64 * 4
    assert not legend.get_window_extent().overlaps(axes.get_window_extent())
