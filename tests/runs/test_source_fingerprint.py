"""Test the fingerprint of the code that computes a run."""

import hashlib
import sys
from importlib import metadata
from pathlib import Path

import pytest

import fcnlab
from fcnlab.runs.source_fingerprint import source_fingerprints


@pytest.fixture
def method(tmp_path, monkeypatch) -> Path:
    """Write the importable user package ``my_method``; return its folder."""
    package = tmp_path / "my_method"
    (package / "nets").mkdir(parents=True)
    for name in ("__init__.py", "nets/__init__.py", "nets/net.py"):
        (package / name).write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    return package


def method_fingerprint() -> str:
    return source_fingerprints({"model": {"_target_": "my_method.nets.Net"}})["my_method"]


def test_the_fingerprint_of_fcnlab_is_a_hash_of_its_files():
    """It hashes path, size and bytes of each Python file, in order."""
    root = Path(fcnlab.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root.parent)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    assert source_fingerprints() == {"fcnlab": digest.hexdigest()[:8]}


@pytest.mark.parametrize(
    ("name", "changes"),
    [("nets/net.py", True), ("new.py", True), ("README.md", False), ("conf.yaml", False), ("__pycache__/a.pyc", False)],
)
def test_only_changed_python_files_change_the_fingerprint(method, name, changes):
    before = method_fingerprint()
    path = method / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("x = 2\n")
    assert (method_fingerprint() != before) == changes


def test_moving_a_file_changes_the_fingerprint_moving_the_package_does_not(method, tmp_path, monkeypatch):
    before = method_fingerprint()
    new_place = tmp_path / "other"
    new_place.mkdir()
    method.rename(new_place / "my_method")
    monkeypatch.setattr(sys, "path", [str(new_place), *sys.path])
    assert method_fingerprint() == before
    (new_place / "my_method" / "nets" / "net.py").rename(new_place / "my_method" / "net.py")
    assert method_fingerprint() != before


def test_the_fingerprint_of_a_single_file_and_of_a_missing_module(tmp_path, monkeypatch):
    (tmp_path / "my_loss.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    tree = {"loss": {"parts": [{"_target_": "my_loss.Loss"}]}, "optim": {"_target_": "no_such_package.sgd"}}
    before = source_fingerprints(tree)
    assert before["no_such_package"] == "unknown"
    (tmp_path / "my_loss.py").write_text("x = 2\n")
    assert source_fingerprints(tree)["my_loss"] != before["my_loss"]


def test_installed_packages_have_a_version_and_loggers_are_left_out(method):
    tree = {
        "trainer": {"_target_": "lightning.Trainer"},
        "optim": {"_target_": "torch.optim.SGD"},
        "schedule": {"_target_": "functools.partial"},
        "logger": {"_target_": "my_method.Logger"},
        "callbacks": {"progress": {"_target_": "my_method.Bar"}},
    }
    fingerprints = source_fingerprints(tree, {"model": None})
    assert set(fingerprints) == {"fcnlab", "lightning"} and fingerprints["lightning"] == metadata.version("lightning")
