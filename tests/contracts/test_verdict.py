"""`apr contracts check`: exit codes and JSON."""

import json
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


def test_a_missing_run_directory_exits_3(tmp_path, capsys):
    assert main(["contracts", "check", str(CONTRACT), "--run-dir", str(tmp_path / "gone")]) == 3
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_an_invalid_contract_exits_4(make_run, tmp_path, capsys):
    path = tmp_path / "bad.yaml"
    path.write_text("metadata: 3\n")
    assert main(["contracts", "check", str(path), "--run-dir", str(make_run())]) == 4
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize("code", ["NaN", "1e999", "-1e999", "1" + 400 * "0", "0.5"])
def test_an_invalid_exit_code_in_the_result_fails(make_run, capsys, code):
    run = make_run(exit_code=7)
    result = run / "result.json"
    result.write_text(result.read_text().replace('"exit_code": 7', f'"exit_code": {code}'))
    assert main(["contracts", "check", str(CONTRACT), "--run-dir", str(run)]) == 5
    assert "NOT HOLD" in capsys.readouterr().out
