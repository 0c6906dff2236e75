"""A module that is not installed is named with the extra and the command that install it, in Python too."""

import subprocess
import sys

import numpy as np
import pytest

import apr

ACTS = {
    "a tensor": ("torch", "apr.load(path)['a']"),
    "a quantized tensor": ("torch", "apr.load(path)['q']"),
    "an empty tensor": ("torch", "apr.load(path)['empty']"),
    "all tensors": ("torch", "dict(apr.load(path))"),
    "get": ("torch", "apr.load(path).get('a')"),
    "a state dict": ("torch", "apr.load(path).to_torch()"),
    "a slice": ("torch", "apr.load(path).slice('a')[:1]"),
    "safe_open": ("torch", "apr.safe_open(path, 'pt')"),
    "apr.torch": ("torch", "import apr.torch"),
    "a function of it": ("torch", "from apr.torch import load_file"),
    "a decoder": ("torch", "from apr.model import Decoder"),
    "training": ("torch", "from apr.train import pretrain"),
    "generate": ("torch", "apr.generate"),
    "strategies": ("hypothesis", "import apr.testing"),
    "a GGUF file": ("gguf", "apr.inspect(gguf)"),
    "a GGUF file to verify": ("gguf", "apr.verify(gguf)"),
    "a GGUF file to convert": ("gguf", "from apr.convert import convert; convert(gguf, 'o.apr')"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    directory = tmp_path_factory.mktemp("missing")
    quantized = apr.quantize(np.ones(3, np.float32), "q8")
    apr.save({"a": np.ones(3), "empty": np.ones(0), "q": quantized}, directory / "m.apr")
    (directory / "m.gguf").write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    return directory


@pytest.mark.parametrize("case", ACTS)
def test_the_error_names_the_extra_and_the_command(case, files):
    module, code = ACTS[case]
    program = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"import apr; path, gguf = 'm.apr', 'm.gguf'\n"
        f"try:\n    {code}\n"
        "except ModuleNotFoundError as error:\n    print(error.name); print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=files, capture_output=True, text=True, check=True
    )
    name, *lines = done.stdout.splitlines()
    assert name.partition(".")[0] == module
    (line,) = lines
    assert "pip install 'apr[" in line
    assert module in line
