"""What follows the loop: gates, result.json, picture, contract and the last lines."""

import io
import json

import pytest


def test_the_contract_is_decided_and_the_exit_code_unchanged(options, train, data):
    contract = data.parents[1] / "contracts" / "apr-pretrain-init-finetune-v1.yaml"
    config = options(contract=contract)
    result = train(config)
    assert result.exit_code == 0
    assert result.contract["ok"] is False  # the base is random: its first loss is above 0.7 ln V
    verdicts = {f["id"][-3:]: f["passed"] for f in result.contract["falsifiers"]}
    assert verdicts == {"001": True, "002": True, "003": False, "004": True, "005": False, "006": None}
    assert json.loads((config.run_dir / "result.json").read_text())["contract"]["ok"] is False


def test_a_full_disk_does_not_hide_the_verdict(short, monkeypatch):
    """Neither `result.json` nor `run.log` can be written: the run is FAILED, and the verdict is printed."""
    from apr.train import finish, pretrain
    from apr.train.record import report

    def full(*_, **__):
        raise OSError(28, "No space left on device", "result.json")

    monkeypatch.setattr(finish, "write_json", full)

    class Full(io.StringIO):
        name = "run.log"

        def write(self, _):
            full()

    open_log = report.Report.open_log

    def opening(self, path):
        open_log(self, path)
        self._log.close()
        self._log = Full()

    monkeypatch.setattr(report.Report, "open_log", opening)
    out = io.StringIO()
    result = pretrain(short(), out=out)
    assert (result.status, result.exit_code) == ("FAILED", 7)
    lines = out.getvalue().splitlines()
    assert any(line.startswith("warning: run.log: ") for line in lines)
    (verdict,) = [line for line in lines if line.startswith("FAILED: ")]
    assert "No space left on device" in verdict
    assert "BUDGET_SPENT: held-out loss" in verdict


def test_the_last_lines_say_what_was_achieved_and_where_it_is(short):
    from apr.train import pretrain

    out, config = io.StringIO(), short()
    result = pretrain(config, out=out)
    *_, verdict, spent, best, where = out.getvalue().splitlines()
    assert verdict == f"BUDGET_SPENT: {result.detail}"
    assert "held-out loss " in verdict
    assert spent.startswith("3 steps, 384 tokens in 0:0")
    assert str(config.run_dir / result.best_checkpoint) in best
    assert "loss.png" in where
    assert (config.run_dir / "run.log").read_text() == out.getvalue()
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device", "loss.png"), ValueError("one\ntwo")], ids=["disk", "any"]
)
def test_a_picture_that_fails_is_a_warning(short, monkeypatch, data, error):
    from apr.train import finish, pretrain

    def failing(*_, **__):
        raise error

    monkeypatch.setattr(finish, "plot_losses", failing)
    out, contract = io.StringIO(), data.parents[1] / "contracts" / "apr-pretrain-init-finetune-v1.yaml"
    config = short(contract=contract)
    result = pretrain(config, out=out)
    assert (result.status, result.exit_code) == ("BUDGET_SPENT", 0)
    assert result.contract["falsifiers"]
    assert json.loads((config.run_dir / "result.json").read_text())["contract"]["falsifiers"]
    lines = out.getvalue().splitlines()
    (warning,) = [line for line in lines if line.startswith("warning: cannot write loss.png: ")]
    assert warning.endswith(("No space left on device", "one two"))
    assert lines.index(warning) < lines.index(f"BUDGET_SPENT: {result.detail}")
