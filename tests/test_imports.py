"""Which way imports point: search_spaces <- recipes <- supernets, predictor <- nas <- benchmarks; and what stays light."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

MAY_IMPORT: dict[str, set[str]] = {
    "search_spaces": set(),
    "recipes": {"search_spaces"},
    "supernets": {"search_spaces", "recipes"},
    "predictor": {"search_spaces", "recipes"},
    "nas": {"search_spaces", "recipes", "supernets", "predictor"},
    "benchmarks": {"search_spaces", "recipes", "supernets", "predictor", "nas"},
}
OURS = {*MAY_IMPORT, "tests"}
RAY_FILES = {"predictor/parallel.py", "nas/ray_search.py"}
NUMPY_ONLY = (
    "architecture",
    "variables",
    "sampling",
    "cost",
    "space",
    "tables",
    "limits",
    "loading",
    "options",
    "rows",
    "membership",
    "scaling",
    "latency",
    "latency_parts",
    "yaml_reader",
    "yaml_space",
    "yaml_variables",
)


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that ``source`` imports, inside functions and by ``import_module`` too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                yield node.lineno, node.args[0].value


def violations(path: str, source: str) -> list[str]:
    """What a file at ``path`` (from the repository's root) may not import."""
    package, found = path.split("/")[0], []
    for line, module in imported(source):
        top = module.split(".")[0]
        if top == "":
            found.append(f"{path}:{line} imports relatively")
        elif top in OURS - {package} - MAY_IMPORT[package]:
            found.append(f"{path}:{line} imports {module} against the arrow")
        elif top == "ray" and path not in RAY_FILES:
            found.append(f"{path}:{line} imports ray outside {', '.join(sorted(RAY_FILES))}")
    return found


def sources() -> list[str]:
    return sorted(str(path.relative_to(ROOT)) for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))


def test_imports_follow_the_arrow() -> None:
    files = sources()
    assert {path.split("/")[0] for path in files} == set(MAY_IMPORT)
    assert [line for path in files for line in violations(path, (ROOT / path).read_text(encoding="utf-8"))] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("search_spaces/a.py", "from recipes.recipe import Recipe"),
        ("search_spaces/a.py", "def f():\n    import nas.searching as s"),
        ("recipes/a.py", "if TYPE_CHECKING:\n    from supernets import search"),
        ("supernets/a.py", "class A:\n    def f(self):\n        import predictor"),
        ("predictor/a.py", "import json, supernets.config"),
        ("predictor/a.py", "import importlib\nimportlib.import_module('supernets.config')"),
        ("nas/a.py", "from benchmarks import table"),
        ("nas/a.py", "__import__('tests.conftest')"),
        ("recipes/a.py", "from . import recipe"),
        ("nas/a.py", "def f():\n    import ray"),
        ("predictor/model.py", "from ray.util import queue"),
    ],
)
def test_the_rule_notices(path: str, source: str) -> None:
    assert len(violations(path, source)) == 1


def test_the_rule_allows() -> None:
    source = (
        "import json, torch\nfrom search_spaces.space import SearchSpace\nfrom recipes import recipe\nimport supernets"
    )
    assert violations("supernets/a.py", source) == []
    assert violations("nas/cli/a.py", source + "\nimport predictor.pool") == []
    assert violations("predictor/parallel.py", "def f():\n    import ray") == []
    assert violations("nas/ray_search.py", "import ray") == []
    assert violations("nas/rayless.py", "import rays") == []


def heavy_after(statement: str, fresh_python: Callable[[str], str], heavy: tuple[str, ...]) -> list[str]:
    """Which of ``heavy`` are loaded in a new process after ``statement``."""
    return fresh_python(f"import sys\n{statement}\nprint(*[m for m in {heavy!r} if m in sys.modules])").split()


def test_spaces_rows_and_costs_need_no_torch(fresh_python: Callable[[str], str]) -> None:
    """Not even through what they import."""
    modules = ", ".join(f"search_spaces.{name}" for name in (*NUMPY_ONLY, "spaces", "seeding", "serialisation"))
    assert heavy_after(f"import {modules}", fresh_python, ("torch", "torchvision", "ray")) == []
    assert heavy_after("import search_spaces.network", fresh_python, ("torch",)) == ["torch"]  # the check does see it


def test_nas_stays_light_until_it_is_used(fresh_python: Callable[[str], str]) -> None:
    heavy = ("torch", "torchvision", "ray", "onnx", "scipy", "pandas", "sklearn", "rich", "typer")
    assert heavy_after("import nas; dir(nas)", fresh_python, heavy) == []
    assert (
        heavy_after("import nas; nas.Architecture; nas.cost; nas.span", fresh_python, ("torch", "torchvision", "ray"))
        == []
    )


def test_a_query_needs_no_torch(fresh_python: Callable[[str], str]) -> None:
    assert heavy_after("import nas; nas.query; nas.cost", fresh_python, ("torch", "torchvision", "ray", "pandas")) == []


def test_every_name_of_nas_exists(fresh_python: Callable[[str], str]) -> None:
    assert fresh_python("import nas\nprint([n for n in nas.__all__ if not hasattr(nas, n)])").strip() == "[]"


def test_no_test_folder_is_a_package_and_names_are_unique() -> None:
    files = [path for path in (ROOT / "tests").rglob("*.py") if path.name != "conftest.py"]
    assert not [path for path in files if path.name == "__init__.py"]
    names = [path.name for path in files]
    assert sorted(set(names)) == sorted(names)
