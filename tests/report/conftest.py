"""A finished run, trained once, and copies of it in the states that a run can be left in."""

from __future__ import annotations

import io
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from tests.train.conftest import BASE, one_thread, write_shards  # noqa: F401 (a fixture)

# What a model may write, and what a name may be.
HOSTILE = "<script>document.title='broken'</script>&\"'\ud800\x00"


def pretrain(**changes):
    from apr.train import PretrainConfig
    from apr.train import pretrain as train

    values = {"init": BASE, "num_steps": 40, "eval_every": 10, "batch_size": 4, "seq_length": 32}
    values |= {"val_tokens": 640, "lr": 2e-3, "device": "cpu"}
    return train(PretrainConfig(**values | changes), out=io.StringIO())


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture(scope="session")
def trained(shards, tmp_path_factory):
    """A finished run with a contract that it does not keep."""
    run = tmp_path_factory.mktemp("trained") / "first"
    pretrain(dataset=shards, run_dir=run, contract="init-finetune")
    return run


@pytest.fixture
def finished(trained, tmp_path):
    """A copy of the finished run, to be changed."""
    return shutil.copytree(trained, tmp_path / "first")


def records(run, field):
    lines = map(json.loads, (run / "train.jsonl").read_text().splitlines())
    return [line for line in lines if field in line]


class Page(HTMLParser):
    """The texts, tables and paths of a page."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.texts, self.rows, self.paths, self.tags = [], [], {}, []
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")
        if tag == "path":
            values = dict(attributes)
            self.paths.setdefault(" ".join(values["class"].split()), []).append(values["d"])

    def handle_data(self, data):
        if not data.strip():
            return
        if self.tags[-1] in {"td", "th"}:
            self.rows[-1][-1] += data
        if self.tags[-1] not in {"style", "script"}:
            self.texts.append(data.strip())

    @property
    def text(self):
        return "\n".join(self.texts)

    def points(self, kind):
        """Return the numbers of points of each path of a class."""
        return [len(re.findall("[ML]", path)) for path in self.paths[kind]]


@pytest.fixture
def report(tmp_path):
    """Write the page of a run, and return what is on it."""
    from apr.report import write_comparison, write_report

    def write(*runs):
        out = tmp_path / "page.html"
        return Page(write_report(*runs, out) if len(runs) == 1 else write_comparison(*runs, out))

    return write
