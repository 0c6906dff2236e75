"""Print the closing table of a demo, and one sentence about what the model learned."""

import json
import math
import sys
from pathlib import Path


def main(out: Path, checkpoint: Path) -> None:
    """Read the figures from the files of the demo, and print them."""
    result = json.loads((out / "run" / "result.json").read_text())
    train = json.loads((out / "train" / "manifest.json").read_text())
    held_out = json.loads((out / "held-out" / "manifest.json").read_text())
    before, after = result["initial_val_loss"], result["final_val_loss"]
    speed = (
        f"{result['steps_completed']} steps on {result['device']}, {result['tokens_per_second']:.0f} tokens/s"
    )
    rows = [
        *((path, "the model that training starts from") for path in sorted(out.glob("*.apr"))),
        (out / "train", f"{train['total_tokens']:,} tokens of {train['total_documents']:,} files"),
        (out / "held-out", f"{held_out['total_tokens']:,} tokens of {held_out['total_documents']:,} files"),
        (checkpoint, f"the fine-tuned model: held-out loss {before:.4f} -> {after:.4f} nats per token"),
        (out / "run" / "result.json", f"{result['status']}; {speed}"),
        (out / "run" / "train.jsonl", "loss, gradient norm, learning rate and speed of every step"),
        (out / "run" / "loss.png", "the picture"),
    ]
    width = max(len(str(path)) for path, _ in rows)
    for path, text in rows:
        print(f"{path!s:<{width}}  {_size(path):>9}  {text}")
    print(f"\n{_lesson(result['steps_completed'], before, after)}")


def _lesson(steps: int, before: float, after: float) -> str:
    """Return in plain words what the run did for text that it never saw."""
    if after >= before:
        return f"In {steps} steps the model learned nothing: held-out loss {before:.4f} to {after:.4f}."
    # exp(-loss) is the geometric mean of the probabilities that the model gives to the tokens that come next.
    chances = [f"{100 * math.exp(-loss):.1f} %" for loss in (before, after)]
    return (
        f"In {steps} steps the model got better at Python code that it never saw: the probability of the\n"
        f"next token rose from {chances[0]} to {chances[1]} (held-out loss {before:.4f} to {after:.4f})."
    )


def _size(path: Path) -> str:
    files = path.iterdir() if path.is_dir() else [path]
    return f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"


main(Path(sys.argv[1]), Path(sys.argv[2]))
