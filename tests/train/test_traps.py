"""The traps that others fell into: each has a test that fails on it, and `docs/training.md` says which."""

import ast
import re
from pathlib import Path

import pytest
from tests.train.conftest import BASE

ROOT = Path(__file__).parents[2]
TABLE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


def test_each_trap_names_tests_that_exist():
    text = (ROOT / "docs" / "training.md").read_text()
    rows = [line for line in text.splitlines() if re.match(r"\| \d+ \|", line)]
    assert [int(row.split("|")[1]) for row in rows] == list(range(1, 15))
    for row in rows:
        named = TABLE.findall(row)
        assert named or "benches/" in row, row
        for path, name in named:
            tree = ast.parse((ROOT / path).read_text())
            assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, name


def test_there_is_no_scripted_loss_to_train_on(options, flags, capsys):
    from apr.cli import main

    for flag in ("--synthetic", "--synthetic=true", "--no-synthetic"):
        assert main(["pretrain", *flags(options()), flag]) == 2
        assert "synthetic" in capsys.readouterr().err


def test_losses_are_those_of_the_ids_on_disk(options, train, make_shards, tmp_path):
    """Ids without any order cannot be learned: the loss stays near what their number makes it."""
    import math

    import numpy as np

    ids = np.random.default_rng(1).integers(0, 512, 8000)
    noise = train(options(dataset=make_shards("noise", ids=ids), run_dir=tmp_path / "noise"))
    learned = train(options())
    assert noise.final_val_loss > math.log(512) - 0.1
    assert learned.final_val_loss < noise.final_val_loss - 0.2


@pytest.mark.parametrize("rope_type", [0, 2])
def test_rope_type_is_not_believed(tmp_path, rope_type):
    """The importer writes 0, adjacent pairs, over weights whose halves are paired: the names decide."""
    import torch

    import apr
    from apr.model import Decoder

    apr.stamp(BASE, {"rope_type": rope_type}, tmp_path / "stamped.apr")
    ids = torch.arange(20)[None]
    assert torch.equal(Decoder.from_apr(tmp_path / "stamped.apr")(ids), Decoder.from_apr(BASE)(ids))


def test_an_untied_checkpoint_has_its_head_and_starts_another_run(options, train, data, tmp_path):
    import apr
    from apr.model import ModelConfig

    base = data / "imported-0.72" / "from_safetensors_llama_untied.apr"
    first = options(init=base, num_steps=1)
    made = first.run_dir / train(first).last_checkpoint
    with apr.load(made) as file, apr.load(base) as source:
        assert file.info("lm_head.weight").shape == source.info("lm_head.weight").shape
        assert ModelConfig.from_metadata(file.metadata) == ModelConfig.from_metadata(
            source.metadata, head_present=True
        )
    second = train(options(init=made, mode="from-init", num_steps=1, run_dir=tmp_path / "second"))
    assert second.steps_completed == 1
