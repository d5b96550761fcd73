"""The overrides that a staged training run passes to its stages, and the check that no setting is lost."""

from collections.abc import Iterator, Sequence

from omegaconf import DictConfig, OmegaConf

from fcnlab.config.components import Settings, leaves_of
from fcnlab.config.composition import compose_command, without_hydra
from fcnlab.config.overrides import override_key
from fcnlab.config.validation import ConfigError
from fcnlab.errors import UserError
from fcnlab.runs.settings import differences, shown_changes

WHOLE_RUN_KEYS = ("experiment", "stages", "checkpoint", "from_run")  # used by the whole run only, not passed on


def stage_overrides(overrides: Sequence[str]) -> list[str]:
    """Return the overrides of a staged run that every stage gets."""
    return [override for override in overrides if override_key(override) not in WHOLE_RUN_KEYS]


def check_settings_reach_stages(
    cfg: DictConfig, overrides: Sequence[str], search_paths: Sequence[str], config_dir: str | None = None
) -> None:
    """Raise a ConfigError if a staged experiment has settings of its own: no stage would get them.

    The stages get only typed overrides. The experiment has no settings of its own if it composes like one of its
    stages, which it may extend, or like the default. ``overrides`` are the typed ones, ``search_paths`` those that add
    config folders, and ``config_dir`` the folder of ``--config-dir``.
    """
    whole, closest = _settings(cfg), None
    for name, candidate in _without_own_settings(cfg, [*search_paths, *stage_overrides(overrides)], config_dir):
        lost = differences(candidate, whole)
        if not lost:
            return
        if closest is None or len(lost) < len(closest[1]):
            closest = name, lost
    if closest:
        name, lost = closest
        experiment = next((word for word in overrides if override_key(word) == "experiment"), "the experiment")
        shown = "; ".join(shown_changes(lost, f"{name} has"))
        raise ConfigError(
            f"{experiment} sets more than its stages, and no stage would get these settings: {shown}."
            f" Set them in the experiments of the stages ({', '.join(cfg.stages)}), or on the command line, which"
            " applies to all stages"
        )


def _without_own_settings(
    cfg: DictConfig, shared: Sequence[str], config_dir: str | None
) -> Iterator[tuple[str, Settings]]:
    """Yield the settings that a staged experiment without own settings may have, the most likely first."""
    for stage in dict.fromkeys(cfg.stages):
        composed = compose_command("train", [f"experiment={stage}", *shared], config_dir)
        yield f"experiment={stage}", _settings(without_hydra(composed))
    try:
        default = compose_command("train", shared, config_dir)
    except UserError:  # an override needs an option that the experiment chooses
        return
    yield "the default", _settings(without_hydra(default))


def _settings(cfg: DictConfig) -> Settings:
    tree = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(tree, dict)
    return leaves_of({key: value for key, value in tree.items() if key not in WHOLE_RUN_KEYS})
