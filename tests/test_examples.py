"""The programs in examples/ run."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.data.directories import TOKENIZER, read_json
from tests.killing import KILLED

from apr.convert import convert
from apr.data import EncodeOptions, encode_corpus

EXAMPLES = Path(__file__).parents[1] / "examples"
EXAMPLE = EXAMPLES / "print_samples.py"


def needs(module):
    missing = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(missing, reason=f"{module} is not installed: uv pip install --group examples")


def contents(directory):
    """A shard directory without what may differ between encodings."""
    manifest = read_json(directory)
    kept = {key: value for key, value in manifest.items() if key not in ("elapsed_seconds", "num_workers")}
    return kept, {path.name: path.read_bytes() for path in directory.glob("*.bin")}


def write_lines(path, field, count):
    path.write_text(
        "".join(
            json.dumps({field: f"def f{n}(x):\n    return x * {n}  # {'word ' * (n % 40)}\n"}) + "\n"
            for n in range(count)
        )
    )


def encoded(corpus, output, **options):
    encode_corpus(EncodeOptions(corpus=(str(corpus),), tokenizer=TOKENIZER, output=output, **options))
    return contents(output)


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


@needs("datatrove")
@pytest.mark.parametrize("step", [5, 14, 40])
def test_a_killed_datatrove_task_loses_at_most_its_open_shard(step, tmp_path):
    corpus, output = tmp_path / "corpus", tmp_path / "shards"
    corpus.mkdir()
    for n in range(3):
        write_lines(corpus / f"{n:05}.jsonl", "text", 300)
    words = [corpus, TOKENIZER, output, "--tasks", "3", "--shard-tokens", "3000"]
    command = [str(EXAMPLES / "encode_datatrove.py"), *map(str, words)]
    # The same program, killed at the n-th step of writing.
    program = KILLED[: KILLED.index("from apr.cli import main")].replace("sys.argv[1]", str(step))
    program += "import runpy\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    with subprocess.Popen([sys.executable, "-c", program, *command], start_new_session=True) as killed:
        assert killed.wait() == -signal.SIGKILL
        os.killpg(killed.pid, signal.SIGKILL)  # a process of datatrove's own outlives the one that started it
    times = {}
    for part in tmp_path.glob("shards.part-*"):
        if (part / "manifest.json").exists():
            rows = read_json(part)["shards"]
            assert len(list(part.glob("*.bin"))) - len(rows) in (0, 1)
            times |= {part / row["name"]: (part / row["name"]).stat().st_mtime_ns for row in rows}
    subprocess.run([sys.executable, *command], capture_output=True, check=True)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    whole = encoded(corpus, tmp_path / "whole", shard_tokens=3000, content_field="text")
    assert contents(output) == (whole[0] | {"corpus_roots": [str(corpus)]}, whole[1])


@pytest.mark.long
@needs("ray")
def test_a_killed_ray_worker_loses_at_most_its_open_shard(tmp_path):
    corpus, output = tmp_path / "corpus.jsonl", tmp_path / "shards"
    write_lines(corpus, "content", 200_000)
    words = [corpus, TOKENIZER, output, "--parts", "2", "--shard-tokens", "50000"]
    environment = os.environ | {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0"}
    times = {}
    with subprocess.Popen(
        [sys.executable, EXAMPLES / "encode_ray.py", *map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            started = re.search(r"part (\d)/2: process (\d+)", line)
            if started is None or times:
                continue
            part = tmp_path / f"shards.part-{started[1]}"
            while len(list(part.glob("*.bin"))) < 3 and process.poll() is None:
                time.sleep(0.005)  # the worker is another process, and nothing tells when it has a shard
            os.kill(int(started[2]), signal.SIGKILL)
            rows = read_json(part)["shards"]
            assert not read_json(part)["complete"]
            times = {part / row["name"]: (part / row["name"]).stat().st_mtime_ns for row in rows}
    assert process.returncode == 0, "".join(lines)
    # Two workers and the one that took the place of the killed one.
    assert len([line for line in lines if ": process " in line]) == 3
    assert len(times) >= 2
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert contents(output) == encoded(corpus, tmp_path / "whole", shard_tokens=50_000)
