"""What all tests share: budgets of the property tests, and the files written by others."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

_COMMON = {"deadline": None, "suppress_health_check": [HealthCheck.function_scoped_fixture]}
settings.register_profile("ci", max_examples=30, derandomize=True, **_COMMON)
settings.register_profile("long", max_examples=5000, **_COMMON)
LONG = os.environ.get("APR_TEST_BUDGET") == "long"
settings.load_profile("long" if LONG else "ci")


@pytest.fixture(scope="session")
def data() -> Path:
    """`tests/fixtures`: files written by the ecosystem's own tools."""
    return Path(__file__).parent / "fixtures"


@pytest.fixture
def run(capsys):
    """Run a command line in this process; returns its exit code, output and errors."""
    from apr.cli import main

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what has no place here, and say why."""
    reasons = {} if LONG else {"long": "takes minutes: make test-long"}
    if any(item.get_closest_marker("cuda") for item in items):
        import torch

        if not torch.cuda.is_available():
            reasons["cuda"] = "no CUDA device here"
    for item in items:
        for name, reason in reasons.items():
            if item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))
