"""Test checkpoints that are downloaded from W&B: what is refused before any request, and what is taken of an answer."""

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from fcnlab.errors import UserError
from fcnlab.tracking import downloads, server
from fcnlab.tracking.downloads import CheckpointFile, checkpoint_file
from wandb_artifact_server import entry, serving

ADDRESS = "wandb:team/fcnlab/checkpoint-abc:best"
CONTENT = b"weights"


class Entry(SimpleNamespace):
    """An entry of a manifest; W&B's own has the same attributes (test_a_checkpoint_is_downloaded_once_and_scored)."""

    def digest_algorithm(self) -> Any:
        return SimpleNamespace(name="MANIFEST_MD5")

    def download(self, root: str, skip_cache: bool) -> None:
        path = Path(root, self.path)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.sent)


def stored(path: str = "best.ckpt", sent: bytes = CONTENT, **more: Any) -> Entry:
    digest = base64.b64encode(hashlib.md5(CONTENT).digest()).decode()
    return Entry(**{"path": path, "size": len(CONTENT), "digest": digest, "ref": None, "sent": sent} | more)


@pytest.fixture
def offered(monkeypatch, tmp_path):
    """Let W&B offer an artifact with some entries; return the names that it was asked for."""
    asked: list[str] = []

    def offer(*entries: Entry) -> list[str]:
        by_path = {each.path: each for each in entries}
        artifact = SimpleNamespace(
            manifest=SimpleNamespace(entries=by_path), get_entry=by_path.get, digest="d1",
            source_qualified_name="team/fcnlab/checkpoint-abc:v3",
        )  # fmt: skip
        api = SimpleNamespace(artifact=lambda name: asked.append(name) or artifact)
        monkeypatch.setattr(wandb, "Api", lambda timeout: api)
        return asked

    monkeypatch.setattr(downloads, "check_server", lambda: None)
    monkeypatch.setattr(downloads, "download_folder", lambda: tmp_path / "cache")
    return offer


def test_a_usual_path_asks_nothing(monkeypatch):
    monkeypatch.setattr(downloads, "check_server", lambda: pytest.fail("the server was asked"))
    for path in ("RUN/checkpoints/best.ckpt", Path("a:b/c"), "./wandb:a/b/c:d"):
        assert checkpoint_file(path) == CheckpointFile(Path(path), None)


@pytest.mark.parametrize(
    "rest",
    ["", "name", "a/b/c", "a/b:c", "a/b/c/d:e", "/b/c:d", "a/b/c:", "a/b/c:d/e", "a/../c:d#", "a/b%2f/c:d", "a/b/c:d\n",
     "a/b\n/c:d", "é/b/c:d", "a/b/../c:d", f"a/b/{'c' * 129}:d", "https://a/b/c:d"],
)  # fmt: skip
def test_an_invalid_address_is_refused_before_any_request(monkeypatch, rest):
    monkeypatch.setattr(downloads, "check_server", lambda: pytest.fail("the server was asked"))
    with pytest.raises(UserError, match=r"must be wandb:ENTITY/PROJECT/NAME:ALIAS"):
        checkpoint_file(f"wandb:{rest}")


def test_a_download_is_kept_and_checked_again(offered, tmp_path):
    asked = offered(stored(), stored("notes.txt"))
    file = checkpoint_file(ADDRESS)
    assert file.path.read_bytes() == CONTENT and file.path.is_relative_to(tmp_path / "cache")
    assert file.artifact == {"artifact": "team/fcnlab/checkpoint-abc:v3", "digest": "d1", "file": "best.ckpt"}
    assert asked == ["team/fcnlab/checkpoint-abc:best"]
    offered(stored(sent=b"not asked for"))
    assert checkpoint_file(ADDRESS) == file and file.path.read_bytes() == CONTENT
    file.path.write_bytes(b"damaged")  # of the same size
    offered(stored())
    assert checkpoint_file(ADDRESS).path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([], "one checkpoint .*got 0"),
        ([stored("model.pt")], "one checkpoint .*got 0"),
        ([stored(), stored("last.ckpt")], "one checkpoint .*got 2"),
        ([stored("../best.ckpt")], "the name of the artifact's checkpoint"),
        ([stored("/etc/best.ckpt")], "the name of the artifact's checkpoint"),
        ([stored(".ckpt")], "the name of the artifact's checkpoint"),
        ([stored(ref="https://example.org/best.ckpt")], "follows no such references"),
        ([stored(ref="file:///etc/best.ckpt")], "follows no such references"),
        ([stored(size=None)], "at most 17 GB, got None bytes"),
        ([stored(size=1 << 50)], "at most 17 GB"),
        ([stored(sent=b"another")], "not the one that the artifact declares"),
        ([stored(sent=CONTENT * 9)], "not the one that the artifact declares"),
    ],
)
def test_only_the_declared_checkpoint_is_taken(offered, tmp_path, entries, message):
    offered(*entries)
    with pytest.raises(UserError, match=rf"checkpoint={ADDRESS}: .*{message}"):
        checkpoint_file(ADDRESS)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_disk_without_space_is_reported_before_the_download(offered, monkeypatch):
    offered(stored())
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: SimpleNamespace(free=1 << 20))
    with pytest.raises(UserError, match="has only 1 MB of free space"):
        checkpoint_file(ADDRESS)


