"""Run fuzz targets for FUZZ_SECONDS each (default 60), print their coverage, and stop at the first failure.

    python rust/fuzz.py [TARGET ...]

Without arguments, all targets run. Inputs that increased the coverage are kept in the corpus/ of their
crate, and the next run starts with them.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIXTURES = HERE.parent / "tests" / "fixtures"
# Files by other writers of the format, as seeds for the target whose input is a whole file.
SEEDS = {"open": ["aprender-0.72", "aprender-0.2x"]}
# Bytes of the longest input. Longer inputs are slower and do not increase the coverage. The seeds of
# `open` have up to 9,000 bytes. Each byte of `split` may become a hundred of text.
MAX_LENGTHS = {"open": 16 << 10, "split": 256}
DEFAULT_MAX_LENGTH = 4 << 10


def run(source: Path, seconds: int) -> tuple[int, int, int]:
    """Run one target. Return the number of executions, edges and features."""
    target, crate = source.stem, source.parents[2]
    corpus = crate / "fuzz" / "corpus" / target
    corpus.mkdir(parents=True, exist_ok=True)
    # No sanitizer: the targets run no unsafe code, and without one they run three times as fast.
    command = ["cargo", "fuzz", "run", "--sanitizer", "none", target, str(corpus)]
    command += [str(FIXTURES / seeds) for seeds in SEEDS.get(target, [])]
    max_length = MAX_LENGTHS.get(target, DEFAULT_MAX_LENGTH)
    command += ["--", f"-max_total_time={seconds}", f"-max_len={max_length}", "-print_final_stats=1"]
    command += ["-entropic_scale_per_exec_time=1"]  # slow inputs are mutated less often
    # cargo-fuzz passes unstable flags to the compiler, which stable toolchains refuse without this.
    environment = os.environ | {"RUSTC_BOOTSTRAP": "1"}
    completed = subprocess.run(
        command, cwd=crate, env=environment, stderr=subprocess.PIPE, text=True, check=False
    )
    coverage = re.findall(r"^#\d+\s.*cov: (\d+) ft: (\d+)", completed.stderr, re.MULTILINE)
    executions = re.search(r"number_of_executed_units: (\d+)", completed.stderr)
    if completed.returncode or not coverage or not executions:
        sys.exit(
            f"{completed.stderr[-8000:]}\n{target}: the target failed or did not run; see its output above"
        )
    edges, features = map(int, coverage[-1])
    return int(executions[1]), edges, features


def main() -> None:
    """Run the targets and print a row for each one."""
    if subprocess.run(["cargo", "fuzz", "--version"], capture_output=True, check=False).returncode:
        sys.exit("cargo-fuzz is not installed; run: cargo install cargo-fuzz")
    seconds = int(os.environ.get("FUZZ_SECONDS", "60"))
    sources = {path.stem: path for path in HERE.glob("*/fuzz/fuzz_targets/*.rs")}
    targets = sys.argv[1:] or sorted(sources)
    print(f"{'target':<12}{'executions':>12}{'per second':>11}{'edges':>8}{'features':>10}", flush=True)
    total = 0
    for target in targets:
        executions, edges, features = run(sources[target], seconds)
        total += executions
        print(
            f"{target:<12}{executions:>12,}{executions // seconds:>11,}{edges:>8,}{features:>10,}", flush=True
        )
    print(f"{'all':<12}{total:>12,}, no failures")


main()
