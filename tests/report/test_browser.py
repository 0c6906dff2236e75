"""The page in a browser: curves are painted, and hovering gives the values of `train.jsonl`.

Chromium is a package of the system (Debian: chromium). Without it these tests are skipped.
"""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from tests.report.conftest import records

from apr.report import write_comparison, write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: chromium)")

# Points at each of the places, in CSS pixels as a mouse does, and keeps what the page then says.
PROBE = """
<pre id="probe"></pre>
<script>
const places = %s, said = [];
for (const [chart, x] of places) {
  const svg = document.getElementById(`chart-${chart}`), box = svg.getBoundingClientRect();
  const clientX = box.left + x / charts[chart].last * box.width;
  svg.dispatchEvent(new PointerEvent("pointermove", {clientX, clientY: box.top + 20, bubbles: true}));
  said.push([0, 1, 2].map(n => document.getElementById(`values-${n}`).textContent));
}
const svg = document.getElementById("chart-0");
svg.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft", bubbles: true}));
said.push([document.getElementById("values-0").textContent]);
const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
document.getElementById("probe").textContent = JSON.stringify({said, wide});
</script>
"""


def browser(page, *flags, width=1000):
    """Open a page in a headless browser, and return what it prints."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run"]
    command += [f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},1000", *flags]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    return done.stdout


def probed(page, places, **options):
    """Return what the page says at each (chart, x), and whether it is wider than the window."""
    page.write_text(page.read_text().replace("</body>", PROBE % json.dumps(places) + "</body>"))
    dom = browser(page, "--dump-dom", **options)
    return json.loads(html.unescape(re.search(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)[1]))


def spoken(label, text):
    """Return the value and the place that a line has for a curve."""
    value, at = re.search(rf"{label} ([\d.,e+-]+) at step ([\d,]+)", text).groups()
    return float(value.replace(",", "")), int(at.replace(",", ""))


def test_hovering_gives_the_values_of_the_records(finished, tmp_path):
    steps = {step["step"]: step for step in records(finished, "train_loss")}
    losses = {record["step"]: record["val_loss"] for record in records(finished, "val_loss")}
    places = [(0, 0), (0, 17), (1, 6), (2, 31), (0, 39)]
    found = probed(write_report(finished, tmp_path / "page.html"), places)
    for (_, step), (loss, rate, speed) in zip(places, found["said"][:-1], strict=True):
        assert spoken("train", loss) == (pytest.approx(steps[step]["train_loss"], rel=1e-4), step)
        nearest = round(step / 10) * 10
        assert spoken("held-out", loss) == (pytest.approx(losses[nearest], rel=1e-4), nearest)
        assert spoken("learning rate", rate) == (pytest.approx(steps[step]["lr"], rel=1e-3), step)
        assert spoken("tokens/s", speed) == (pytest.approx(steps[step]["tokens_per_sec"], rel=1e-4), step)
    assert spoken("train", *found["said"][-1]) == (pytest.approx(steps[38]["train_loss"], rel=1e-4), 38)


def test_a_comparison_has_the_values_of_both_runs_and_fits_a_phone(finished, trained, tmp_path):
    page = write_comparison(finished, trained, tmp_path / "page.html")
    found = probed(page, [(0, 12)], width=500)
    loss = records(trained, "train_loss")[12]["train_loss"]
    for run in "AB":
        assert spoken(f"{run} train", found["said"][0][0]) == (pytest.approx(loss, rel=1e-4), 12)
    assert not found["wide"]


@pytest.mark.parametrize("dark", [False, True])
def test_curves_are_painted_on_light_and_on_dark_paper(finished, tmp_path, dark):
    from matplotlib.image import imread

    page, picture = write_report(finished, tmp_path / "page.html"), tmp_path / "page.png"
    scheme = [f"--blink-settings=preferredColorScheme={0 if dark else 1}"]
    browser(page, *scheme, f"--screenshot={picture}")
    pixels = (imread(picture)[..., :3] * 255).round().astype(int)
    paper, curve = ((21, 24, 27), (240, 132, 111)) if dark else ((255, 255, 255), (194, 65, 45))
    assert tuple(pixels[5, 5]) == paper
    # The held-out curve: hundreds of pixels from the left to the right.
    columns = np.flatnonzero((pixels == curve).all(-1).any(0))
    assert len(columns) > 100
    assert columns.max() - columns.min() > 500
