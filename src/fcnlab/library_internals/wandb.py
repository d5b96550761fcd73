"""Weights & Biases: inputs of a run that is offline, references of other kinds, and hashes of files.

Tested with wandb 0.31.0.
"""

from pathlib import Path
from typing import Any


def log_as_input(run: Any, artifact: Any) -> None:
    """Log an artifact as an input of a run, without waiting; W&B stores equal content of one name once.

    The public ``Run.use_artifact`` raises an error if the run is offline, and otherwise waits without a limit. It calls
    this method with these arguments.
    """
    run._log_artifact(artifact, is_user_created=True, use_after_commit=True)


def add_reference(artifact: Any, name: str, address: str) -> None:
    """Add a reference without a file to an artifact.

    The public ``Artifact.add_reference`` prints a warning for an address that W&B cannot read, even if no checksum is
    requested.
    """
    from wandb.sdk.artifacts.artifact_manifest_entry import ArtifactManifestEntry

    entry: Any = {"path": name, "ref": address, "digest": address}
    artifact.manifest.add_entry(ArtifactManifestEntry(**entry))


def has_digest(entry: Any, path: Path) -> bool:
    """Return whether a file has the hash of an artifact's entry; ``entry.download`` checks only files that it keeps."""
    from wandb.sdk.lib import hashutil

    algorithm = str(entry.digest_algorithm().name)
    compute = hashutil.xxh128_file_b64 if algorithm.endswith("XXH128") else hashutil.md5_file_b64
    return compute(str(path)) == entry.digest
