"""The code in the documentation runs and is right."""

import re
import shutil
from pathlib import Path

import apr

DOCS = Path(__file__).parents[1] / "docs"


def test_the_reader_in_the_format_page_reads_real_files(data: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "format.md").read_text(), re.DOTALL)
    namespace: dict = {}
    exec(code, namespace)
    for name in ("every_dtype", "qwen2_untied_f32"):
        path = data / "aprender-0.72" / f"{name}.apr"
        metadata, tensors = namespace["read"](path)
        file = apr.load(path)
        assert metadata == file.metadata
        assert list(tensors) == list(file)
        for tensor, (_, shape, stored) in tensors.items():
            assert shape == file.info(tensor).shape
            assert stored == file.raw(tensor)


def test_the_table_of_families_is_complete_and_its_tests_exist() -> None:
    """`python docs/family_table.py` writes the table from the results of the tests that it names."""
    from apr.model.families import FAMILIES

    page = (DOCS / "families.md").read_text()
    table = page.split("<!-- the table below")[1].split("<!-- end of the table")[0]
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert [row[0].removeprefix("| ") for row in rows[1:]] == list(FAMILIES)
    assert {cell.removesuffix(" |") for row in rows[1:] for cell in row[1:]} == {"yes"}
    proofs = re.findall(r"`(tests/\S+)::(\w+)`", table)
    assert len(proofs) == len(rows[0]) - 1
    for path, name in proofs:
        assert f"def {name}(" in (DOCS.parent / path).read_text()


def test_the_table_of_ranks_is_complete() -> None:
    """`python docs/rank_table.py` writes the table from what the tests of several ranks measure."""
    page = (DOCS / "several-gpus.md").read_text()
    table = page.split("<!-- the table below")[1].split("<!-- end of the table")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")][1:]
    cells = {(engine, precision, ranks): cell for engine, precision, ranks, cell in rows}
    for ranks in "234":
        for engine in ("all-reduce", "--shard-model"):
            assert float(cells[engine, "fp32", ranks].replace("same bits", "0")) <= 1e-5
        assert cells["held-out loss", "fp32", ranks] == "same bits"
    for ranks in ("2", "4", "4, then 2"):
        assert cells["--deterministic, checkpoints", "fp32", ranks] == "same bits"


def test_the_script_of_the_safetensors_page_runs(tmp_path: Path, monkeypatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (DOCS / "safetensors.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert [path.name for path in tmp_path.iterdir()] == ["model.apr"]


def test_the_code_in_the_python_page_runs_from_top_to_bottom(
    data: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(data / "imported-0.72" / "hf_qwen2_tied", "hf-model")
    Path("texts").mkdir()
    for name in ("data.md", "training.md", "format.md"):
        shutil.copy(DOCS / name, "texts")
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "python.md").read_text(), re.DOTALL)
    namespace: dict = {}
    for block in blocks:
        exec(block, namespace)
    assert namespace["result"].exit_code == 0
    assert len(namespace["losses"]) == 4
    assert Path("hf-trained/config.json").exists()
    assert "token shards" in capsys.readouterr().out  # of the last block


def test_the_tests_in_the_testing_page_pass() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / "testing.md").read_text(), re.DOTALL)
    namespace: dict = {}
    for block in blocks:
        exec(block, namespace)
    tests = [value for name, value in namespace.items() if name.startswith("test_")]
    assert len(tests) == 3
    for test in tests:
        test()
