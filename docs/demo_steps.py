"""Print how many steps, and how many held-out tokens, the demo has time for on this machine."""

import json
import sys
from pathlib import Path

# `make demo` promises five minutes after set-up. Loading, the last checks, the picture and the continuations
# take about 55 s.
DEMO_SECONDS = 300
RESERVED_SECONDS = 55
# Three evaluations remain: before the first step, after the last, and of the file on its own.
EVALUATIONS = 3
EVALUATION_SECONDS = 15
SEQ_LENGTH = 512
# Fewer steps than this leave nothing to see; then the demo takes longer than it promises.
MIN_STEPS = 8
MAX_STEPS = 500


def main(plan: dict, elapsed: float) -> None:
    """Print `STEPS VAL_TOKENS` from the speeds that `apr pretrain --plan` measured."""
    share = min(1.0, EVALUATION_SECONDS / plan["seconds_per_evaluation"])
    sequences = max(2, int(share * plan["val_tokens"] / SEQ_LENGTH))
    evaluation = plan["seconds_per_evaluation"] * sequences * SEQ_LENGTH / plan["val_tokens"]
    seconds = DEMO_SECONDS - RESERVED_SECONDS - elapsed - EVALUATIONS * evaluation
    steps = int((seconds - 2 * plan["seconds_per_checkpoint"]) / plan["seconds_per_step"])
    if steps < MIN_STEPS:
        late = (MIN_STEPS - steps) * plan["seconds_per_step"]
        print(f"This machine is slow: the demo takes about {late / 60:.0f} minutes longer.", file=sys.stderr)
    print(max(MIN_STEPS, min(MAX_STEPS, steps)), sequences * SEQ_LENGTH)


main(json.loads(Path(sys.argv[1]).read_text()), float(sys.argv[2]))
