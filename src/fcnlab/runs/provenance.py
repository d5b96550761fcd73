"""Collect the provenance of a run: versions, machine, command and commit."""

import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcnlab.config.components import iter_components
from fcnlab.config.locations import config_roots
from fcnlab.config.overrides import list_as_typed, shell_join
from fcnlab.config.plugins import Plugin, plugins
from fcnlab.config.run_context import RunContext
from fcnlab.runs.settings import JOB_INTERPOLATION
from fcnlab.runs.source_fingerprint import package_digest
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


def used_plugins(context: RunContext, config: Any) -> dict[str, dict[str, str | None]]:
    """Return the plugins whose options or classes a run uses, by name.

    ``source`` is a hash of the package's Python files, and ``commit`` that of its checkout, as :func:`commit`.
    """
    targets = [str(node["_target_"]) for _, node in iter_components(config)]
    used = [plugin for plugin in plugins() if _is_used(plugin, context, targets)]
    return {
        plugin.name: {
            "package": plugin.package,
            "version": plugin.version,
            "commit": commit(plugin.conf.parent / "__init__.py"),
            "source": package_digest(plugin.top_package),
        }
        for plugin in used
    }


def _is_used(plugin: Plugin, context: RunContext, targets: Sequence[str]) -> bool:
    chosen = [Path(group, f"{option}.yaml") for group, option in context.options.items() if option]
    folders = (next((root for root in config_roots() if (root / path).is_file()), None) for path in chosen)
    return plugin.conf in folders or any(target.startswith(f"{plugin.top_package}.") for target in targets)


def commit(file: Path = Path(__file__)) -> str | None:
    """Return the commit of a file's checkout, with "+changes" for uncommitted changes; None outside a checkout.

    By default it is fcnlab's.
    """
    description = git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes", here=file)
    return None if description is None else description.strip()


def git(*words: str, here: Path = Path(__file__)) -> str | None:
    """Return the output of git in the checkout of a file; None if it is in none, also inside another repository."""
    try:
        for arguments in (("ls-files", "--error-unmatch", here.name), words):
            done = subprocess.run(["git", *arguments], cwd=here.parent, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")
