"""`import apr` loads nothing heavy, and every public name is there."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import apr

HEAVY = {
    "torch",
    "numpy",
    "rich",
    "yaml",
    "tokenizers",
    "tyro",
    "ml_dtypes",
    "typing",
    "inspect",
    "dataclasses",
}


def modules_after(code):
    script = f"import sys\nbefore = set(sys.modules)\n{code}\nprint(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_apr_loads_nothing_heavy():
    assert not modules_after("import apr") & HEAVY


def test_reading_metadata_loads_neither_torch_nor_numpy(tmp_path):
    path = tmp_path / "m.apr"
    apr.save({}, path, {"a": 1})
    loaded = modules_after(f"import apr; apr.load({str(path)!r}).metadata; apr.verify({str(path)!r})")
    assert not loaded & {"torch", "numpy", "rich", "yaml"}


def test_numpy_alone_reads_and_saves(tmp_path):
    path = str(tmp_path / "m.apr")
    code = f"import apr, numpy as np; apr.save({{'a': np.ones(3)}}, {path!r}); apr.load({path!r}).numpy('a')"
    assert "torch" not in modules_after(code)


@pytest.mark.parametrize("name", apr.__all__)
def test_every_public_name_exists(name):
    assert getattr(apr, name) is not None
    assert name in dir(apr)


PACKAGES = {
    "apr.data": ["ShardDir", "encode_corpus", "EncodeOptions", "load_tokenizer", "repair"],
    "apr.model": ["Decoder", "ModelConfig"],
    "apr.train": ["PretrainConfig", "pretrain", "evaluate", "evaluate_file"],
    "apr.convert": ["convert", "ConvertOptions"],
    "apr.contracts": ["check", "load_contract"],
    "apr.report": ["write_comparison", "write_report"],
    "apr.torch": ["load_file", "save_file"],
    "apr.numpy": ["load_file", "save_file"],
}


@pytest.mark.parametrize("package", PACKAGES)
def test_dir_of_a_package_lists_its_public_names_and_nothing_else(package):
    """In a fresh interpreter, where only `import apr` was typed."""
    code = f"import apr; print(*dir({package})); [getattr({package}, name) for name in dir({package})]"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    assert set(PACKAGES[package]) <= set(names)
    assert not [name for name in names if name.startswith("_")]
    assert package.rpartition(".")[2] in dir(apr)


def test_star_imports_bring_no_package():
    assert not {"torch", "numpy", "data", "train"} & set(apr.__all__)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="lod"):
        apr.lod  # noqa: B018


@pytest.mark.parametrize("package", ["apr", *PACKAGES])
def test_no_public_name_is_that_of_a_module_within_its_package(package):
    """The import of the module would replace the name by the module."""
    folder = Path(apr.__file__).parent / package.replace("apr.", "").replace("apr", "")
    modules = {path.stem for path in folder.glob("*.py")} if folder.is_dir() else set()
    names = set(importlib.import_module(package).__all__)
    assert not names & modules
