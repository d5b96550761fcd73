"""``fcnlab wandb``: recorded runs as W&B runs, and a view or a report of runs in W&B."""

import logging
import os

from omegaconf import DictConfig

from fcnlab.comparison.tables import headline
from fcnlab.config.overrides import shell_join
from fcnlab.config.run_context import RunContext
from fcnlab.config.validation import validate_config
from fcnlab.errors import UserError
from fcnlab.files.reading import display_path
from fcnlab.runs.provenance import command
from fcnlab.runs.run_folder import RunFolder
from fcnlab.tasks.compare import comparison_report, existing_folder, warn_about_excluded_folders
from fcnlab.tracking.accepted_values import accepted_project, accepted_title
from fcnlab.tracking.charts import grouping, library
from fcnlab.tracking.report import report
from fcnlab.tracking.saving import save
from fcnlab.tracking.workspace import workspace

log = logging.getLogger("fcnlab")
OF_PUSH = ("mode", "overwrite")  # settings without effect in workspace and report
OF_COMPARISON = (  # settings without effect in push
    *("title", "baseline", "resamples", "confidence", "equivalence"),
    *("split_by", "merge_over", "names"),
)


def wandb(cfg: DictConfig, run: RunFolder) -> None:
    """Do what the word after ``fcnlab wandb`` says: push, workspace or report.

    Raises
    ------
    UserError
        No run can be used, W&B's server is needed and cannot be reached, or it refuses; or a run is not completely
        pushed.
    """
    validate_config(cfg)
    _warn_about_ineffective_settings(cfg.action, run.context)
    (_push if cfg.action == "push" else _save)(cfg, run)


def _warn_about_ineffective_settings(action: str, context: RunContext) -> None:
    for name in OF_COMPARISON if action == "push" else OF_PUSH:
        if context.sets(name):
            log.warning("Warning: %s has no effect on fcnlab wandb %s", name, action)


def _save(cfg: DictConfig, run: RunFolder) -> None:
    """Compare the runs, and save a view or a report on them."""
    library("workspaces")  # whether it is installed, before any work
    comparison = comparison_report(cfg, command(run.context)).comparison
    title = accepted_title(cfg.title or headline(comparison))
    project, entity = _place(cfg, run.context)
    if missing := grouping(comparison).missing:
        log.warning("Warning: W&B's runs do not contain %s, so its tables do not group by it", ", ".join(missing))
    describe = workspace if cfg.action == "workspace" else report
    address = save(lambda owner: describe(comparison, project, owner, title), entity)
    run.accept(cfg)
    log.info("%s: %s", cfg.action.capitalize(), address)


def _push(cfg: DictConfig, run: RunFolder) -> None:
    """Write the runs below some folders to W&B."""
    from fcnlab.tracking.push import Destination, NoAnswer, exists, push, settled_mode  # imports torch
    from fcnlab.tracking.recorded_run import recorded_runs

    runs, excluded = recorded_runs([existing_folder(name, "runs") for name in cfg.runs])
    warn_about_excluded_folders(excluded, "excluded")
    if not runs:
        raise UserError(f"runs={','.join(cfg.runs)}: no run found. Choose a folder with runs of fcnlab train or eval")
    destination = Destination(*_place(cfg, run.context), settled_mode(cfg.mode))
    run.accept(cfg)
    written, failed, tried = [], [], 0
    for each in runs:
        tried += 1
        place = f"{tried}/{len(runs)} {display_path(each.folder)}"
        try:
            if existing := None if cfg.overwrite else exists(each, destination):
                log.info("%s: W&B has it (%s). overwrite=true replaces it", place, existing)
                continue
            written.append(push(each, destination))
        except UserError as error:
            log.warning("Warning: %s: %s", place, error)
            failed.append(display_path(each.folder))
            if isinstance(error, NoAnswer):
                break
            continue
        scores = f", without scores ({each.without_scores})" if each.without_scores else ""
        log.info("%s: %s%s", place, written[-1].address or "offline", scores)
    log.info("%d of %d runs are written to the project %s, %s", len(written), len(runs), *destination[::2])
    for files in (each.files for each in written if each.files):
        log.info("To upload it: %s", shell_join(["wandb", "sync", str(files)]))
    if failed:
        untried = f". {len(runs) - tried} more were not tried" if tried < len(runs) else ""
        raise UserError(f"not, or not completely, written: {', '.join(failed)}{untried}")


def _place(cfg: DictConfig, context: RunContext) -> tuple[str, str | None]:
    """Return the project and the entity: as typed, or from the environment; never from a record."""
    project = cfg.project if context.sets("project") else os.environ.get("WANDB_PROJECT") or cfg.project
    return accepted_project(project, "project"), cfg.entity or os.environ.get("WANDB_ENTITY") or None
