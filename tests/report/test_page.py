"""The page of a run: complete, by itself, and true, whatever became of the run."""

import json
import math
import shutil

import numpy as np
import pytest
import yaml
from tests.report.conftest import HOSTILE, pretrain, records

import apr
from apr.errors import RefusedError, UsageError
from apr.held import held
from apr.report import write_comparison, write_report


def test_curves_have_a_point_for_each_record(finished, report):
    page = report(finished)
    assert page.points("train pale") == [40]
    assert page.points("held-out") == [5]
    assert page.points("held-out dots") == [5]
    assert page.source.count("<svg") == page.source.count("<desc") == 3


def test_the_page_needs_no_other_file(finished, report):
    source = report(finished).source
    assert not [
        word for word in ("http:", "https:", "src=", "href", "url(", "@import", "fetch(") if word in source
    ]
    assert "default-src 'none'" in source


def test_the_same_run_gives_the_same_bytes_and_leaves_its_files_alone(finished, tmp_path):
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    once = write_report(finished).read_bytes()
    assert write_report(finished, tmp_path / "again.html").read_bytes() == once
    assert {path: path.read_bytes() for path in before} == before
    assert {path for path in finished.rglob("*") if path.is_file()} - before.keys() == {
        finished / "report.html"
    }


def test_sentences_gates_contract_data_and_versions_are_those_of_the_files(finished, report):
    page, result = report(finished), json.loads((finished / "result.json").read_text())
    assert result["detail"] in page.text
    for gate in result["gates"]:
        words = {True: "pass", False: "FAIL", None: "not applicable"}
        assert [gate["name"], words[gate["passed"]]] in [row[:2] for row in page.rows]
    assert ["the weights of the init file are used", "FAIL"] in [row[:2] for row in page.rows]
    with apr.load(finished / result["last_checkpoint"]) as file:
        facts = file.metadata["training"]
    assert ["SHA-256 of the corpus", facts["data"]["corpus_sha256"]] in page.rows
    assert ["SHA-256 of the manifest", facts["data"]["manifest_sha256"]] in page.rows
    assert ["CRC-32 of the base model", facts["base_model"]["crc32"]] in page.rows
    for name, version in result["versions"].items():
        assert [name, version] in page.rows


def test_options_that_differ_from_the_defaults_come_first(finished, report):
    page = report(finished)
    changed = [row for row in page.rows if len(row) == 3 and row[0].startswith("--")]
    rest = {row[0] for row in page.rows if len(row) == 2 and row[0].startswith("--")}
    assert ["--lr", "0.002", "5e-05"] in changed
    assert ["--batch-size", "4", "16"] in changed
    # The warm-up follows from the number of steps: nobody chose it.
    assert {"--warmup-steps", "--beta1", "--seed"} <= rest
    assert {row[0] for row in changed} | rest == {
        f"--{name.replace('_', '-')}" for name in yaml.safe_load((finished / "config.yaml").read_text())
    }


def leave_killed(run):
    (run / "result.json").unlink()


def leave_without_a_step(run):
    leave_killed(run)
    (run / "train.jsonl").unlink()
    shutil.rmtree(run / "ckpt")


def leave_a_line_cut_off(run):
    leave_killed(run)
    content = (run / "train.jsonl").read_bytes()
    (run / "train.jsonl").write_bytes(content[:-20])


def leave_without_records(run):
    (run / "train.jsonl").unlink()


def leave_resumed(run):
    # As a run that was resumed on two ranks leaves it.
    result = json.loads((run / "result.json").read_text())
    result |= {"resumed_from": "ckpt/epoch-001.apr", "ranks": 2, "slowest_rank_seconds": 0.25}
    result["peak_memory_by_rank"] = [2**30, 2**31]
    (run / "result.json").write_text(json.dumps(result))


def leave_interrupted(run):
    result = json.loads((run / "result.json").read_text())
    result |= {"status": "INTERRUPTED", "exit_code": 143, "detail": "SIGTERM after 40 steps", "spikes": 2}
    (run / "result.json").write_text(json.dumps(result))


def leave_damaged_checkpoints(run):
    for path in (run / "ckpt").glob("*.apr"):
        path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("leave", "words"),
    [
        (leave_killed, ["NO RESULT", "40 of 40 steps", "--resume"]),
        (leave_without_a_step, ["NO RESULT", "No step and no evaluation"]),
        (leave_a_line_cut_off, ["NO RESULT", "--resume"]),
        (leave_without_records, ["BUDGET_SPENT", "No step and no evaluation", "unknown device"]),
        (leave_resumed, ["resumed from ckpt/epoch-001.apr", "with 2 ranks", "1.0 GiB, 2.0 GiB"]),
        (leave_interrupted, ["INTERRUPTED", "SIGTERM after 40 steps", "2 spikes", "--resume"]),
        (leave_damaged_checkpoints, ["BUDGET_SPENT", "not recorded"]),
    ],
)
def test_every_state_of_a_directory_has_a_page(finished, report, leave, words):
    leave(finished)
    page = report(finished)
    assert [word for word in words if word not in page.text] == []


def test_a_run_that_still_trains_is_said_to(finished, report):
    (finished / "result.json").unlink()
    with held(finished, "another run", "wait"):
        page = report(finished)
    assert "RUNNING" in page.texts
    assert "a process is writing to its directory" in page.text
    assert "--resume" not in page.text


