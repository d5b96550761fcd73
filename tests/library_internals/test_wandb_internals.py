"""Test the functions for W&B with its own artifacts."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import wandb

from fcnlab.library_internals.wandb import add_reference, has_digest, log_artifact, use_artifact


def test_a_reference_is_in_the_manifest_without_a_warning(capfd):
    artifact = wandb.Artifact("data", "dataset")
    add_reference(artifact, "images", "mine:abc")
    (entry,) = artifact.manifest.entries.values()
    public = wandb.Artifact("data", "dataset")
    assert not capfd.readouterr().err
    public.add_reference("mine:abc", name="images", checksum=False)
    assert artifact.manifest.to_manifest_json() == public.manifest.to_manifest_json()
    assert artifact.digest == public.digest and entry.local_path is None


@pytest.mark.parametrize("algorithm", ["md5", "xxh128"])
def test_a_file_is_compared_with_the_hash_of_its_entry(tmp_path, algorithm):
    (tmp_path / "a").write_bytes(b"content")
    artifact = wandb.Artifact("data", "dataset")
    entry = artifact.add_file(str(tmp_path / "a"), policy="immutable")
    if algorithm == "xxh128":
        from wandb.sdk.artifacts import artifact_manifest_entry as module
        from wandb.sdk.lib.hashutil import xxh128_file_b64

        name = next(key for key in module._STR_TO_DIGEST_ALGORITHM if "xxh128" in key.lower())
        entry.extra[module.DIGEST_ALGORITHM_EXTRA_KEY] = name
        entry.digest = xxh128_file_b64(str(tmp_path / "a"))
    assert has_digest(entry, tmp_path / "a")
    (tmp_path / "a").write_bytes(b"another")
    assert not has_digest(entry, Path(tmp_path / "a"))


@pytest.mark.parametrize("is_input", [False, True])
def test_an_artifact_is_logged_as_w_and_b_logs_it_offline(is_input):
    """The public methods, called on a double of a run that is offline, against ours on one that is online."""
    artifact, public, ours = wandb.Artifact("data", "dataset"), MagicMock(), MagicMock()
    public._settings._offline, ours._settings._offline = True, False
    for run in (public, ours):
        run._prepare_artifact.return_value = (artifact, ["best"])
    inner = wandb.Run._log_artifact
    while hasattr(inner, "__wrapped__"):  # its decorators look at a real run
        inner = inner.__wrapped__
    more = {"is_user_created": True, "use_after_commit": True} if is_input else {}
    inner(public, artifact, aliases=["best"], **more)
    log_artifact(ours, artifact, ["best"], is_input=is_input)
    (call,), (same,) = (each._interface.publish_artifact.call_args_list for each in (public, ours))
    assert call.args[1:] == same.args[1:] and call.kwargs == same.kwargs
    assert not ours._interface.deliver_artifact.called  # which would write no record


def test_an_artifact_of_the_server_is_recorded_as_w_and_b_does(monkeypatch):
    from wandb.sdk.artifacts import _gqlutils

    found = MagicMock(id="a", entity="team", project="fcnlab")
    api = MagicMock(**{"artifact.return_value": found})
    monkeypatch.setattr(wandb, "Api", lambda timeout: api)
    recorded: list[tuple] = []
    monkeypatch.setattr(_gqlutils, "record_artifact_use", lambda *words, **named: recorded.append((words, named)))
    run = SimpleNamespace(entity="mine", project="p", id="r")
    use_artifact(run, "team/fcnlab/checkpoint-x:v3", 5)
    public = MagicMock()
    public._settings._offline = False
    public._settings.entity, public._settings.project, public._settings.run_id = "mine", "p", "r"
    public._public_api.return_value = MagicMock(_service_api=api._service_api, **{"_artifact.return_value": found})
    inner = wandb.Run.use_artifact
    while hasattr(inner, "__wrapped__"):
        inner = inner.__wrapped__
    inner(public, "team/fcnlab/checkpoint-x:v3")
    assert recorded[0] == recorded[1]
