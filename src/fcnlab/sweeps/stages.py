"""What a training in stages hands to its stages, and the check that nothing else was set for it."""

from collections.abc import Iterator, Sequence

from hydra import compose
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.components import Settings, iter_leaves
from fcnlab.config.overrides import override_key
from fcnlab.config.validation import ConfigError
from fcnlab.runs.settings import differences, shown_changes

WHOLE_RUN_KEYS = ("experiment", "stages", "checkpoint", "from_run")  # settings that the whole uses, and no stage gets


def stage_overrides(words: Sequence[str]) -> list[str]:
    """Of the words that were typed for the whole, those that every stage gets."""
    return [word for word in words if override_key(word) not in WHOLE_RUN_KEYS]


def check_settings_reach_stages(cfg: DictConfig, words: Sequence[str], where: Sequence[str]) -> None:
    """Refuse settings of a staged experiment's own: its stages get typed words alone, and its record would hold others.

    The whole has none where it is composed as one of its stages is, which it may extend, or as without an experiment.
    ``words`` are those typed for it, ``where`` those that say where options are found.

    Raises
    ------
    ConfigError
        It has some; it names them.
    """
    whole, closest = _settings(cfg), None
    for name, candidate in _without_settings_of_its_own(cfg, words, where):
        lost = differences(candidate, whole)
        if not lost:
            return
        if closest is None or len(lost) < len(closest[1]):
            closest = name, lost
    if closest:
        name, lost = closest
        chosen = next((word for word in words if override_key(word) == "experiment"), "the experiment")
        shown = "; ".join(shown_changes(lost, f"{name} has"))
        raise ConfigError(
            f"no stage would get what {chosen} sets besides its stages: {shown}."
            f" Set it in the experiments of the stages ({', '.join(cfg.stages)}), or type it: typed settings go to all"
        )


def _without_settings_of_its_own(
    cfg: DictConfig, words: Sequence[str], where: Sequence[str]
) -> Iterator[tuple[str, Settings]]:
    """What a staged experiment is composed as that only names its stages; the more likely first."""
    shared = [*where, *stage_overrides(words)]
    for stage in dict.fromkeys(cfg.stages):
        yield f"experiment={stage}", _settings(compose("train", [f"experiment={stage}", *shared]))
    try:
        default = compose("train", shared)
    except HydraException:  # a typed word is for what the experiment chooses
        return
    yield "the default", _settings(default)


def _settings(cfg: DictConfig) -> Settings:
    tree = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(tree, dict)
    return iter_leaves({key: value for key, value in tree.items() if key not in WHOLE_RUN_KEYS})
