import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from recipes.loading import load_variables
from recipes.space import JOINT_SPACES, JointSpace
from search_spaces.errors import UserError
from search_spaces.space import SearchSpace
from search_spaces.spaces import SPACES
from search_spaces.variables import Choice, Range, VariableSet

OWN = """\
from recipes.space import nars_recipes
from search_spaces.small import digits
from search_spaces.variables import Choice, VariableSet

networks, recipes = digits, lambda: nars_recipes(search_ema=True)


def table():
    return VariableSet([Choice("op", ("a", "b"))], name="own")


def wrong():
    return [Choice("op", ("a", "b"))]


def broken():
    raise KeyError("op")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_variables", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "own_variables.py").write_text(OWN)


def test_names_of_the_toolkit() -> None:
    for name in JOINT_SPACES:
        found = load_variables(name)
        assert isinstance(found, JointSpace) and found.name == name
    for name in set(SPACES) - set(JOINT_SPACES):
        assert isinstance(load_variables(name), SearchSpace) and load_variables(name).name == name
    assert {"fbnetv3", "fbnetv3-cifar"} <= SPACES.keys() & JOINT_SPACES.keys()  # joint ones win


def test_a_set_is_returned_as_it_is() -> None:
    variables = VariableSet([Range("x", (1, 2))])
    assert load_variables(variables) is variables and variables.name == ""


def test_yaml_files(tmp_path: Path) -> None:
    (tmp_path / "a.yml").write_text("variables: {x: [1, 2]}")
    (tmp_path / "b.yaml").write_text("resolutions: 32\nstem: 16\nrows: [{expansion: [1, 2], width: 24}]\nhead: 480\n")
    assert load_variables(tmp_path / "a.yml").variables == (Choice("x", (1, 2)),)
    assert isinstance(load_variables(str(tmp_path / "b.yaml")), SearchSpace)


def test_functions(own: None) -> None:
    found = load_variables("own_variables:table")
    assert (found.name, found.variables) == ("own", (Choice("op", ("a", "b")),))
    assert isinstance(load_variables("own_variables:networks"), SearchSpace)
    assert load_variables("own_variables:recipes").column.keys() >= {"lr", "ema"}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_variables:wrong", "space own_variables:wrong: the function returned list, not a space or a VariableSet"),
        ("own_variables:broken", "space own_variables:broken: KeyError: 'op'"),
        ("own_variables:absent", "space own_variables:absent: AttributeError: "),
        ("own_variables:", "space own_variables:: AttributeError: "),
        ("no_such_module_at_all:f", "space no_such_module_at_all:f: ModuleNotFoundError: "),
        ("fbnetv3-cifr", "unknown space 'fbnetv3-cifr'; did you mean 'fbnetv3-cifar'? (or a .yaml file, or module:function)"),
        ("?", "unknown space '?'; allowed: cifar, digits, digits-joint, fbnetv2-f,"),
        ("", "unknown space ''; allowed: "),
        ("missing.yaml", "cannot read space missing.yaml: No such file or directory"),
    ],
)  # fmt: skip
def test_errors_are_one_line(own: None, name: str, message: str) -> None:
    with pytest.raises(UserError) as failure:
        load_variables(name)
    assert str(failure.value).startswith(message) and "\n" not in str(failure.value)


def test_it_needs_neither_torch_nor_pandas(fresh_python: Callable[[str], str]) -> None:
    code = "import sys, recipes.loading as l\nl.load_variables('digits-joint')\n"
    heavy = ("torch", "torchvision", "pandas", "sklearn", "ray")
    assert fresh_python(f"{code}print([m for m in {heavy!r} if m in sys.modules])").strip() == "[]"
