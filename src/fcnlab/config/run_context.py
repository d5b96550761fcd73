"""The command behind a run as plain values: what was typed, which options were chosen, where it writes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.types import RunMode
from omegaconf import OmegaConf

from fcnlab.config.overrides import (
    config_dir,
    plain_overrides,
    searchpath_folders,
    searchpath_overrides,
    shell_override,
)


@dataclass(frozen=True)
class RunContext:
    """What a verb knows about the command that started it.

    Attributes
    ----------
    verb
        Such as "train".
    folder
        The output folder.
    overrides, hydra_overrides
        The typed overrides of settings, and those of Hydra's own settings.
    options
        The chosen option of each config group; None for an optional group without one.
    config_dir
        The folder of ``--config-dir``.
    job_number
        The number of this job in a sweep; None outside of one.
    in_sweep
        Whether the command has ``-m``.
    cwd
        The current directory at the start.
    hydra_yaml
        The content of ``.hydra/hydra.yaml``.
    from_shell
        Whether the user has typed a command; otherwise a function of :mod:`fcnlab.api` was called, and messages name
        its arguments.
    """

    verb: str
    folder: Path
    overrides: Sequence[str] = ()
    hydra_overrides: Sequence[str] = ()
    options: Mapping[str, str | None] = field(default_factory=dict)
    config_dir: str | None = None
    job_number: int | None = None
    in_sweep: bool = False
    cwd: str = "."
    hydra_yaml: str = ""
    from_shell: bool = True

    def sets(self, key: str) -> bool:
        """Return whether the command sets a key."""
        return any(word.lstrip("+").startswith(f"{key}=") for word in self.overrides)

    @property
    def folder_setting(self) -> str:
        """What sets the output folder: a setting of the command, or an argument of the function."""
        return "hydra.run.dir" if self.from_shell else "folder"

    def how_to_resume(self, checkpoint: str) -> str:
        """Return the sentence on how to resume this run from "last" or "auto"."""
        if self.from_shell:
            words = f"checkpoint={checkpoint} {shell_override('hydra.run.dir', self.folder)}"
            return f"To resume, add to the same command: {words}"
        return f"To resume, add 'checkpoint={checkpoint}' and folder={str(self.folder)!r} to the same call"

    @property
    def typed_folders(self) -> list[Path]:
        """The config folders that the command names: that of ``--config-dir``, and those of ``hydra.searchpath``."""
        return [*([Path(self.config_dir)] if self.config_dir else []), *searchpath_folders(self.searchpath)]

    @property
    def searchpath(self) -> list[str]:
        """The overrides of ``hydra.searchpath``."""
        return searchpath_overrides(self.hydra_overrides)

    @property
    def identifying_options(self) -> dict[str, str]:
        """The chosen options of fcnlab's own groups, by the last part of the group: they identify a run."""
        return {
            group.rpartition("/")[2]: option
            for group, option in self.options.items()
            if option is not None and not group.startswith("hydra/")
        }


def run_context(config: Any, from_shell: bool = True) -> RunContext:
    """Return the context of a run from Hydra's own config, ``HydraConfig.instance().cfg``."""
    hydra = config.hydra
    choices = hydra.runtime.choices.items()
    return RunContext(
        verb=str(hydra.job.config_name),
        folder=Path(hydra.runtime.output_dir),
        overrides=tuple(plain_overrides(hydra.overrides.task)),
        hydra_overrides=tuple(plain_overrides(hydra.overrides.hydra)),
        options={str(group): None if option is None else str(option) for group, option in choices},
        config_dir=config_dir(hydra),
        job_number=OmegaConf.select(hydra, "job.num"),
        in_sweep=hydra.mode == RunMode.MULTIRUN,
        cwd=str(hydra.runtime.cwd),
        hydra_yaml=OmegaConf.to_yaml(config),
        from_shell=from_shell,
    )
