"""Collect the provenance of a run: versions, machine, command and commit."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcnlab.config.overrides import list_as_typed, shell_join
from fcnlab.config.run_context import RunContext
from fcnlab.runs.settings import JOB_INTERPOLATION
from fcnlab.verbs import LISTS

if TYPE_CHECKING:
    import torch

PACKAGES = ("fcnlab", "torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "albumentations", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect results."""
    return {name: metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()}


def machine(device: "torch.device") -> dict[str, Any]:
    """Return package versions and the device."""
    import torch  # not at the top, so that commands without torch start quickly

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {"versions": versions(), "device": f"{device.type}: {name}"}


def command(context: RunContext) -> str:
    """Return the command line that repeats this run, also for a single job of a sweep."""
    lists = LISTS.get(context.verb, ())
    words = [list_as_typed(word, lists) for word in context.overrides if not word.startswith("sweep.")]
    if any(map(JOB_INTERPOLATION.search, words)) and context.job_number is not None:
        words.insert(0, f"hydra.job.num={context.job_number}")  # which ${hydra:job.num} means
    folder = ["--config-dir", context.config_dir] if context.config_dir else []
    return shell_join(["fcnlab", context.verb, *folder, *context.searchpath, *words])


def commit() -> str | None:
    """Return fcnlab's commit, with "+changes" for uncommitted changes; None outside a checkout."""
    description = git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes")
    return None if description is None else description.strip()


def git(*words: str) -> str | None:
    """Return the output of git in fcnlab's checkout; None outside a checkout, also inside another repository."""
    here = Path(__file__)
    try:
        for arguments in (("ls-files", "--error-unmatch", here.name), words):
            done = subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")
