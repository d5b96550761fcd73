"""Test that only fcnlab.library_internals uses private members of other packages."""

import ast
import importlib
import inspect
import pkgutil
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

import fcnlab

ROOT = Path(fcnlab.__file__).parent
ALLOWED = {"_replace", "_asdict", "_fields", "_exit"}  # of named tuples, and os._exit: documented
OF_HYDRA = {"_target_", "_partial_", "_recursive_", "_convert_", "_args_"}  # keys of a config
OWN_PACKAGE = "fcnlab.library_internals"


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name != "_"


def touched(tree: ast.AST, own: set[str]) -> Iterator[str]:
    """Return the private names that a module uses and that src does not define."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            names, of_self = [node.attr], isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            names = [] if of_self else names  # test_no_private_member_is_overridden checks these
        elif isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [part for alias in node.names for part in alias.name.split(".")]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "setattr", "hasattr"):
            names = [part.value for part in node.args if isinstance(part, ast.Constant) and isinstance(part.value, str)]
        else:
            continue
        yield from (name for name in names if is_private(name) and name not in own | ALLOWED | OF_HYDRA)


def defined(trees: Iterable[ast.AST]) -> set[str]:
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {node.name for node in nodes if isinstance(node, (ast.FunctionDef, ast.ClassDef))}


def test_no_other_module_uses_a_private_member():
    trees = {
        path: ast.parse(path.read_text()) for path in ROOT.rglob("*.py") if path.parent.name != "library_internals"
    }
    own = defined(trees.values())
    private_uses = {
        str(path.relative_to(ROOT)): names for path, tree in trees.items() if (names := [*touched(tree, own)])
    }
    assert not private_uses


@pytest.mark.parametrize(
    "text",
    [
        "trainer._logger_connector.x",
        "import torch._utils",
        "from hydra._internal import utils",
        "from pickle import _Unpickler",
        "getattr(strategy, '_layer_sync', None)",
        "Queue._on_queue_feeder_error = 1",
    ],
)
def test_each_use_of_a_private_member_is_found(text):
    assert [*touched(ast.parse(text), set())]
    allowed = "a._replace(b=1); os._exit(0); self._x = cfg._target_; object.__setattr__"
    assert not [*touched(ast.parse(allowed), set())]


def private_names(kind: type) -> set[str]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError):  # built in
        return set()
    attributes = (
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
    )
    functions = (node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
    return set(filter(is_private, [*attributes, *functions]))


def is_foreign(kind: type) -> bool:
    return kind.__module__.partition(".")[0] not in ("fcnlab", "builtins", "typing", "abc", "enum")


@pytest.mark.slow  # reads the source of every base class
def test_no_private_member_is_overridden():
    """Also finds accidental overrides of private names of a foreign base class."""
    modules = [importlib.import_module(each.name) for each in pkgutil.walk_packages(fcnlab.__path__, "fcnlab.")]
    kinds = {kind for module in modules for kind in vars(module).values() if inspect.isclass(kind)}
    actual = {kind for kind in kinds if kind.__module__.startswith("fcnlab.") and OWN_PACKAGE not in kind.__module__}
    overridden = {
        (kind.__name__, base.__name__): shared
        for kind in actual
        for base in kind.__mro__[1:]
        if is_foreign(base) and (shared := private_names(kind) & private_names(base))
    }
    assert not overridden
