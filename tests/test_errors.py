"""Error classes: what catches them, what they carry, the exit code of a command."""

import pickle

import pytest

import apr
from apr import errors
from apr.errors import (
    AprError,
    OptionsError,
    PreflightError,
    RefusedError,
    UsageError,
    about,
    exit_code,
    messages,
)

EXIT_CODES = {
    "AprError": 4, "FormatError": 4, "ChecksumError": 4, "TruncatedError": 4, "UnsupportedError": 4,
    "DecryptionError": 4, "SignatureError": 4, "RefusedError": 5, "UsageError": 2, "WeightsError": 6,
    "UnavailableError": 9, "DeviceError": 9,
}  # fmt: skip
CLASSES = [cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, AprError)]


@pytest.mark.parametrize("name", EXIT_CODES)
def test_every_error_is_an_apr_error_with_its_exit_code_and_its_path(name, tmp_path):
    error = getattr(errors, name)("wrong", path=tmp_path)
    assert isinstance(error, apr.AprError)
    assert isinstance(error, ValueError)
    assert (exit_code(error), error.path) == (EXIT_CODES[name], str(tmp_path))
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.path) == (type(error), "wrong", str(tmp_path))


def test_no_class_is_left_out():
    assert {cls.__name__ for cls in CLASSES} == EXIT_CODES.keys() | {"PreflightError", "OptionsError"}


@pytest.mark.parametrize(
    ("first", "code", "path"),
    [
        (UsageError("a"), 2, None),
        (RefusedError("m.apr: a", path="m.apr"), 5, "m.apr"),
        (FileNotFoundError(2, "No such file or directory", "gone"), 3, "gone"),
    ],
)
def test_several_problems_have_the_code_and_the_path_of_the_first(first, code, path):
    for kind in (PreflightError, OptionsError):
        error = kind([first, RefusedError("other: b", path="other")])
        assert (error.exit_code, error.path, len(messages(error))) == (code, path, 2)
        assert isinstance(error, apr.AprError)
        again = pickle.loads(pickle.dumps(error))
        assert (again.exit_code, again.path, str(again)) == (code, path, str(error))


def test_a_refusal_without_a_file_gets_the_one_that_it_is_about(tmp_path):
    with pytest.raises(UsageError, match="m: no layers") as caught, about(tmp_path / "m"):
        raise UsageError("no layers")
    assert caught.value.path == str(tmp_path / "m")
    with pytest.raises(RefusedError, match=r"^x: no") as caught, about(tmp_path):
        raise RefusedError("x: no", path="x")
    assert caught.value.path == "x"
