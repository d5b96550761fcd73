"""The fingerprint of the code that computes a run."""

import hashlib
import sys
from importlib import metadata
from pathlib import Path

import pytest

import fcnlab
from fcnlab.runs.source_fingerprint import source_fingerprints


@pytest.fixture
def method(tmp_path, monkeypatch) -> Path:
    """A user's package ``my_method``, which can be imported."""
    package = tmp_path / "my_method"
    (package / "nets").mkdir(parents=True)
    for name in ("__init__.py", "nets/__init__.py", "nets/net.py"):
        (package / name).write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    return package


def of_method() -> str:
    return source_fingerprints({"model": {"_target_": "my_method.nets.Net"}})["my_method"]


def test_fcnlab_by_its_files():
    """By ten lines of hashing: path, size and bytes of each Python file, in order."""
    root = Path(fcnlab.__file__).parent
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root.parent)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    assert source_fingerprints() == {"fcnlab": found.hexdigest()[:8]}


@pytest.mark.parametrize(
    ("name", "changes"),
    [("nets/net.py", True), ("new.py", True), ("README.md", False), ("conf.yaml", False), ("__pycache__/a.pyc", False)],
)
def test_what_changes_it(method, name, changes):
    before = of_method()
    path = method / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x = 2\n")
    assert (of_method() != before) == changes


def test_a_file_that_moves_changes_it_and_the_whole_package_elsewhere_does_not(method, tmp_path, monkeypatch):
    before = of_method()
    other = tmp_path / "other"
    other.mkdir()
    method.rename(other / "my_method")
    monkeypatch.setattr(sys, "path", [str(other), *sys.path])
    assert of_method() == before
    (other / "my_method" / "nets" / "net.py").rename(other / "my_method" / "net.py")
    assert of_method() != before


def test_a_module_of_one_file_and_one_that_cannot_be_found(tmp_path, monkeypatch):
    (tmp_path / "my_loss.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    tree = {"loss": {"parts": [{"_target_": "my_loss.Loss"}]}, "optim": {"_target_": "no_such_package.sgd"}}
    before = source_fingerprints(tree)
    assert before["no_such_package"] == "unknown"
    (tmp_path / "my_loss.py").write_text("x = 2\n")
    assert source_fingerprints(tree)["my_loss"] != before["my_loss"]


def test_installed_packages_by_version_and_what_no_score_depends_on_not_at_all(method):
    tree = {
        "trainer": {"_target_": "lightning.Trainer"},
        "optim": {"_target_": "torch.optim.SGD"},
        "schedule": {"_target_": "functools.partial"},
        "logger": {"_target_": "my_method.Logger"},
        "callbacks": {"progress": {"_target_": "my_method.Bar"}},
    }
    found = source_fingerprints(tree, {"model": None})
    assert set(found) == {"fcnlab", "lightning"} and found["lightning"] == metadata.version("lightning")
