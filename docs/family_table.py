"""Run the tests that prove what works for each family, and write their results to docs/families.md."""

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

from apr.model.families import FAMILIES

PAGE = Path(__file__).parent / "families.md"
START, END = "<!-- the table below is written by docs/family_table.py -->\n", "<!-- end of the table -->\n"
# A column of the table, and the test that proves it, with the family as its parameter.
PROOFS = {
    "import and export": (
        "tests/model/test_families.py",
        "test_a_directory_through_apr_and_back_keeps_every_bit",
    ),
    "train": ("tests/model/test_families.py", "test_twenty_steps_equal_a_plain_loop_over_transformers_model"),
    "generate": ("tests/model/test_generate.py", "test_greedy_tokens_are_those_of_transformers"),
    "GGUF in": ("tests/convert/test_to_gguf.py", "test_the_configuration_comes_back"),
    "GGUF out": ("tests/convert/test_to_gguf.py", "test_llama_cpp_predicts_the_same_tokens"),
}


def results() -> dict[tuple[str, str], list[str]]:
    """Run the tests. Return the outcomes for each column and family."""
    outcomes: dict[tuple[str, str], list[str]] = {}
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        tests = [f"{path}::{name}" for path, name in PROOFS.values()]
        command = [sys.executable, "-m", "pytest", "-q", "-n", "auto", f"--junitxml={report}", *tests]
        subprocess.run(command, cwd=PAGE.parents[1], check=False)
        columns = {name: column for column, (_, name) in PROOFS.items()}
        for case in ET.parse(report).iter("testcase"):  # noqa: S314 (pytest wrote it)
            name, _, parameter = case.attrib["name"].partition("[")
            # One family may have several configurations: "llama", "llama, tied".
            family = parameter.removesuffix("]").partition(",")[0]
            failed = case.find("failure") is not None or case.find("error") is not None
            outcome = "no" if failed else "not run" if case.find("skipped") is not None else "yes"
            outcomes.setdefault((columns[name], family), []).append(outcome)
    return outcomes


def table(outcomes: dict[tuple[str, str], list[str]]) -> str:
    """Return the table: a row for each family, with the worst outcome of its configurations."""
    lines = [f"| family | {' | '.join(PROOFS)} |", "|---" * (len(PROOFS) + 1) + "|"]
    for family in FAMILIES:
        cells = []
        for column in PROOFS:
            seen = outcomes.get((column, family), ["no"])
            cells.append(next((outcome for outcome in ("no", "not run") if outcome in seen), "yes"))
        lines.append(f"| {family} | {' | '.join(cells)} |")
    lines += ["", "The tests behind the columns:", ""]
    lines += [f"- {column}: `{path}::{name}`" for column, (path, name) in PROOFS.items()]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Replace the table on the page."""
    text = PAGE.read_text()
    before, after = text.split(START)[0], text.split(END)[1]
    PAGE.write_text(before + START + table(results()) + END + after)


if __name__ == "__main__":
    main()
