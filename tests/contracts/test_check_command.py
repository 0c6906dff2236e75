"""`apr contracts check`: exit codes, JSON, evidence."""

import json
import shutil
from pathlib import Path

import pytest

from apr.cli import main

CONTRACT = Path(__file__).parents[2] / "contracts" / "apr-pretrain-init-finetune-v1.yaml"


def test_a_contract_that_holds_exits_0_and_prints_a_row_each(make_run, capsys):
    assert main(["contracts", "check", str(CONTRACT), "--run-dir", str(make_run())]) == 0
    out = capsys.readouterr().out
    assert "holds" in out
    assert out.count("FALSIFY-") == 6


def test_a_blocking_failure_exits_5(make_run, capsys):
    code = main(["contracts", "check", str(CONTRACT), "--run-dir", str(make_run(exit_code=1)), "--json"])
    verdict = json.loads(capsys.readouterr().out)
    assert code == 5
    assert verdict["ok"] is False
    assert verdict["falsifiers"][0]["measured"] == 1


def test_no_run_directory_exits_3(tmp_path, capsys):
    assert main(["contracts", "check", str(CONTRACT), "--run-dir", str(tmp_path / "gone")]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_what_is_no_contract_exits_4(make_run, tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text("metadata: 3\n")
    assert main(["contracts", "check", str(path), "--run-dir", str(make_run())]) == 4
    assert str(path) in capsys.readouterr().err


def test_evidence_is_kept_and_makes_the_contract_live(make_run, tmp_path):
    contract = tmp_path / "c.yaml"
    shutil.copy(CONTRACT, contract)
    contract.write_text(contract.read_text().replace("status: ACTIVE_RUNTIME", "status: DRAFT"))
    assert main(["contracts", "check", str(contract), "--run-dir", str(make_run()), "--record"]) == 0
    evidence = json.loads((tmp_path / "c.evidence.json").read_text())
    assert "  status: ACTIVE_RUNTIME\n" in contract.read_text()
    assert set(evidence["artifacts"]) == {"result.json", "train.jsonl", "run.log", "ckpt/epoch-000.apr"}


def test_evidence_of_a_failure_leaves_the_contract_a_draft(make_run, tmp_path):
    contract = tmp_path / "c.yaml"
    contract.write_text(CONTRACT.read_text().replace("status: ACTIVE_RUNTIME", "status: DRAFT"))
    assert (
        main(["contracts", "check", str(contract), "--run-dir", str(make_run(exit_code=1)), "--record"]) == 5
    )
    assert "  status: DRAFT\n" in contract.read_text()


@pytest.mark.parametrize("code", ["NaN", "1e999", "-1e999", "1" + 400 * "0", "0.5"])
def test_an_exit_code_that_is_none_fails(make_run, capsys, code):
    run = make_run(exit_code=7)
    result = run / "result.json"
    result.write_text(result.read_text().replace('"exit_code": 7', f'"exit_code": {code}'))
    assert main(["contracts", "check", str(CONTRACT), "--run-dir", str(run)]) == 5
    assert "DOES NOT HOLD" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000, "3"])
def test_a_result_that_is_none_is_a_failed_verdict_and_can_be_recorded(make_run, tmp_path, content):
    contract = tmp_path / "c.yaml"
    contract.write_text(CONTRACT.read_text())
    run = make_run()
    (run / "result.json").write_text(content)
    assert main(["contracts", "check", str(contract), "--run-dir", str(run), "--record"]) == 5
    assert json.loads((tmp_path / "c.evidence.json").read_text())["verdict"]["ok"] is False


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps_completed": 40}, "the run had steps 40 (written for 500)"),
        ({"device": "cpu"}, "the run had device cpu (written for cuda)"),
        ({"steps_completed": None}, "the run had steps unknown (written for 500)"),
    ],
)
def test_a_run_that_is_not_what_it_was_written_for_leaves_it_a_draft(
    make_run, tmp_path, capsys, change, says
):
    contract = tmp_path / "c.yaml"
    contract.write_text(CONTRACT.read_text().replace("status: ACTIVE_RUNTIME", "status: DRAFT"))
    run = make_run(**change)
    assert main(["contracts", "check", str(contract), "--run-dir", str(run), "--record"]) == 0
    assert "  status: DRAFT\n" in contract.read_text()
    assert f"stays DRAFT: {says}" in capsys.readouterr().err


def test_a_condition_that_the_result_does_not_name_is_not_met(make_run, tmp_path):
    contract = tmp_path / "c.yaml"
    text = CONTRACT.read_text().replace("status: ACTIVE_RUNTIME", "status: DRAFT")
    contract.write_text(text.replace("conditions:\n", "conditions:\n  epochs: 3\n"))
    assert main(["contracts", "check", str(contract), "--run-dir", str(make_run()), "--record"]) == 0
    assert "  status: DRAFT\n" in contract.read_text()
