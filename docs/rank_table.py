"""Run the tests of several ranks, and write what they measured to docs/several-gpus.md."""

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

PAGE = Path(__file__).parent / "several-gpus.md"
START, END = "<!-- the table below is written by docs/rank_table.py -->\n", "<!-- end of the table -->\n"
TESTS = [f"tests/train/parallel/test_{name}.py" for name in ("world", "tree", "shard")]


def cells() -> dict[tuple[str, str, str], float]:
    """Run the tests. Return the largest difference from one process, by engine, precision and ranks."""
    found: dict[tuple[str, str, str], float] = {}
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *TESTS]
        subprocess.run(command, cwd=PAGE.parents[1], check=True)
        for noted in ET.parse(report).iter("property"):  # noqa: S314 (pytest wrote it)
            ranks, engine, precision, difference = noted.attrib["value"].split("|")
            key = engine, precision, ranks
            found[key] = max(found.get(key, 0.0), float(difference))
    return found


def table(found: dict[tuple[str, str, str], float]) -> str:
    """Return the table: a row for each engine, precision and number of ranks."""
    lines = ["| engine | precision | ranks | against one process |", "|---|---|---|---|"]
    for (engine, precision, ranks), difference in sorted(found.items()):
        cell = "same bits" if difference == 0 else f"{difference:.1e}"
        lines.append(f"| {engine} | {precision} | {ranks} | {cell} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replace the table on the page."""
    text = PAGE.read_text()
    before, after = text.split(START)[0], text.split(END)[1]
    PAGE.write_text(before + START + table(cells()) + END + after)


if __name__ == "__main__":
    main()
