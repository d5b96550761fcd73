# pyright: strict
"""A comparison together with its texts and files, for ``fcnlab compare`` and for Python."""

import logging
from dataclasses import dataclass
from pathlib import Path

from fcnlab.comparison.comparison import Comparison
from fcnlab.comparison.csv_files import write_csv
from fcnlab.comparison.export import check_export_folder, export
from fcnlab.comparison.grouping import Group
from fcnlab.comparison.markdown import markdown
from fcnlab.comparison.page import write_page
from fcnlab.comparison.pairs import Pair
from fcnlab.comparison.pdf import HINT, is_available
from fcnlab.comparison.plan import Plan, plans
from fcnlab.comparison.terminal import terminal
from fcnlab.files.writing import atomic_write

FILES = (
    "comparison.html",
    "comparison.md",
    "groups.csv",
    "pairs.csv",
    "class_differences.csv",
    "per_image.csv",
    "runs.csv",
)


@dataclass(frozen=True, repr=False)
class ComparisonReport:
    """A comparison of runs; a notebook shows it as tables.

    Attributes
    ----------
    comparison
        All facts: groups, pairs, effects of settings, excluded runs, notes.
    command
        The command line that makes the same comparison; the page shows it.
    """

    comparison: Comparison
    command: str

    @property
    def groups(self) -> list[Group]:
        """The groups of runs that differ in their seed only, by descending mIoU."""
        return self.comparison.groups

    @property
    def pairs(self) -> list[Pair]:
        """The compared pairs of groups, with difference, intervals and significance."""
        return self.comparison.pairs

    def plans(self) -> list[Plan]:
        """Return for each pair which differences more seeds or images would find, from the variance of these runs.

        Raises
        ------
        UserError
            No pair has three seeds of each group.
        """
        return plans(self.pairs)

    def markdown(self) -> str:
        """Return the tables as Markdown, as in ``comparison.md``."""
        return markdown(self.comparison)

    def save(self, folder: str | Path) -> Path:
        """Write ``comparison.html``, ``comparison.md`` and five CSV files; return the path of the page."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_csv(folder, self.comparison)
        with atomic_write(folder / "comparison.md") as part:
            part.write_text(self.markdown(), encoding="utf-8", errors="replace")
        write_page(folder / "comparison.html", self.comparison, self.command)
        return folder / "comparison.html"

    def export(self, folder: str | Path, worst: int = 0) -> list[Path]:
        """Write each table as CSV and LaTeX, and each figure as SVG and PDF, for a paper; return the paths.

        PDF needs matplotlib (``pip install 'fcnlab[paper]'``); without it, a warning says so. ``worst`` is the number
        of images of each group that are drawn as PNG, with overlays of ground truth and prediction: those with the
        lowest mean IoU, as far as the runs' predictions.zip contain them.

        Raises
        ------
        UserError
            The folder contains files that are not those of an earlier export, or cannot be written.
        """
        folder = Path(folder)
        check_export_folder(folder)
        if not is_available():
            logging.getLogger("fcnlab").warning("No figure is exported as PDF. %s", HINT)
        return [folder / name for name in export(folder, self.comparison, self.command, worst)]

    def __str__(self) -> str:
        return terminal(self.comparison)

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        return self.markdown()
