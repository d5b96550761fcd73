"""Weights & Biases: artifacts of a run that is offline, requests of a run that logs, and its helper process.

Tested with wandb 0.31.0.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def log_artifact(run: Any, artifact: Any, aliases: Sequence[str] = (), is_input: bool = False) -> None:
    """Log an artifact as an output or an input of a run, without waiting; W&B stores equal content of one name once.

    The record is in the .wandb file, so that ``wandb sync`` can upload the artifact. The public ``Run.log_artifact`` of
    a run that is online writes no record, and ``Run.use_artifact`` raises an error offline and waits without a limit
    online. Offline, they call the same function with these arguments.
    """
    artifact, names = run._prepare_artifact(artifact, None, None, list(aliases) or None)
    run._interface.publish_artifact(
        run, artifact, names, None, finalize=True, is_user_created=is_input, use_after_commit=is_input
    )


def use_artifact(run: Any, address: str, timeout: int) -> None:
    """Record an artifact of W&B's server as an input of a run that is online.

    The public ``Run.use_artifact`` asks an API without a limit in time, which :func:`log_tables_without_waiting`
    replaces.
    """
    import wandb
    from wandb.sdk.artifacts._gqlutils import record_artifact_use

    api = wandb.Api(timeout=timeout)
    artifact = api.artifact(address)
    record_artifact_use(
        api._service_api,
        artifact_id=artifact.id,
        entity_name=run.entity,
        project_name=run.project,
        run_name=run.id,
        artifact_entity_name=artifact.entity,
        artifact_project_name=artifact.project,
    )


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


class _UnaskedServer:
    """In place of the API with which a run checks artifacts: nothing is asked, and no artifact is awaited."""

    def __init__(self):
        self.settings = {"entity": "", "project": ""}

    def _expected_artifact_type(self, **artifact: str) -> None:
        """Return no expected type, so that any is accepted."""

    def _set_artifact_save_handle(self, artifact: Any, handle: Any) -> None:
        """Keep no handle: it serves to wait for the upload."""


def log_tables_without_waiting(run: Any) -> None:
    """Let an online run log tables without a request: W&B would verify the key first, which may take 19 s, and fail.

    The table would then be missing in the .wandb file, too.
    """
    run._cached_public_api = _UnaskedServer()


def helper_process() -> subprocess.Popen | None:
    """Return the process of W&B (wandb-core) that this process has started, or None."""
    from wandb.sdk import wandb_setup

    connection = getattr(wandb_setup._singleton, "_connection", None)
    process = getattr(connection, "_proc", None)
    return getattr(process, "_process", None)


def has_other_runs() -> bool:
    """Return whether this process has W&B runs that are not finished."""
    from wandb.sdk import wandb_setup

    return bool(getattr(wandb_setup._singleton, "_active_runs", ()))


def was_sent_in_time(run: Any) -> bool:
    """Return whether a finished run did not reach its ``finish_timeout``."""
    return not getattr(run, "_finish_timed_out", False)  # a disabled run has none
