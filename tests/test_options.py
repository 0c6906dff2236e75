"""Options declared as dataclass fields: conversion, bounds, and reading them from YAML."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Le, Lt

from apr.errors import OptionsError, UsageError
from apr.options import Alias, check_options, options_from_yaml, options_of


@dataclass(frozen=True, kw_only=True)
class Options:
    path: Annotated[Path, Alias("-p", "--folder")]
    count: Annotated[int, Ge(1), Le(9)] = 1
    share: Annotated[float, Ge(0), Lt(1)] = 0.5
    limit: Annotated[float | None, Ge(0)] = None
    kind: Literal["a", "b"] = "a"
    enabled: bool = False
    name: str = ""


def check(**values):
    options = Options(**{"path": "p", **values})
    return options, [str(problem) for problem in check_options(options)]


def test_values_take_the_type_of_their_option():
    np = pytest.importorskip("numpy")
    options, problems = check(count=np.int64(3), share=np.float32(0.25), limit=2, name=Path("x"))
    assert not problems
    assert options == Options(path=Path("p"), count=3, share=0.25, limit=2.0, name="x")
    assert [type(getattr(options, field.name)) for field in fields(options)] == [
        type(Path()), int, float, float, str, bool, str
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 0),
        ("count", 10),
        ("count", "3"),
        ("count", 3.0),
        ("count", True),
        ("count", None),
        ("share", 1.0),
        ("share", -0.1),
        ("share", float("nan")),
        ("share", "0.5"),
        ("limit", float("inf")),
        ("limit", False),
        ("kind", "c"),
        ("enabled", 1),
        ("enabled", "yes"),
        ("name", 5),
        ("name", ["a"]),
        ("path", 5),
        ("path", None),
    ],
)
def test_a_wrong_value_is_named_with_its_flag(name, value):
    _, problems = check(**{name: value})
    assert len(problems) == 1
    assert problems[0].startswith(f"--{name} ")


@dataclass(frozen=True)
class Lists:
    names: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()


@pytest.mark.parametrize("names", ["a b", Path("a b"), ["a b"], ("a b",), (Path("a b"),)])
def test_a_list_may_be_one_text_or_path(names):
    options = Lists(names=names)
    assert not check_options(options)
    assert options == Lists(names=("a b",))


@pytest.mark.parametrize("values", [{"names": 3}, {"names": [3]}, {"numbers": ["1"]}, {"numbers": 1}])
def test_a_list_of_other_things_is_refused(values):
    (problem,) = check_options(Lists(**values))
    assert str(problem).startswith(f"--{next(iter(values))} ")


def test_every_wrong_value_is_reported():
    _, problems = check(count=0, share=2, kind="c")
    assert [problem.split()[0] for problem in problems] == ["--count", "--share", "--kind"]


def test_yaml_keys_are_names_or_aliases(tmp_path):
    file = tmp_path / "o.yaml"
    file.write_text("folder: -x\ncount: '4'\nshare: 5e-1\nlimit: null\nenabled: true\n")
    assert options_from_yaml(Options, file) == {"path": Path("-x"), "count": 4, "share": 0.5, "enabled": True}


@pytest.mark.parametrize("keys", ["folder: x\npath: y", "path: x\nfolder: y"])
def test_an_option_under_two_names_in_yaml_is_refused(keys, tmp_path):
    file = tmp_path / "o.yaml"
    file.write_text(f"{keys}\ncount: 4\nshare: 0.5\n")
    with pytest.raises(OptionsError, match=r"o\.yaml: 'path' is set twice"):
        options_from_yaml(Options, file)


@pytest.mark.parametrize("text", ["4", "'4'", "4e0", "0.4e1", "'4e0'", "+4E+0", "'4.0'"])
def test_a_whole_number_in_yaml_may_have_an_exponent_or_quotes(text, tmp_path):
    file = tmp_path / "o.yaml"
    file.write_text(f"path: x\ncount: {text}\nshare: 5e-1")
    options = options_from_yaml(Options, file)
    assert (options["count"], options["share"]) == (4, 0.5)


def test_everything_wrong_in_yaml_is_reported_with_the_file(tmp_path):
    file = tmp_path / "o.yaml"
    file.write_text("cuont: 4\nshare: five\nunlike: 1\n")
    with pytest.raises(OptionsError) as error:
        options_from_yaml(Options, file)
    misspelled, share, unlike = map(str, error.value.problems)
    assert all(str(problem).startswith(f"{file}: ") for problem in error.value.problems)
    assert "'cuont'; did you mean 'count'?" in misspelled
    assert "--share" in share
    assert "did you mean" not in unlike


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\xff"])
def test_a_file_without_a_mapping_is_wrong_usage(tmp_path, text):
    file = tmp_path / "o.yaml"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=r"o\.yaml"):
        options_from_yaml(Options, file)


def test_markers_are_found_by_class():
    option = options_of(Options)["path"]
    assert option.aliases == ("-p", "--folder")
    assert option.required
    assert option.marker(Ge) is None
