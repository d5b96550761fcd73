# pyright: strict
"""A comparison together with its texts and files, for ``fcnlab compare`` and for Python."""

from dataclasses import dataclass
from pathlib import Path

from fcnlab.comparison import tables
from fcnlab.comparison.comparison import Comparison
from fcnlab.comparison.grouping import Group
from fcnlab.comparison.page import write_page
from fcnlab.comparison.pairs import Pair
from fcnlab.comparison.plan import Plan, plans
from fcnlab.files.writing import atomic_write

FILES = ("comparison.html", "comparison.md", "groups.csv", "pairs.csv", "per_image.csv", "runs.csv")


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
        return tables.markdown(self.comparison)

    def save(self, folder: str | Path) -> Path:
        """Write ``comparison.html``, ``comparison.md`` and four CSV files; return the path of the page."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tables.write_csv(folder, self.comparison)
        with atomic_write(folder / "comparison.md") as part:
            part.write_text(self.markdown(), encoding="utf-8", errors="replace")
        write_page(folder / "comparison.html", self.comparison, self.command)
        return folder / "comparison.html"

    def __str__(self) -> str:
        return tables.terminal(self.comparison)

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        return self.markdown()