@pytest.mark.parametrize("error", [ValueError("artifact 'x' not found"), ConnectionError("refused"), KeyError("a")])
def test_an_artifact_that_is_not_found_is_a_sentence(offered, monkeypatch, error):
    def api(timeout: int) -> None:
        raise error

    offered()
    monkeypatch.setattr(wandb, "Api", api)
    with pytest.raises(UserError, match=r"was not found in W&B, or this key must not read it .*Copy its full name"):
        checkpoint_file(ADDRESS)


@pytest.fixture
def surroundings(monkeypatch, tmp_path):
    """An empty folder, a key and a server that answers; each can be changed."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    settings = SimpleNamespace(settings=SimpleNamespace(base_url="https://mine.example"))
    monkeypatch.setattr(wandb, "setup", lambda: settings)
    monkeypatch.setattr(server, "_has_key", lambda settings: True)
    monkeypatch.setattr(server, "_answers", lambda address: True)
    return monkeypatch


def test_a_server_is_asked_only_with_a_key_and_if_nothing_forbids_it(surroundings, tmp_path):
    server.check_server()
    surroundings.setenv("WANDB_MODE", "offline")
    with pytest.raises(UserError, match="WANDB_MODE=offline in the environment forbids"):
        server.check_server()
    surroundings.delenv("WANDB_MODE")
    surroundings.setattr(server, "_answers", lambda address: False)
    with pytest.raises(UserError, match=r"https://mine.example does not respond within 3 seconds"):
        server.check_server()
    surroundings.setattr(server, "_has_key", lambda settings: False)
    with pytest.raises(UserError, match=r"no API key of W&B is configured\. Type wandb login"):
        server.check_server()
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "settings").write_text("[default]\nbase_url = https://elsewhere.example\n")
    with pytest.raises(UserError, match="sets where W&B sends"):
        server.check_server()


def fcnlab(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, since W&B reads its settings once."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    clean |= {"WANDB_CACHE_DIR": "cache", "NETRC": "none", "WANDB_DATA_DIR": "data"} | environment
    command = [sys.executable, "-m", "fcnlab", *words]
    return subprocess.run(command, env=clean, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_checkpoint_is_downloaded_once_and_scored(trained_once, shapes_root, small, tmp_path, monkeypatch):
    """W&B's own client, with a server on this machine."""
    monkeypatch.chdir(tmp_path)
    folder = trained_once("trainer.max_steps=1")
    content = (folder / "checkpoints" / "best.ckpt").read_bytes()
    data = ["data=shapes", f"data.root={shapes_root}", *[word for word in small if word.startswith("data.")]]
    words = ["eval", f"checkpoint={ADDRESS}", *data, "trainer.accelerator=cpu"]
    with serving({"best.ckpt": entry(content)}, content) as server:
        known = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": server.address}
        done = [fcnlab(*words, f"hydra.run.dir={name}", **known) for name in ("first", "second")]
        images = ["input=run/predictions", "output=o"]
        other = fcnlab("predict", f"checkpoint={ADDRESS[:-4]}other", *images, **known)
        asked = [path for path in server.asked if path.startswith("/artifactsV2/")]
    assert [each.returncode for each in done] == [0, 0], done[0].stderr
    assert len(asked) == 1 and asked[0].endswith(f"/{hashlib.md5(content).hexdigest()}/best.ckpt")
    records = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("first", "second")]
    origin = records[0]["weights"]["checkpoint"]
    assert origin["sha256"] == hashlib.sha256(content).hexdigest() and origin["name"] == "best.ckpt"
    assert origin["artifact"] == "team/fcnlab/checkpoint-abc:v3" and records[1]["weights"] == records[0]["weights"]
    assert records[0]["miou"] == json.loads((folder / "metrics.json").read_text())["miou"]
    assert other.returncode == 1 and "was not found in W&B" in other.stderr and "Traceback" not in other.stderr


@pytest.mark.slow
def test_without_key_or_server_a_download_ends_in_seconds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["predict", f"checkpoint={ADDRESS}", "input=in.png", "output=o"]
    (tmp_path / "in.png").write_bytes(b"")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        done = [fcnlab(*words), fcnlab(*words, WANDB_API_KEY="0" * 40, WANDB_BASE_URL=address)]
    messages = ("no API key of W&B is configured", "does not respond within 3 seconds")
    for each, message in zip(done, messages, strict=True):
        assert each.returncode == 1 and message in each.stderr and "Traceback" not in each.stderr
