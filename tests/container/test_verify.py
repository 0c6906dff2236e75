"""apr.verify: every check of a file in one report."""

import json
from pathlib import Path

import pytest
from tests.container.bad_files import GOOD
from tests.container.forged import Entry, forge
from tests.container.test_metadata import NO_JSON

import apr
from apr.cli import main

WRITTEN = Path(__file__).parents[1] / "fixtures" / "aprender-0.72"


def test_invalid_metadata_are_a_failed_check(tmp_path):
    path = tmp_path / "bad.apr"
    path.write_bytes(NO_JSON)
    for report in (apr.verify(path), apr.load(path).verify()):
        assert report.opened
        assert [(check.name, check.offset) for check in report.checks if not check.passed] == [
            ("metadata", 69)
        ]
    for act in (
        lambda: apr.load(path, verify="full"),
        lambda: apr.inspect(path),
        lambda: apr.diff(path, path),
        lambda: apr.stamp(path, {"a": 1}, tmp_path / "out.apr"),
    ):
        with pytest.raises(apr.FormatError, match="UTF-8"):
            act()
    assert not (tmp_path / "out.apr").exists()


def test_invalid_metadata_are_reported_along_with_an_invalid_index(tmp_path):
    path = tmp_path / "bad.apr"
    path.write_bytes(forge(Entry(b"b"), Entry(b"a"), metadata=b"{]"))
    report = apr.verify(path)
    assert not report.opened
    assert [check.name for check in report.checks if not check.passed] == ["metadata", "tensor index"]


def test_a_wrong_footer_opens_and_fails_verification(tmp_path, capsys):
    path = tmp_path / "flipped.apr"
    at = len(GOOD) - 100
    path.write_bytes(GOOD[:at] + bytes([GOOD[at] ^ 16]) + GOOD[at + 1 :])
    assert list(apr.load(path)) == ["a", "b"]
    with pytest.raises(apr.ChecksumError) as caught:
        apr.load(path, verify="full")
    assert caught.value.offset == len(GOOD) - 4
    report = apr.load(path).verify()
    assert not report.ok
    assert report.checks[-1].passed is False
    assert "FAILED" in str(report)

    assert main(["verify", str(path)]) == 5
    assert "FAILED" in capsys.readouterr().out
    assert main(["inspect", "--json", str(path)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["valid"], report["checksum_valid"]) == (False, False)
    assert main(["inspect", str(path)]) == 0
    assert "NOT VALID" in capsys.readouterr().out
    assert main(["inspect", "--quick", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["checksum_valid"] is None


def test_an_empty_head_without_an_embedding_fails_verification(tmp_path):
    path = tmp_path / "head.apr"
    path.write_bytes(forge(Entry(b"lm_head.weight", size=0)))
    with apr.load(path) as file, pytest.raises(apr.FormatError, match=r"model\.embed_tokens\.weight"):
        file["lm_head.weight"]
    assert not apr.verify(path).ok


def test_a_file_without_a_footer_is_not_verifiable():
    report = apr.verify(WRITTEN / "no_footer.apr")
    assert report.ok
    assert report.checks[-1].passed is None
    assert "footer" in report.checks[-1].detail
    assert apr.inspect(WRITTEN / "no_footer.apr")["checksum_valid"] is None
