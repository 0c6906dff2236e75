"""The closing table of a demo: what was made, where, how large, and what was measured."""

import json
import sys
from pathlib import Path


def main(out: Path, checkpoint: Path) -> None:
    """Print the table for a demo's folder, from its files alone."""
    result = json.loads((out / "run" / "result.json").read_text())
    train = json.loads((out / "train" / "manifest.json").read_text())
    held_out = json.loads((out / "held-out" / "manifest.json").read_text())
    losses = f"held-out loss {result['initial_val_loss']:.4f} -> {result['final_val_loss']:.4f} nats a token"
    speed = (
        f"{result['steps_completed']} steps on {result['device']}, {result['tokens_per_second']:.0f} tokens/s"
    )
    rows = [
        *((path, "the model that training starts from") for path in sorted(out.glob("*.apr"))),
        (out / "train", f"{train['total_tokens']:,} tokens of {train['total_documents']:,} files"),
        (out / "held-out", f"{held_out['total_tokens']:,} tokens of {held_out['total_documents']:,} files"),
        (checkpoint, f"the fine-tuned model: {losses}"),
        (out / "run" / "result.json", f"{result['status']}; {speed}"),
        (out / "run" / "train.jsonl", "loss, gradient norm, learning rate and speed of every step"),
        (out / "run" / "loss.png", "the picture"),
    ]
    width = max(len(str(path)) for path, _ in rows)
    for path, text in rows:
        print(f"{path!s:<{width}}  {_size(path):>9}  {text}")


def _size(path: Path) -> str:
    files = path.iterdir() if path.is_dir() else [path]
    return f"{sum(file.stat().st_size for file in files) / 1e6:,.1f} MB"


main(Path(sys.argv[1]), Path(sys.argv[2]))
