"""Each check of the fine-tuning contract passes for a sound run and fails for the run that it forbids."""

import math
from pathlib import Path

import pytest

from apr.contracts import check

LN_VOCAB = math.log(512)
CONTRACT = Path(__file__).parents[2] / "contracts" / "apr-pretrain-init-finetune-v1.yaml"


def outcomes(run):
    verdict = check(CONTRACT, run)
    return verdict, {d.id[-3:]: d.outcome for d in verdict.decisions}


def test_a_sound_run_passes_all_six_checks(make_run):
    verdict, found = outcomes(make_run())
    assert verdict.ok
    assert [found[k].passed for k in sorted(found)] == [True] * 6
    assert verdict.conditions == {"steps": 500, "device": "cuda:0"}


def test_exit_code_other_than_zero_fails(make_run):
    verdict, found = outcomes(make_run(exit_code=5))
    assert not verdict.ok
    assert found["001"].passed is False
    assert found["001"].measured == 5


def test_wall_seconds_over_an_hour_fail_but_do_not_block(make_run):
    verdict, found = outcomes(make_run(wall_seconds=3600.5))
    assert found["002"].passed is False
    assert verdict.ok


@pytest.mark.parametrize(("share", "passed"), [(0.69, True), (0.71, False), (float("nan"), False)])
def test_step0_loss_must_be_at_most_seven_tenths_of_ln_v(make_run, share, passed):
    verdict, found = outcomes(make_run(step0_train_loss=share * LN_VOCAB))
    assert found["003"].passed is passed
    assert verdict.ok is passed


def test_step0_loss_that_differs_from_the_step_log_fails(make_run):
    _, found = outcomes(make_run(first_loss=6.2))
    assert found["003"].passed is False
    assert "6.2" in found["003"].detail


@pytest.mark.parametrize("damage", ["flip", "magic", "gone", "no footer"])
def test_a_damaged_checkpoint_fails(make_run, damage):
    run = make_run()
    path = run / "ckpt" / "epoch-000.apr"
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-20] ^= 1
    elif damage == "magic":
        content[:4] = b"GGUF"
    elif damage == "no footer":
        del content[-4:]
    path.write_bytes(content)
    if damage == "gone":
        path.unlink()
    verdict, found = outcomes(run)
    assert found["004"].passed is False
    assert not verdict.ok


@pytest.mark.parametrize(("share", "passed"), [(0.78, True), (0.79, False), (float("inf"), False)])
def test_final_val_loss_must_be_below_its_share_of_ln_v(make_run, share, passed):
    verdict, found = outcomes(make_run(final_val_loss=share * LN_VOCAB))
    assert found["005"].passed is passed
    assert verdict.ok is passed


def test_cuda_errors_in_the_log_fail_but_do_not_block(make_run):
    verdict, found = outcomes(make_run(log="step 1\ntorch.OutOfMemoryError: CUDA out of memory. Tried…\n"))
    assert found["006"].passed is False
    assert "out of memory" in found["006"].detail
    assert verdict.ok


def test_cuda_errors_on_a_cpu_are_not_applicable_and_never_a_pass(make_run):
    verdict, found = outcomes(make_run(device="cpu", steps_completed=40))
    assert found["006"].passed is None
    assert verdict.ok
    assert verdict.conditions == {"steps": "40 (written for 500)", "device": "cpu (written for cuda)"}


@pytest.mark.parametrize("name", ["result.json", "train.jsonl", "run.log"])
def test_a_missing_artifact_is_a_failure(make_run, name):
    run = make_run()
    (run / name).unlink()
    _, found = outcomes(run)
    failed = {key for key, outcome in found.items() if outcome.passed is False}
    expected = {"result.json": set("123456"), "train.jsonl": {"3"}, "run.log": {"6"}}[name]
    assert {key[-1] for key in failed} == expected


@pytest.mark.parametrize(
    "key", ["exit_code", "wall_seconds", "step0_train_loss", "final_val_loss", "last_checkpoint", "device"]
)
def test_a_missing_key_of_the_result_is_a_failure(make_run, key):
    _, found = outcomes(make_run(**{key: None}, first_loss=1.0))
    assert any(outcome.measured == "missing" and key in outcome.detail for outcome in found.values())


@pytest.mark.parametrize("way", ["relative", "absolute", "link"])
def test_a_checkpoint_outside_the_run_directory_counts_as_missing(make_run, tmp_path, way):
    run = make_run()
    other = tmp_path / "other.apr"
    (run / "ckpt" / "epoch-000.apr").rename(other)
    (run / "link.apr").symlink_to(other)
    name = {"relative": "../other.apr", "absolute": str(other), "link": "link.apr"}[way]
    result = (run / "result.json").read_text().replace('"ckpt/epoch-000.apr"', f'"{name}"')
    (run / "result.json").write_text(result)
    verdict, found = outcomes(run)
    assert not verdict.ok
    assert [found[k].measured for k in ("003", "004", "005")] == ["missing"] * 3
    assert "outside the run directory" in found["004"].detail
