"""`apr report`: paths, exit codes and what is said about a directory that is no run."""

import json
import subprocess
import sys

import pytest
from tests.report.conftest import pretrain
from tests.train.conftest import write_shards


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("data") / "shards", tokens=2000)


@pytest.fixture(scope="module")
def trained(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("trained") / "run"
    pretrain(dataset=shards, run_dir=run, num_steps=2)
    return run


def test_the_path_of_the_page_is_printed(run, trained, tmp_path):
    page = tmp_path / "page.html"
    code, out, _ = run("report", trained, page)
    assert (code, str(page) in out, page.exists()) == (0, True, True)
    code, out, _ = run("report", "--compare", trained, trained, page, "--json")
    assert (code, json.loads(out)) == (0, {"report": str(page)})


def test_neither_torch_nor_matplotlib_is_loaded(trained, tmp_path):
    code = (
        "import sys; from apr.cli import main; "
        f"assert main(['report', {str(trained)!r}, {str(tmp_path / 'page.html')!r}]) == 0; "
        "assert not {'torch', 'matplotlib', 'numpy'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("words", "exit_code", "hint"),
    [
        (["missing"], 3, "no such run directory"),
        (["runs/frist"], 3, "did you mean runs/first?"),
        (["runs"], 5, "did you mean runs/first?"),
        (["runs/first/ckpt"], 5, "did you mean runs/first?"),
        (["runs/first/result.json"], 3, "did you mean runs/first?"),
        (["shards"], 5, "token shards"),
        (["empty"], 5, "empty"),
        ([], 2, "must be given"),
        (["runs/first", "runs/first"], 2, "--compare"),
        (["--compare", "runs/first"], 2, "two run directories"),
        (["runs/first", "out.apr"], 2, ".html"),
        (["runs/first", "nowhere/out.html"], 3, "nowhere"),
    ],
)
def test_a_path_that_is_no_run_is_refused_in_one_line(
    run,
    trained,
    shards,
    tmp_path,
    monkeypatch,
    words,
    exit_code,
    hint,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "runs/first").symlink_to(trained)
    (tmp_path / "shards").symlink_to(shards)
    code, out, err = run("report", *words)
    (line,) = err.splitlines()
    assert code == exit_code
    assert hint in line
    assert not out
