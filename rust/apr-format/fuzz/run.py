"""Runs each fuzz target for FUZZ_SECONDS (default 60) and prints what it reached; ends at a finding.

Arguments choose targets; without any, all are run. What was found interesting is kept in corpus/ and the
next run goes on from there.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "tests" / "fixtures"
# Files of the ecosystem's own writers, for the targets that take files as they are.
SEEDS = {"open": ["aprender-0.72", "aprender-0.2x"]}
# Bytes of the longest input: larger ones are slower and reach nothing more. Some golden files have 9000.
LONGEST = {"open": 16 << 10}
LONGEST_OF_OTHERS = 4 << 10


def run(target: str, seconds: int) -> tuple[int, int, int]:
    """Executions, edges and features."""
    corpus = HERE / "corpus" / target
    corpus.mkdir(parents=True, exist_ok=True)
    # No sanitizer: the targets run no unsafe code, and without one they run three times as often.
    command = ["cargo", "fuzz", "run", "--sanitizer", "none", target, str(corpus)]
    command += [str(DATA / seeds) for seeds in SEEDS.get(target, [])]
    longest = LONGEST.get(target, LONGEST_OF_OTHERS)
    command += ["--", f"-max_total_time={seconds}", f"-max_len={longest}", "-print_final_stats=1"]
    command += ["-entropic_scale_per_exec_time=1"]  # what takes long is mutated less often
    # cargo-fuzz needs unstable flags of the compiler, whichever toolchain is the default one.
    environment = os.environ | {"RUSTC_BOOTSTRAP": "1"}
    done = subprocess.run(
        command, cwd=HERE.parent, env=environment, stderr=subprocess.PIPE, text=True, check=False
    )
    reached = re.findall(r"^#\d+\s.*cov: (\d+) ft: (\d+)", done.stderr, re.MULTILINE)
    executions = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    if done.returncode or not reached or not executions:
        sys.exit(f"{done.stderr[-8000:]}\n{target}: a finding, or no run at all (see above)")
    edges, features = map(int, reached[-1])
    return int(executions[1]), edges, features


def main() -> None:
    """Run the targets and print a row for each."""
    seconds = int(os.environ.get("FUZZ_SECONDS", "60"))
    targets = sys.argv[1:] or sorted(path.stem for path in (HERE / "fuzz_targets").glob("*.rs"))
    print(f"{'target':<12}{'executions':>12}{'a second':>10}{'edges':>8}{'features':>10}", flush=True)
    total = 0
    for target in targets:
        executions, edges, features = run(target, seconds)
        total += executions
        print(
            f"{target:<12}{executions:>12,}{executions // seconds:>10,}{edges:>8,}{features:>10,}", flush=True
        )
    print(f"{'all':<12}{total:>12,}, no finding")


main()
