"""`apr contracts check --record` writes evidence and activates contracts that hold."""

import json
import shutil
from pathlib import Path

import pytest

from apr.cli import main

CONTRACT = Path(__file__).parents[2] / "contracts" / "apr-pretrain-init-finetune-v1.yaml"


def test_evidence_is_written_and_activates_the_contract(make_run, tmp_path):
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


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100_000, "3"])
def test_an_invalid_result_is_a_failed_verdict_and_can_be_recorded(make_run, tmp_path, content):
    contract = tmp_path / "c.yaml"
    contract.write_text(CONTRACT.read_text())
    run = make_run()
    (run / "result.json").write_text(content)
    assert main(["contracts", "check", str(contract), "--run-dir", str(run), "--record"]) == 5
    assert json.loads((tmp_path / "c.evidence.json").read_text())["verdict"]["ok"] is False


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps_completed": 40}, "steps 40"),
        ({"device": "cpu"}, "device cpu"),
        ({"steps_completed": None}, "steps unknown"),
    ],
)
def test_a_run_that_does_not_meet_the_conditions_leaves_the_contract_a_draft(
    make_run, tmp_path, capsys, change, says
):
    contract = tmp_path / "c.yaml"
    contract.write_text(CONTRACT.read_text().replace("status: ACTIVE_RUNTIME", "status: DRAFT"))
    run = make_run(**change)
    assert main(["contracts", "check", str(contract), "--run-dir", str(run), "--record"]) == 0
    assert "  status: DRAFT\n" in contract.read_text()
    assert says in capsys.readouterr().err


def test_a_condition_without_a_value_in_the_result_is_not_met(make_run, tmp_path):
    contract = tmp_path / "c.yaml"
    text = CONTRACT.read_text().replace("status: ACTIVE_RUNTIME", "status: DRAFT")
    contract.write_text(text.replace("conditions:\n", "conditions:\n  epochs: 3\n"))
    assert main(["contracts", "check", str(contract), "--run-dir", str(make_run()), "--record"]) == 0
    assert "  status: DRAFT\n" in contract.read_text()
