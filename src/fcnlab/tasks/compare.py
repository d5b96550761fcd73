"""``fcnlab compare``. Nothing here imports torch: it is read and counted, on any machine, at once."""

import logging
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fcnlab.comparison import comparison
from fcnlab.comparison.comparison import Comparison
from fcnlab.comparison.grouping import GroupingRules
from fcnlab.comparison.page import write_page
from fcnlab.comparison.runs import ExcludedRun, read_runs
from fcnlab.comparison.tables import markdown, terminal, write_csv
from fcnlab.config.overrides import plain_overrides, shell_join
from fcnlab.config.validation import ConfigError, validate_config
from fcnlab.errors import UserError
from fcnlab.escaping import escape_line
from fcnlab.files.writing import atomic_write
from fcnlab.runs.origins import ENVIRONMENT
from fcnlab.runs.output_folder import check_report
from fcnlab.runs.run_folder import RunFolder

log = logging.getLogger("fcnlab")
SAID = 10  # folders that are named in the terminal; the page has all


def compare(cfg: DictConfig, run: RunFolder) -> None:
    """Compare the runs below some folders; leave the page, Markdown and CSV in the run's own folder."""
    validate_config(cfg)
    check_split(cfg)
    folder = run.path
    check_report(folder, ("comparison.html", "comparison.md", "groups.csv", "pairs.csv", "runs.csv"))
    runs, left_out = read_runs([existing(name) for name in cfg.runs])
    say_left_out(left_out, "cannot be used")
    division = GroupingRules(tuple(cfg.split_by), tuple(cfg.merge_over))
    found = comparison.compare(runs, cfg.baseline, cfg.resamples, cfg.confidence, division)
    say_left_out(found.left_out, "left out")
    found.left_out[:0] = left_out
    run.accept(cfg)
    log.info(terminal(found))
    write(folder, found)
    log.info("The page: %s", folder / "comparison.html")


def check_split(cfg: DictConfig) -> None:
    """Raise ConfigError for words that split_by does not know; what merge_over may be depends on the runs."""
    unknown = [name for name in cfg.split_by if name not in ENVIRONMENT]
    if unknown:
        known = ", ".join(ENVIRONMENT)
        raise ConfigError(f"split_by=[{','.join(unknown)}]: choose some of {known}; every other setting splits anyway")
    both = [name for name in cfg.split_by if name in cfg.merge_over]
    if both:
        raise ConfigError(f"split_by=[{','.join(both)}] has no effect with merge_over=[{','.join(both)}]: give one")


def existing(name: str) -> Path:
    path = Path(name)
    if not path.is_dir():
        raise UserError(f"runs={name}: there is no such folder; give one that holds runs, such as outputs/sweeps")
    return path


def say_left_out(left_out: list[ExcludedRun], what: str) -> None:
    """Name what is no part of the comparison, and why."""
    for out in left_out[:SAID]:
        log.warning("%s: %s: %s", what.capitalize(), escape_line(str(out.folder)), escape_line(out.reason))
    if len(left_out) > SAID:
        log.warning("%s: %d more, which the page names", what.capitalize(), len(left_out) - SAID)


def write(folder: Path, found: Comparison) -> None:
    command = shell_join(["fcnlab", "compare", *plain_overrides(HydraConfig.get().overrides.task)])
    write_csv(folder, found)
    with atomic_write(folder / "comparison.md") as part:
        part.write_text(markdown(found), encoding="utf-8", errors="replace")
    write_page(folder / "comparison.html", found, command)
