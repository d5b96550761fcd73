"""from_run: the configuration of a recorded run in the place of today's."""

from importlib import metadata
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.components import iter_components, iter_leaves, to_plain
from fcnlab.config.overrides import override_key, plain_overrides, shell_join, typed_value
from fcnlab.config.trust import OUTPUT_PATH_KEYS, setting_rejection
from fcnlab.config.validation import looked_up
from fcnlab.errors import UserError
from fcnlab.messages import log_info, log_warning
from fcnlab.runs.provenance import PACKAGES, commit
from fcnlab.runs.run_record import RunRecord, is_under, recorded_config
from fcnlab.runs.settings import differences, is_free
from fcnlab.training.hardware import PRECISIONS, precision

PRECISION = "trainer.precision"


def apply_recorded_config(cfg: DictConfig) -> None:
    """Where ``from_run`` repeats a record: give ``cfg`` the recorded values of settings whose defaults have changed.

    Settings that were typed for this run are left alone.

    Raises
    ------
    UserError
        There is no such record; a recorded value is none that a record may set.
    """
    if not cfg.from_run:
        return
    folder = Path(cfg.from_run)
    record, then = RunRecord(folder).facts, recorded_config(folder, f"from_run={cfg.from_run}")
    words = plain_overrides(HydraConfig.get().overrides.task)
    typed = {override_key(word).replace("/", ".") for word in words if word not in record["overrides"]}
    recorded, today = (iter_leaves(OmegaConf.to_container(tree, resolve=False)) for tree in (then, cfg))
    ours = {path for path in recorded | today if is_under(path, typed | {"from_run", "checkpoint", "sweep"})}
    if PRECISION not in ours:
        _repeat_precision(cfg, folder)
        ours.add(PRECISION)
    for path, value in recorded.items():
        where_to = path.rpartition(".")[2] in OUTPUT_PATH_KEYS  # which is today's business
        if path not in ours and not where_to and (path not in today or today[path] != value):
            _check_harmless(path, value, folder)
            OmegaConf.update(cfg, path, value, force_add=True)
            if path.startswith("data.") and "data.root" not in typed:
                cfg.sweep.recorded = True
            log_info(f"Since that run the default of {path} has become {today.get(path)!r}: its {value!r} is used")
    for path in today.keys() - recorded.keys() - ours:
        if not is_under(path, set(recorded)):  # else a value of that run stands in its group's place
            log_warning(f"{path}={today[path]!r} is new since that run")
    _warn_of_values_looked_up(cfg, folder, ours)
    if any(override_key(word) == "checkpoint" for word in record["overrides"]):
        log_warning("that run went on with a checkpoint; this one starts from the beginning")
    then_had = record.get("packages")
    for name, version in then_had.items() if isinstance(then_had, dict) else ():
        if name in PACKAGES and metadata.version(name) != version:
            log_warning(f"that run had {name} {version}, here is {metadata.version(name)}")
    if record.get("commit") != commit():
        log_warning(f"that run was of commit {record.get('commit')}, this is {commit()}")


def _warn_of_values_looked_up(cfg: DictConfig, folder: Path, typed: set[str]) -> None:
    """Warn where a resolver finds another value than it found for that run, in an environment variable, say."""
    if not (folder / "config.yaml").is_file():
        return
    resolved = iter_leaves(to_plain(recorded_config(folder, f"from_run={folder}", "config.yaml")))
    today = {path: value for path, value in looked_up(cfg).items() if path in resolved and path not in typed}
    changed = differences({path: resolved[path] for path in today}, today)
    for path, change in changed.items():
        if not is_free(path):
            log_warning(
                f"{path}={change.new!r} here, but that run had {change.old!r}: the configuration looks this value up"
                f" when a run starts. To repeat the run, type {shell_join([f'{path}={typed_value(change.old)}'])}"
            )


def _repeat_precision(cfg: DictConfig, folder: Path) -> None:
    """Compute in what the run computed in, whatever was typed for it: ``auto`` and ``fastest`` may be another here."""
    if not (folder / "config.yaml").is_file():
        return
    used = iter_leaves(to_plain(recorded_config(folder, f"from_run={folder}", "config.yaml"))).get(PRECISION)
    if used in PRECISIONS and used != precision(cfg):
        log_info(f"That run computed in trainer.precision={used}: so does this one")
        cfg.trainer.precision = used


def _check_harmless(path: str, value: Any, folder: Path) -> None:
    """Refuse what no record may set, and interpolations that today's configuration does not have in this place."""
    foreign = next(iter_components({path: value}), None) is not None or "$" in f"{path}{value}"
    leaves_of = value if isinstance(value, list) else [value]
    why = next(
        filter(None, (setting_rejection(path, leaf) for leaf in leaves_of if not isinstance(leaf, list | dict))), ""
    )
    if foreign or why or setting_rejection(path, None):
        raise UserError(
            f"from_run={folder} wants {path}={value!r:.200}, which today's conf/ does not; refused"
            f"{f': {why}' if why else ''}. Type {path}=VALUE behind it"
        )
