"""Repeat a recorded run (``from_run``): apply its recorded configuration."""

from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from fcnlab.config.components import iter_components, iter_strings, leaves_of, to_plain
from fcnlab.config.overrides import override_key, shell_join, typed_value
from fcnlab.config.plugins import plugins
from fcnlab.config.trust import OUTPUT_PATH_KEYS, setting_rejection
from fcnlab.config.validation import looked_up
from fcnlab.errors import UserError
from fcnlab.messages import log_info, log_warning
from fcnlab.runs.provenance import PACKAGES, commit
from fcnlab.runs.run_record import RunRecord, is_under, recorded_config
from fcnlab.runs.settings import differences, is_free
from fcnlab.runs.source_fingerprint import package_digest
from fcnlab.training.hardware import PRECISIONS, precision

PRECISION = "trainer.precision"


def apply_recorded_config(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Apply the recorded values of settings whose defaults have changed since the run that ``from_run`` names.

    Settings in ``overrides``, those of this command, keep their values.

    Raises
    ------
    UserError
        There is no such record; a recorded value is one that a record may not set.
    """
    if not cfg.from_run:
        return
    folder = Path(cfg.from_run)
    record, then = RunRecord(folder).facts, recorded_config(folder, f"from_run={cfg.from_run}")
    new_keys = {override_key(each).replace("/", ".") for each in overrides if each not in record["overrides"]}
    recorded, today = (leaves_of(OmegaConf.to_container(tree, resolve=False)) for tree in (then, cfg))
    kept = {
        path for path in recorded | today if is_under(path, new_keys | {"from_run", "checkpoint", "sweep", "logger"})
    }
    used = _resolved_config(folder)
    if PRECISION not in kept:
        _repeat_precision(cfg, used)
        kept.add(PRECISION)
    for path, value in recorded.items():
        is_output_path = path.rpartition(".")[2] in OUTPUT_PATH_KEYS  # belongs to this run
        if path not in kept and not is_output_path and (path not in today or today[path] != value):
            _check_harmless(path, value, folder)
            OmegaConf.update(cfg, path, value, force_add=True)
            if path.startswith("data.") and "data.root" not in new_keys:
                cfg.sweep.recorded = True
            log_info(f"The default of {path} is now {today.get(path)!r}: using the recorded {value!r}")
    for path in today.keys() - recorded.keys() - kept:
        if not is_under(path, set(recorded)):  # otherwise a recorded value replaces its group
            log_warning(f"{path}={today[path]!r} is a new setting since the recorded run")
    _warn_about_looked_up_values(cfg, used, kept)
    if any(override_key(override) == "checkpoint" for override in record["overrides"]):
        log_warning("the recorded run resumed from a checkpoint; this run starts from the beginning")
    packages = record.get("packages")
    for name, version in packages.items() if isinstance(packages, dict) else ():
        if name in PACKAGES and metadata.version(name) != version:
            log_warning(f"the recorded run used {name} {version}, this run uses {metadata.version(name)}")
    for message in _changed_plugins(record):
        log_warning(message)
    if record.get("commit") != commit():
        log_warning(f"the recorded run used commit {record.get('commit')}, this run uses {commit()}")


def _changed_plugins(record: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each plugin of a recorded run whose code is another one here."""
    recorded = record.get("plugins")
    for plugin in plugins():
        then = recorded.get(plugin.name) if isinstance(recorded, dict) else None
        if isinstance(then, dict) and then.get("source") != (source := package_digest(plugin.top_package)):
            yield (
                f"the recorded run used plugin {plugin.name} {then.get('version')!s:.50} with source"
                f" {then.get('source')!s:.50}, this run uses {plugin.version} with source {source}"
            )


def _resolved_config(folder: Path) -> dict[str, Any]:
    """Return the values that the recorded run used, by path; none if it has no config.yaml."""
    if not (folder / "config.yaml").is_file():
        return {}
    return leaves_of(to_plain(recorded_config(folder, f"from_run={folder}", "config.yaml")))


def _warn_about_looked_up_values(cfg: DictConfig, used: dict[str, Any], kept: set[str]) -> None:
    """Warn where a resolver returns another value than for the recorded run, such as an environment variable's.

    ``used`` are the values of that run, and ``kept`` the paths whose values need not be those of that run.
    """
    today = {path: value for path, value in looked_up(cfg).items() if path in used and path not in kept}
    changed = differences({path: used[path] for path in today}, today)
    for path, change in changed.items():
        if not is_free(path):
            log_warning(
                f"{path}={change.new!r} here, but that run had {change.old!r}: the configuration looks this value up"
                f" when a run starts. To repeat the run, type {shell_join([f'{path}={typed_value(change.old)}'])}"
            )


def _repeat_precision(cfg: DictConfig, used: dict[str, Any]) -> None:
    """Use the precision that the recorded run used: its ``auto`` or ``fastest`` may mean another one here."""
    recorded = used.get(PRECISION)
    if recorded in PRECISIONS and recorded != precision(cfg):
        log_info(f"Using trainer.precision={recorded}, as the recorded run did")
        cfg.trainer.precision = recorded


def _check_harmless(path: str, value: Any, folder: Path) -> None:
    """Refuse values that no record may set, and interpolations that the current configuration does not have here."""
    foreign = next(iter_components({path: value}), None) is not None or "$" in f"{path}{value}"
    leaves = iter_strings(value) if isinstance(value, list | dict) else [value]  # at any depth
    reason = next(filter(None, (setting_rejection(path, leaf) for leaf in leaves)), "")
    if foreign or reason or setting_rejection(path, None):
        raise UserError(
            f"from_run={folder}: the recorded {path}={value!r:.200} is not in conf/ and may not be set by a record"
            f"{f': {reason}' if reason else ''}. Add {path}=VALUE to the command to set it yourself"
        )
