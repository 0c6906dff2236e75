"""Run the scripts of this folder under valgrind; fail on any error that involves `apr._core`.

    python tests/sanitize/valgrind.py

CPython and NumPy have errors of their own under valgrind, such as reads of a few bytes beyond a string. They
are not ours to fix, so an error counts only if a frame of one of its stacks lies in the compiled module: the
stack of the access itself, or that of the allocation or the release of the memory.
"""

import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

FOLDER = Path(__file__).parent
MODULE = "_core.abi3.so"


def errors_in_the_module(report: Path) -> list[str]:
    """Each error of a valgrind report in XML that has a frame in the compiled module, as text."""
    errors = []
    for error in ET.parse(report).iter("error"):
        if (error.findtext("kind") or "").startswith("Leak_"):
            continue  # reported with XML whatever is asked for; CPython keeps its types until the end
        stacks = [[frame_text(frame) for frame in stack.iter("frame")] for stack in error.iter("stack")]
        if any(MODULE in frame for stack in stacks for frame in stack):
            what = error.findtext("what") or error.findtext("xwhat/text") or ""
            lines = [f"{error.findtext('kind')}: {what}", *("\n".join(stack) for stack in stacks)]
            errors.append("\n  then\n".join(lines))
    return errors


def frame_text(frame: ET.Element) -> str:
    """A frame as a line: function, file and line where they are known, object."""
    function, line = frame.findtext("fn") or frame.findtext("ip"), frame.findtext("line")
    place = f"{frame.findtext('file')}:{line}" if line else frame.findtext("obj")
    return f"    {function} ({place}) {Path(frame.findtext('obj') or '').name}"


def main() -> None:
    """Run all scripts in one process: starting Python and NumPy takes valgrind longer than the scripts do."""
    if sys.argv[1:] == ["scripts"]:
        for script in sorted(FOLDER.glob("*.py")):
            if script != Path(__file__):
                print(f"valgrind: {script.name}", flush=True)
                runpy.run_path(str(script))
        return
    if shutil.which("valgrind") is None:
        sys.exit("valgrind is not installed")
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        command = ["valgrind", "--quiet", "--leak-check=no", "--xml=yes", f"--xml-file={report}"]
        command += [sys.executable, __file__, "scripts"]
        # Python's own allocator reuses memory without valgrind's knowledge.
        done = subprocess.run(command, env=os.environ | {"PYTHONMALLOC": "malloc"}, check=False)
        errors = errors_in_the_module(report) if report.exists() else []
    for error in errors:
        print(error, file=sys.stderr)
    if done.returncode or errors:
        sys.exit(f"valgrind: {len(errors)} errors in {MODULE}; the scripts ended with {done.returncode}")
    print(f"valgrind: no errors in {MODULE}")


if __name__ == "__main__":
    main()
