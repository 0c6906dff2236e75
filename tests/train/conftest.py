"""Small runs: a model of 0.15 M parameters on text-like shards, one thread."""

from __future__ import annotations

import io
import json
import os
import signal
from pathlib import Path

import pytest

DATA = Path(__file__).parents[1] / "fixtures" / "imported-0.72"
BASE = DATA / "from_safetensors_qwen2_tied.apr"
VOCAB, SEQ = 512, 32


# Fields of a record that differ from run to run.
TIMES = ("wall_seconds", "tokens_per_sec", "slowest_rank_seconds")


def checkpoints(run):
    """Return the bytes of the epochs' checkpoints, by name."""
    return {path.name: path.read_bytes() for path in (run / "ckpt").glob("epoch-*.apr")}


def left_by(run):
    """Return everything a run leaves that its data and options decide: bytes, or records without times."""
    contents = {path.name: path.read_bytes() for path in run.glob("ckpt/*.apr")}
    for path in (*run.glob("ckpt/*.json"), run / "train.jsonl"):
        lines = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
        records = [json.loads(line) for line in lines]
        contents[path.name] = [{k: v for k, v in record.items() if k not in TIMES} for record in records]
    return contents


def records(run):
    """Return the records of `train.jsonl`."""
    return [json.loads(line) for line in (run / "train.jsonl").read_text().splitlines()]


def step_records(run):
    """Return the records of `train.jsonl` that are of steps."""
    return [record for record in records(run) if "train_loss" in record]


def gate(result, name):
    """Return the gate of that name."""
    return next(gate for gate in result.gates if gate.name == name)


def flipped(content):
    """Return the bytes with one bit changed in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Two threads wait for each other longer than either computes at this size."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write_shards(folder, tokens=8000, shards=1, seed=0, vocab_size=VOCAB, ids=None, **manifest):
    """Write a shard directory of learnable ids: each follows from the one before, with some noise."""
    import numpy as np

    if ids is None:
        noise = np.random.default_rng(seed)
        ids, last = np.empty(tokens, np.int64), 1
        for i in range(tokens):
            last = int(noise.integers(200)) if noise.random() < 0.2 else (last * 6 + 3) % 200
            ids[i] = last
    folder.mkdir()
    for i, part in enumerate(np.array_split(np.asarray(ids), shards)):
        (folder / f"shard-{i:05}.bin").write_bytes(part.astype("<u4").tobytes())
    facts = {
        "schema": "pretokenize-bin-v1",
        "shard_count": shards,
        "total_tokens": len(ids),
        "vocab_size": vocab_size,
    }
    (folder / "manifest.json").write_text(json.dumps(facts | manifest))
    return folder


@pytest.fixture
def make_shards(tmp_path):
    """Write a shard directory in the test's own directory."""
    return lambda name="shards", **values: write_shards(tmp_path / name, **values)


@pytest.fixture
def options(tmp_path, make_shards):
    """Return the options of a short run, changed by keywords."""

    def make(**changes):
        from apr.train import PretrainConfig

        values = {
            "init": BASE,
            "run_dir": tmp_path / "run",
            "num_steps": 12,
            "eval_every": 6,
            "batch_size": 4,
            "seq_length": SEQ,
            "val_tokens": 640,
            "lr": 2e-3,
            "device": "cpu",
        } | changes
        if "dataset" not in values:
            values["dataset"] = tmp_path / "shards" if (tmp_path / "shards").exists() else make_shards()
        return PretrainConfig(**values)

    return make


@pytest.fixture
def train():
    """Train without printing, and return the result."""

    def run(config):
        from apr.train import pretrain

        return pretrain(config, out=io.StringIO())

    return run


@pytest.fixture
def train_until(train):
    """Train until a signal arrives while a step or an evaluation is recorded, and return the result."""

    def run(config, step, number=signal.SIGTERM, field="train_loss"):
        from apr.train.record.metrics import MetricsFile

        write = MetricsFile.write

        def wrapped(self, record):
            write(self, record)
            if record["step"] == step and field in record:
                os.kill(os.getpid(), number)

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(MetricsFile, "write", wrapped)
            return train(config)

    return run


@pytest.fixture
def flags():
    """Return options as the flags of the command."""

    def make(config):
        arguments = []
        for name, value in config.to_yaml().items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                if value != type(config).__dataclass_fields__[name].default:
                    arguments.append(f"--{flag}" if value else f"--no-{flag}")
            elif value is not None:
                arguments += [f"--{flag}", str(value)]
        return arguments

    return make


@pytest.fixture
def short(options):
    """Return the options of a run of three steps and two epochs."""

    def make(**changes):
        return options(num_steps=3, eval_every=2, **changes)

    return make


@pytest.fixture
def refused(options, flags, capsys):
    """Run the command, and return its only line of error and its exit code."""

    def run(*more, **changes):
        from apr.cli import main

        code = main(["pretrain", *flags(options(**changes)), *more])
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        return lines[0], code

    return run
