"""The programs in examples/ run."""

import subprocess
import sys
from pathlib import Path

from apr.convert import convert
from apr.data import EncodeOptions, encode_corpus

EXAMPLE = Path(__file__).parents[1] / "examples" / "print_samples.py"


def test_print_samples_continues_the_prompt_at_each_evaluation(data, tmp_path):
    convert(data / "imported-0.72" / "hf_qwen2_tied", tmp_path / "m.apr")
    shards = tmp_path / "shards"
    text = str(data.parents[1] / "docs" / "training.md")
    encode_corpus(EncodeOptions(corpus=text, tokenizer=tmp_path / "m.apr", output=shards))
    words = [tmp_path / "m.apr", shards, tmp_path / "run", "The sea is"]
    flags = ["--num-steps", "4", "--eval-every", "2", "--seq-length", "16", "--batch-size", "2"]
    done = subprocess.run(
        [sys.executable, EXAMPLE, *words, *flags], capture_output=True, text=True, check=True, timeout=120
    )
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines if "held-out" in line and line.startswith("step ")] == [
        "step 0",
        "step 2",
        "step 4",
    ]
    assert len([line for line in lines if line.startswith("  The sea is")]) == 3
