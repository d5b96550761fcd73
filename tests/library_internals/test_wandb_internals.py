"""Test the functions for W&B with its own artifacts."""

from pathlib import Path
from unittest.mock import MagicMock

import pytest
import wandb

from fcnlab.library_internals.wandb import add_reference, has_digest, log_as_input


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


def test_the_public_method_logs_a_new_input_in_the_same_way():
    """``Run.use_artifact`` of W&B, called on a double of a run that is online."""
    artifact, public, ours = wandb.Artifact("data", "dataset"), MagicMock(), MagicMock()
    public._settings._offline = False
    artifact.wait = lambda: artifact
    inner = wandb.Run.use_artifact
    while hasattr(inner, "__wrapped__"):  # its decorators look at a real run
        inner = inner.__wrapped__
    inner(public, artifact)
    log_as_input(ours, artifact)
    (call,), (same,) = public._log_artifact.call_args_list, ours._log_artifact.call_args_list
    assert call.args == same.args and {**call.kwargs, "aliases": None} == {**same.kwargs, "aliases": None}