def test_a_refused_run_has_its_reason(shards, tmp_path, report):
    (tmp_path / "refused").mkdir()
    with pytest.raises(RefusedError) as refused:
        pretrain(dataset=shards, run_dir=tmp_path / "refused", num_steps=10**6)
    page = report(tmp_path / "refused")
    assert "REFUSED" in page.texts
    assert str(refused.value) in page.text


def test_a_run_that_diverged_has_a_logarithmic_curve_and_the_gate(shards, tmp_path, report):
    pretrain(dataset=shards, run_dir=tmp_path / "run", lr=5.0, warmup_steps=0, eval_every=4)
    page = report(tmp_path / "run")
    assert "DIVERGENCE" in page.texts
    assert "logarithmic" in page.text
    assert ["divergence", "FAIL"] in [row[:2] for row in page.rows]


def test_a_loss_that_is_not_a_number_interrupts_the_curve(finished, report):
    lines = [json.loads(line) for line in (finished / "train.jsonl").read_text().splitlines()]
    next(line for line in lines if line.get("train_loss") and line["step"] == 20)["train_loss"] = None
    (finished / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = report(finished)
    assert page.points("train pale") == [39]
    assert page.paths["train pale"][0].count("M") == 2


def test_a_run_of_one_step_has_a_dot(shards, tmp_path, report):
    pretrain(dataset=shards, run_dir=tmp_path / "run", num_steps=1)
    assert report(tmp_path / "run").points("train dots") == [1]


def test_texts_from_files_are_escaped(finished, report):
    hostile = finished.rename(finished.with_name("<script>alert(1)<!--"))
    sample = {"step": 10, "prompt": HOSTILE, "text": HOSTILE, "ids": [], "logprobs": []}
    (hostile / "samples.jsonl").write_text(json.dumps(sample) + "\n")
    result = json.loads((hostile / "result.json").read_text())
    result |= {"detail": HOSTILE, "versions": {HOSTILE: HOSTILE}, "contract": {"error": HOSTILE}}
    (hostile / "result.json").write_text(json.dumps(result))
    for page in (report(hostile), report(hostile, hostile)):
        assert page.tags.count("script") == 1
        assert "alert(1)" in page.text
    assert ["10", HOSTILE.replace("\ud800", "\\ud800")] in report(hostile).rows


def test_a_run_of_100_000_steps_is_less_than_a_megabyte_and_keeps_its_spike(finished, report):
    rng, lines = np.random.default_rng(0), []
    for step in range(100_000):
        loss = 3 + 8 * math.exp(-step / 9000) + rng.normal() / 5 + 90 * (step == 54_321)
        lines.append(json.dumps({"step": step, "train_loss": loss, "lr": 1e-4, "tokens_per_sec": 1e5}))
        if step % 20 == 0:
            lines.append(json.dumps({"step": step, "val_loss": loss, "val_ppl": 9.0}))
    (finished / "train.jsonl").write_text("\n".join(lines))
    page = report(finished)
    assert len(page.source) < 1_000_000
    assert any(row[0] == "54,321" for row in page.rows)
    assert len(report(finished, finished).source) < 1_000_000


def test_two_runs_are_drawn_over_each_other_and_what_differs_is_listed(finished, shards, tmp_path, report):
    other = tmp_path / "second"
    pretrain(dataset=shards, run_dir=other, num_steps=30, lr=1e-3)
    page = report(finished, other)
    assert page.points("held-out run-a") == [len(records(finished, "val_loss"))]
    assert page.points("held-out run-b") == [len(records(other, "val_loss"))]
    differing = {row[0]: row[1:] for row in page.rows if row[0].startswith("--")}
    assert differing == {
        "--num-steps": ["40", "30"],
        "--lr": ["0.002", "0.001"],
        "--warmup-steps": ["4", "3"],
        "--contract": ["init-finetune", "—"],
    }
    assert "over steps" in page.text


def test_runs_with_steps_of_different_sizes_are_compared_by_tokens(finished, shards, tmp_path, report):
    other = tmp_path / "second"
    pretrain(dataset=shards, run_dir=other, batch_size=2)
    assert "over training tokens" in report(finished, other).text


def test_versions_that_differ_are_listed(finished, trained, report):
    result = json.loads((finished / "result.json").read_text())
    was = result["versions"]["torch"]
    result["versions"]["torch"] = "9.9"
    (finished / "result.json").write_text(json.dumps(result))
    assert ["torch", was, "9.9"] in report(trained, finished).rows


def test_a_damaged_result_is_refused_by_name(finished):
    for content in (
        b"{",
        b"[]",
        b'{"status": 3}',
        b'{"status": "FAILED", "exit_code": 1, "detail": "", "contract": 5}',
        b'{"status": "FAILED", "exit_code": 1, "detail": "", "mfu": "x"}',
    ):
        (finished / "result.json").write_bytes(content)
        with pytest.raises(RefusedError, match=r"result\.json"):
            write_report(finished)
    assert not (finished / "report.html").exists()


def test_only_an_html_file_is_replaced(finished, tmp_path):
    (tmp_path / "model.apr").write_bytes(b"weights")
    for write in (
        lambda out: write_report(finished, out),
        lambda out: write_comparison(finished, finished, out),
    ):
        with pytest.raises(UsageError, match="html"):
            write(tmp_path / "model.apr")
    assert (tmp_path / "model.apr").read_bytes() == b"weights"
