"""`--sample-prompt`: a sample at each evaluation, and the same training."""

import json
from dataclasses import replace

import pytest
from tests.train.conftest import BASE, checkpoints

from apr.errors import AprError, RefusedError


def samples(run):
    return [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]


def test_each_evaluation_has_a_sample_and_training_is_the_same(options, train, tmp_path):
    import apr
    from apr.data.prompt import PromptTokenizer
    from apr.model import Decoder

    assert train(options(run_dir=tmp_path / "plain")).exit_code == 0
    result = train(options(sample_prompt="a b"))
    assert result.exit_code == 0
    assert [sample["step"] for sample in samples(tmp_path / "run")] == [0, 6, 12]
    assert checkpoints(tmp_path / "run") == checkpoints(tmp_path / "plain")
    first = samples(tmp_path / "run")[0]
    tokenizer = PromptTokenizer(BASE, apr.load(BASE).metadata)
    (expected,) = apr.generate(
        Decoder.from_apr(BASE), tokenizer.encode("a b"), max_tokens=64, stop_ids=tokenizer.stop_ids()
    )
    assert first["ids"] == expected.ids
    assert first["prompt"] == "a b"
    assert "sample: " in (tmp_path / "run" / "run.log").read_text()


def test_a_resumed_run_has_each_sample_once(options, train, train_until, tmp_path):
    config = options(sample_prompt="a b")
    assert train_until(config, 8).status == "INTERRUPTED"
    assert train(replace(config, resume=True)).exit_code == 0
    assert [sample["step"] for sample in samples(tmp_path / "run")] == [0, 6, 12]


@pytest.mark.parametrize(
    ("changes", "error", "word"),
    [
        ({"sample_prompt": "a " * 5000}, RefusedError, "positions"),
        ({"sample_prompt": ""}, RefusedError, "empty"),
        ({"sample_prompt": "a", "mode": "from-scratch", "init": None, "arch": "qwen2-4m"}, AprError,
         "--sample-prompt: the model has no tokenizer"),
    ],
)  # fmt: skip
def test_a_prompt_that_cannot_be_continued_is_refused_before_training(
    options, train, tmp_path, changes, error, word
):
    with pytest.raises(error, match=word):
        train(options(**changes))
    assert not (tmp_path / "run").exists()
