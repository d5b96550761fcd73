"""``fcnlab compare``. Nothing here imports torch, so that it starts quickly on any machine."""

import logging
from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from fcnlab.comparison import comparison
from fcnlab.comparison.export import check_export_folder
from fcnlab.comparison.grouping import GroupingRules
from fcnlab.comparison.report import FILES, ComparisonReport
from fcnlab.comparison.runs import ExcludedRun, read_runs
from fcnlab.comparison.terminal import plan_text
from fcnlab.config.schemas import is_group_names
from fcnlab.config.validation import ConfigError, validate_config
from fcnlab.errors import UserError
from fcnlab.escaping import escape_line
from fcnlab.files.reading import Unreadable, read_yaml
from fcnlab.runs.origins import ENVIRONMENT
from fcnlab.runs.provenance import command
from fcnlab.runs.run_folder import RunFolder, check_report_folder

log = logging.getLogger("fcnlab")
MOST_LISTED = 10  # excluded folders in the terminal; the page lists all


def compare(cfg: DictConfig, run: RunFolder) -> None:
    """Compare the runs below some folders; write the HTML page, Markdown and CSV files to the output folder."""
    validate_config(cfg)
    check_report_folder(run.path, FILES)
    if cfg.export is not None:
        check_export_folder(Path(cfg.export))
    elif cfg.worst:
        log.warning("worst=%d has no effect without export=FOLDER, where the images are drawn", cfg.worst)
    report = comparison_report(cfg, command(run.context))
    plan = plan_text(report.comparison, report.plans()) if cfg.plan else None
    run.accept(cfg)
    log.info(str(report))
    if plan:
        log.info(plan)
    log.info("Page: %s", report.save(run.path))
    if cfg.export is not None:
        log.info("%d files for a paper: %s", len(report.export(cfg.export, cfg.worst)), cfg.export)


def comparison_report(
    cfg: DictConfig, command: str, argument: str = "runs", names: Mapping[str, str] | str | None = None
) -> ComparisonReport:
    """Compare the runs below some folders, and warn about those that are excluded.

    ``command`` is the command line of the comparison, ``argument`` what the user calls the folders. ``names`` takes the
    place of ``cfg.names``: any text may be a key or a name, which an override cannot express.
    """
    check_split(cfg)
    names = group_names(cfg.names if names is None else names)
    runs, left_out = read_runs([existing_folder(name, argument) for name in cfg.runs])
    warn_about_excluded_folders(left_out, "unusable")
    rules = GroupingRules(tuple(cfg.split_by), tuple(cfg.merge_over))
    result = comparison.compare(runs, cfg.baseline, cfg.resamples, cfg.confidence, rules, cfg.equivalence, names)
    warn_about_excluded_folders(result.left_out, "excluded")
    result.left_out[:0] = left_out
    return ComparisonReport(result, command)


def check_split(cfg: DictConfig) -> None:
    """Check split_by; merge_over is checked later, because its valid values depend on the runs."""
    unknown = [name for name in cfg.split_by if name not in ENVIRONMENT]
    if unknown:
        known = ", ".join(ENVIRONMENT)
        raise ConfigError(
            f"split_by=[{','.join(unknown)}] is not valid: choose from {known}; all other settings always split groups"
        )
    both = [name for name in cfg.split_by if name in cfg.merge_over]
    if both:
        raise ConfigError(
            f"split_by=[{','.join(both)}] contradicts merge_over=[{','.join(both)}]: set only one of them"
        )


def group_names(names: Mapping[str, str] | DictConfig | str | None) -> dict[str, str]:
    """Return the names of groups that ``names=`` contains, or the YAML file that it names."""
    if names is None:
        return {}
    chosen = _names_in_file(names) if isinstance(names, str) else dict(names)
    if not is_group_names(chosen):
        raise UserError(f'names={names}: each group needs a text, as in fcn8s: "FCN-8s"')
    return {str(group): name for group, name in chosen.items()}


def _names_in_file(name: str) -> dict[str, str]:
    path = Path(name).resolve()
    if not path.is_file():
        raise UserError(
            f"names={name}: the file does not exist; set names= to a YAML file with lines such as 'fcn8s: FCN-8s', or"
            ' to the names themselves, such as {fcn8s: "FCN-8s"}'
        )
    try:
        return read_yaml(path.parent, path.name)
    except (OSError, Unreadable) as error:
        raise UserError(f"names={name} cannot be read: {error}") from error


def existing_folder(name: str, argument: str) -> Path:
    path = Path(name)
    if not path.is_dir():
        raise UserError(
            f"{argument}={name}: the folder does not exist. Choose a folder with runs, such as outputs/sweeps"
        )
    return path


def warn_about_excluded_folders(left_out: list[ExcludedRun], kind: str) -> None:
    """Log the folders that are not part of the comparison, and why."""
    for out in left_out[:MOST_LISTED]:
        log.warning("%s: %s: %s", kind.capitalize(), escape_line(str(out.folder)), escape_line(out.reason))
    if len(left_out) > MOST_LISTED:
        log.warning("%s: %d more folders, listed on the page", kind.capitalize(), len(left_out) - MOST_LISTED)
