"""Commands, run in this process."""

import pytest

from apr.cli import main


@pytest.fixture
def run(capsys):
    """Run a command line; its exit code, output and errors."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run
