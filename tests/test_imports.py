"""Test that docs/explanation/architecture.md lists the modules of src and that imports follow its rules."""

import ast
import re
import shutil
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
DOCUMENT = (REPOSITORY / "docs/explanation/architecture.md").read_text()
CONFIG_LIBRARIES = ("hydra", "omegaconf")
ROOTS = ("fcnlab", "hydra_plugins")
SOURCE = REPOSITORY / "src"
parsed = cache(ast.parse)  # the same text is read for several tests


def section(title: str) -> str:
    return DOCUMENT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def listed_paths() -> list[str]:
    """Return the Python files of the tree in the document, relative to the repository."""
    paths, folders = [], {}
    for line in section("Where things are").split("```")[1].splitlines():
        if not line.strip() or line.startswith(("conf/", "template/", "benchmarks/")):
            continue
        name, depth = line.split()[0], len(line) - len(line.lstrip())
        folder = "".join(folders[key] for key in sorted(folders) if key < depth)
        if name.endswith("/"):
            folders = {key: value for key, value in folders.items() if key < depth} | {depth: name}
        else:
            paths.append(folder + name)
    return paths


def listed_rooms() -> list[set[str]]:
    """Return the rooms from top to bottom; rooms of one line form one entry."""
    lines = re.findall(r"^\d+\. (.*)$", section("Imports go downwards only"), re.MULTILINE)
    return [set(re.findall(r"`(\w+)`", line)) for line in lines]


def listed_config_modules() -> set[str]:
    """Return the rooms and files that may import Hydra and OmegaConf."""
    bullets = re.findall(r"^- .*(?:\n  .*)*", section("Imports go downwards only"), re.MULTILINE)
    return set(re.findall(r"`([\w/.]+)`", "".join(bullets)))


def name_of(path: Path, source: Path) -> str:
    return ".".join(path.relative_to(source).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    root, *parts = module.split(".")
    return parts[0] if root == "fcnlab" and parts else root


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield the imports of a module, also those inside functions; ``from a import b`` gives ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def imports_of(source: Path) -> dict[str, set[str]]:
    """Return the modules of ``source`` that each of its modules imports."""
    trees = {name_of(path, source): parsed(path.read_text()) for path in source.rglob("*.py")}
    graph = {}
    for module, tree in trees.items():
        names = imported_names(tree)
        named = {name if name in trees else name.rpartition(".")[0] for name in names if name.split(".")[0] in ROOTS}
        graph[module] = (named & trees.keys()) - {module}
    return graph


def upward_imports(source: Path, rooms: list[set[str]]) -> list[str]:
    level = {room: number for number, line in enumerate(rooms) for room in line}
    return [
        f"{module} imports {other}"
        for module, others in imports_of(source).items()
        for other in sorted(others)
        if room_of(module) != room_of(other) and level[room_of(module)] >= level[room_of(other)]
    ]


def cycle(source: Path) -> list[str]:
    """Return the modules of an import cycle. A package's ``__init__`` runs before any of its modules."""
    graph = imports_of(source)
    for module, others in graph.items():
        packages = {other.rsplit(".", depth)[0] for other in others for depth in range(1, other.count(".") + 1)}
        others |= {package for package in packages & graph.keys() if not f"{module}.".startswith(f"{package}.")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def config_modules(source: Path) -> set[str]:
    """Return the files of fcnlab that import Hydra or OmegaConf."""
    return {
        str(path.relative_to(source / "fcnlab"))
        for path in (source / "fcnlab").rglob("*.py")
        if any(name.split(".")[0] in CONFIG_LIBRARIES for name in imported_names(parsed(path.read_text())))
    }


def test_the_document_names_every_module_and_no_other():
    assert sorted(listed_paths()) == sorted(str(path.relative_to(REPOSITORY)) for path in SOURCE.rglob("*.py"))


def test_the_document_names_every_room_once():
    rooms = [room for line in listed_rooms() for room in line]
    assert sorted(rooms) == sorted({room_of(module) for module in imports_of(SOURCE)})


def test_imports_go_downwards():
    assert upward_imports(SOURCE, listed_rooms()) == []


def test_no_modules_import_each_other():
    assert cycle(SOURCE) == []


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(SOURCE, tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "lists", "html"))
    return tmp_path / "src"


@pytest.mark.parametrize("line", ["from fcnlab.tasks import train", "def late():\n    import fcnlab.training.losses"])
def test_an_import_upwards_is_found(copy, line):
    with (copy / "fcnlab/models/tiny.py").open("a") as file:
        file.write(f"\n{line}\n")
    assert len(upward_imports(copy, listed_rooms())) == 1


def test_an_import_of_a_neighbour_is_found(copy):
    (copy / "fcnlab/metrics/more.py").write_text("from fcnlab.config import ranges\n")
    assert upward_imports(copy, listed_rooms()) == ["fcnlab.metrics.more imports fcnlab.config.ranges"]


def test_a_cycle_is_found(copy):
    with (copy / "fcnlab/models/geometry.py").open("a") as file:
        file.write("\nfrom fcnlab.models.upsampling import Upsample\n")
    assert "fcnlab.models.geometry" in cycle(copy)


def test_a_new_module_that_imports_hydra_is_found(copy):
    (copy / "fcnlab/models/more.py").write_text("def build():\n    from omegaconf import OmegaConf\n")
    assert config_modules(copy) - config_modules(SOURCE) == {"models/more.py"}


def test_only_the_listed_modules_import_hydra():
    listed = listed_config_modules()
    folders = {name for name in listed if name.endswith("/")}
    unlisted = {path for path in config_modules(SOURCE) if f"{path.split('/')[0]}/" not in folders}
    assert unlisted == listed - folders
    assert all((SOURCE / "fcnlab" / folder).is_dir() for folder in folders)


@pytest.mark.parametrize("path", re.findall(r"`((?:src|conf|tests)/[\w/.]+)`", section("Where to look")))
def test_each_file_of_an_answer_exists(path):
    assert (REPOSITORY / path).exists()
