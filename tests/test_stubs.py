"""`_core.pyi` says what the compiled module has: names, methods and signatures, both ways."""

import subprocess
import sys


def test_the_stub_is_the_module(tmp_path):
    allowed = tmp_path / "allowed"
    allowed.write_text("apr._core.__all__\n")  # which PyO3 makes
    command = [sys.executable, "-m", "mypy.stubtest", "apr._core", "--allowlist", str(allowed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
