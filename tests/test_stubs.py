"""`_core.pyi` says what the compiled module has: names, methods and signatures, both ways."""

import os
import subprocess
import sys
from pathlib import Path

STUB = Path(__file__).parents[1] / "python" / "apr" / "_core.pyi"


def stubtest(directory, stub):
    """Compare a stub with the module, in a package that is otherwise empty: mypy would read all of torch."""
    package = directory / "apr"
    package.mkdir()
    (package / "__init__.pyi").touch()
    (package / "_core.pyi").write_text(stub)
    allowed = directory / "allowed"
    allowed.write_text("apr._core.__all__\n")  # which PyO3 makes
    return subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", "apr._core", "--allowlist", str(allowed)],
        capture_output=True,
        text=True,
        check=False,
        cwd=directory,
        env=os.environ | {"MYPYPATH": str(directory)},
    )


def test_the_stub_is_the_module(tmp_path):
    done = stubtest(tmp_path, STUB.read_text())
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_missing_method_and_one_too_many_are_found(tmp_path):
    stub = STUB.read_text().replace("def check_rest(self)", "def check_header(self)")
    done = stubtest(tmp_path, stub)
    assert done.returncode != 0
    assert "apr._core.Container.check_rest is not present in stub" in done.stdout
    assert "apr._core.Container.check_header is not present at runtime" in done.stdout
