"""``fcnlab wandb``: recorded runs as W&B runs, and a view or a report of runs in W&B."""

import logging
import os

from omegaconf import DictConfig

from fcnlab.comparison.tables import headline
from fcnlab.config.run_context import RunContext
from fcnlab.config.validation import validate_config
from fcnlab.runs.provenance import command
from fcnlab.runs.run_folder import RunFolder
from fcnlab.tasks.compare import comparison_report
from fcnlab.tracking.accepted_values import accepted_project, accepted_title
from fcnlab.tracking.charts import grouping, library
from fcnlab.tracking.report import report
from fcnlab.tracking.saving import save
from fcnlab.tracking.workspace import workspace

log = logging.getLogger("fcnlab")
OF_PUSH = ("mode",)  # settings without effect in workspace and report
OF_COMPARISON = (  # settings without effect in push
    *("title", "baseline", "resamples", "confidence", "equivalence"),
    *("split_by", "merge_over", "names"),
)


def wandb(cfg: DictConfig, run: RunFolder) -> None:
    """Do what the word after ``fcnlab wandb`` says: push, workspace or report.

    Raises
    ------
    UserError
        No run can be used, W&B's server is needed and cannot be reached, or it refuses.
    """
    validate_config(cfg)
    _warn_about_ineffective_settings(cfg.action, run.context)
    if cfg.action == "push":
        return
    _save(cfg, run)


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


def _place(cfg: DictConfig, context: RunContext) -> tuple[str, str | None]:
    """Return the project and the entity: as typed, or from the environment; never from a record."""
    project = cfg.project if context.sets("project") else os.environ.get("WANDB_PROJECT") or cfg.project
    return accepted_project(project, "project"), cfg.entity or os.environ.get("WANDB_ENTITY")
