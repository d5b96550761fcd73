"""All runs and sweeps below some folders, and what changed since a version of this state."""

import os
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

from fcnlab.comparison.runs import RUN_FILES, ExcludedRun, searched_folders
from fcnlab.errors import UserError
from fcnlab.escaping import escape_line
from fcnlab.files.locks import read_holder
from fcnlab.files.reading import display_path
from fcnlab.live_view.best_runs import MOST_SWEEPS, best_runs
from fcnlab.live_view.curves import NAMES
from fcnlab.live_view.run_state import STATUSES, RunState, Stamp, file_stamp, shown
from fcnlab.sweeps.manifest import NAME as SWEEP_RECORD
from fcnlab.sweeps.manifest import Job, Manifest, read_manifest

WATCHED = RUN_FILES | {"metrics.csv", "train.log", "eval.log"}  # a folder with any of these is shown
SEARCH_AFTER = 5.0  # seconds until new folders are searched again, and settled runs are checked
UPDATE_SECONDS = 0.2  # of one update; what is not read by then is read in the next ones
MOST_CURVES = 8  # runs whose curves are sent
MOST_NOTES = 20
STAGE = re.compile(r"[1-9]\d*-.")  # the name of a stage's folder, which is inside that of its run

Row = dict[str, Any]
Identity = tuple[int, int] | Path  # the number of a folder on its disk; the path of one that does not exist


class SweepState:
    """What is known of the sweep in ``folder``, which is called ``name``."""

    def __init__(self, number: int, folder: Path, name: str):
        self.number, self.folder, self.name = number, folder, name
        self.manifest: Manifest | None = None
        self.jobs: dict[Path, Job] = {}  # by folder; these are inside the sweep's folder
        self._problem = ""
        self.is_alive: bool | None = None  # None: its process is on another machine
        self._stamp: Stamp = None

    def update(self) -> bool:
        """Read the record if it changed; return whether it did."""
        stamp = file_stamp(self.folder / SWEEP_RECORD)
        changed = stamp != self._stamp
        if changed:
            self._stamp, self._problem, self.manifest = stamp, "", None
            try:
                self.manifest = read_manifest(self.folder, "runs")
            except UserError as error:
                self._problem = shown(str(error))
            jobs = self.manifest.jobs.values() if self.manifest else ()
            self.jobs = {Path(os.path.normpath(self.folder / job.folder)): job for job in jobs}
        is_running = self.manifest is not None and self.manifest.status == "running"
        holder = read_holder(self.folder) if is_running else None
        self.is_alive = holder.is_alive if holder else False
        return changed

    @property
    def status(self) -> str:
        if self.manifest is None or self.manifest.status not in STATUSES:
            return "damaged"
        is_killed = self.manifest.status == "running" and self.is_alive is False
        return "killed" if is_killed else self.manifest.status

    @property
    def problem(self) -> str:
        """Why the record cannot be used, or that nothing starts the waiting jobs; "" if there is no problem."""
        if self.status == "killed" and any(job.status == "waiting" for job in self.jobs.values()):
            return f"The process of the sweep {self.name} has ended: its waiting jobs will not start."
        return self._problem


class Monitor:
    """The runs below some folders. ``update`` reads what changed on the disk.

    Runs are addressed by numbers that are given out here. ``version`` grows with each change.
    """

    def __init__(self, roots: Sequence[Path]):
        self.roots = list(dict.fromkeys(Path(os.path.normpath(root.absolute())) for root in roots))
        self.version = 0
        self.runs: dict[int, RunState] = {}
        self.sweeps: dict[Path, SweepState] = {}
        self.notes: list[str] = []  # on folders that are not shown
        self._numbers: dict[Path, int] = {}  # of the runs
        self._found: list[Path] = []  # the folders that the last search found
        self._new_number, self._new_sweep = count(1), count(1)
        self._rows: dict[int, tuple[int, Row]] = {}  # with the version of their last change
        self._removed: dict[int, int] = {}  # the versions in which runs disappeared
        self._queue: dict[int, None] = {}  # runs that are to be read, the longest waiting first
        self._searched_at = -SEARCH_AFTER

    @property
    def root_names(self) -> list[str]:
        """The watched folders as a user would type them; the current one by its whole path, since "." says nothing."""
        return [str(root) if root == Path.cwd() else display_path(root) for root in self.roots]

    def update(self, seconds: float = UPDATE_SECONDS) -> None:
        """Read new and changed files, for about ``seconds``; what is left is read in the next updates."""
        end = time.monotonic() + seconds
        is_due = time.monotonic() >= self._searched_at + SEARCH_AFTER
        if is_due:
            self._search()
        changed = [sweep for sweep in self.sweeps.values() if sweep.update()]
        if is_due or changed:
            self._match_runs()
        for sweep in changed:
            self._queue_changed_jobs(sweep)
        for number in list(self._queue):
            self._read(number)
            if time.monotonic() > end:
                return
        for number in sorted(self._lacking_intervals(), key=self._best_of, reverse=True):
            self.runs[number].compute_interval()
            self._keep_row(number)
            if time.monotonic() > end:
                return

    # What is there

    def _search(self) -> None:
        """Find the folders of runs and sweeps."""
        self._found, self.notes = [], []
        sweeps: list[Path] = []
        for searched in (each for root in self.roots for each in searched_folders(root)):
            if isinstance(searched, ExcludedRun):
                self.notes.append(f"{escape_line(display_path(searched.folder))}: {escape_line(searched.reason)}")
                continue
            folder, entries = searched
            names = {entry.name for entry in entries}
            if SWEEP_RECORD in names:
                sweeps.append(folder)
            if names & WATCHED:
                self._found.append(folder)
        found = set(distinct(sweeps).values())
        kept = {folder: sweep for folder, sweep in self.sweeps.items() if folder in found}
        new = [folder for folder in sorted(found) if folder not in kept]
        self.sweeps = kept | {
            folder: SweepState(next(self._new_sweep), folder, escape_line(self._short(folder))) for folder in new
        }
        self._searched_at = time.monotonic()

    def _match_runs(self) -> None:
        """Add new runs, remove those that are gone, and queue those that changed; a job is known by its own path."""
        jobs = [folder for sweep in self.sweeps.values() for folder in sweep.jobs]
        folders = distinct([*jobs, *self._found])
        named = [folder for folder in folders.values() if STAGE.match(folder.name)]
        whole_of = {folder: whole for folder in named if (whole := folders.get(_identity(folder.parent)))}
        stages: dict[Path, list[Path]] = {folder: [] for folder in folders.values()}
        for folder, whole in whole_of.items():
            if whole not in whole_of:  # a stage has no stages
                stages[whole].append(folder)
                del stages[folder]
        for folder in self._numbers.keys() - stages.keys():
            self._remove(folder)
        for folder, of_run in stages.items():
            self.runs[self._add_run(folder)].stages = tuple(of_run)
        for number, run in self.runs.items():
            if number not in self._queue and run.has_changed():
                self._queue[number] = None

    def _queue_changed_jobs(self, sweep: SweepState) -> None:
        for folder, job in sweep.jobs.items():
            number = self._numbers.get(folder)
            if number is None:  # the same folder is a job of another sweep
                continue
            known = self.runs[number].job
            if known is None or known.status != job.status:
                self._queue[number] = None

    def _add_run(self, folder: Path) -> int:
        if folder not in self._numbers:
            number = self._numbers[folder] = next(self._new_number)
            self.runs[number] = RunState(folder)
            self._queue[number] = None
        return self._numbers[folder]

    def _remove(self, folder: Path) -> None:
        number = self._numbers.pop(folder)
        del self.runs[number]
        self._queue.pop(number, None)
        self._rows.pop(number, None)
        self.version += 1
        self._removed[number] = self.version

    # What changed

    def _read(self, number: int) -> None:
        run, sweep = self.runs[number], self.sweep_of(self.runs[number].folder)
        run.update(sweep.jobs.get(run.folder) if sweep else None, sweep.is_alive if sweep else None)
        del self._queue[number]
        if not run.is_settled:
            self._queue[number] = None  # behind the others
        self._keep_row(number)

    def _keep_row(self, number: int) -> None:
        run = self.runs[number]
        sweep = self.sweep_of(run.folder)
        own = {
            "number": number,
            "sweep": sweep.number if sweep else 0,
            "job": run.job.number if run.job else None,
            "folder": escape_line(self._short(run.folder)),
        }
        row = own | run.row
        if number not in self._rows or self._rows[number][1] != row:
            self.version += 1
            self._rows[number] = self.version, row

    @property
    def is_reading(self) -> bool:
        """Whether the next update goes on in a long metrics.csv, which is read in parts."""
        return any(not self.runs[number].curves.is_complete for number in self._queue)

    def sweep_of(self, folder: Path) -> SweepState | None:
        """Return the innermost sweep that contains a folder."""
        return next((self.sweeps[parent] for parent in folder.parents if parent in self.sweeps), None)

    def _short(self, folder: Path) -> str:
        """Return a folder relative to the one that the user named."""
        root = next((root for root in self.roots if folder.is_relative_to(root) and folder != root), None)
        return str(folder.relative_to(root)) if root else display_path(folder)

    def _lacking_intervals(self) -> list[int]:
        return [number for number, run in self.runs.items() if run.lacks_interval]

    def _best_of(self, number: int) -> float:
        best = self.runs[number].row.get("best")
        return -1.0 if best is None else best

    # What is sent

    @property
    def rows(self) -> list[Row]:
        """The rows of all runs that have been read, in the order in which they were found."""
        return [row for _, (_, row) in sorted(self._rows.items())]

    def changes(self, since: int, curves: Mapping[int, int]) -> dict[str, Any]:
        """Return what changed after version ``since``, as plain values.

        ``curves`` are the runs whose curves are shown, each with the version that is known already.
        """
        versions = {number: version for number, version in self._removed.items() if version > since}
        return {
            "version": self.version,
            "statuses": STATUSES,
            "folders": [escape_line(name) for name in self.root_names],
            "rows": [row for version, row in self._rows.values() if version > since],
            "removed": list(versions) if since else [],
            "unread": len(self.runs) - len(self._rows),
            "is_reading": self.is_reading or any(not run.curves.is_complete for run in self._shown(curves).values()),
            "sweeps": self.sweep_rows(),
            "best_runs": self.best_runs(),
            "notes": self.notes[:MOST_NOTES],
            "more_notes": max(0, len(self.notes) - MOST_NOTES),
            "curves": self._curves(curves),
        }

    def _curves(self, known: Mapping[int, int]) -> list[dict[str, Any]]:
        sent = []
        for number, run in self._shown(known).items():
            run.update_curves()
            if run.curves.version != known[number]:
                points = {name: run.curves.thinned(name) for name in NAMES}
                sent.append({"number": number, "version": run.curves.version, "points": points})
        return sent

    def _shown(self, curves: Iterable[int]) -> dict[int, RunState]:
        """Return the runs whose curves are shown, by number."""
        return {number: self.runs[number] for number in islice(curves, MOST_CURVES) if number in self.runs}

    def sweep_rows(self) -> list[dict[str, Any]]:
        """Return the name, status and counts of each sweep, and of the runs outside of sweeps, with their best run."""
        groups: dict[int, list[Row]] = {}
        for row in self.rows:
            groups.setdefault(row["sweep"], []).append(row)
        known = {sweep.number: sweep for sweep in self.sweeps.values()}
        return [self._sweep_row(known.get(number), groups.get(number, [])) for number in sorted({*groups, *known})]

    def best_runs(self, most: int = MOST_SWEEPS) -> list[list[str]]:
        """Return sentences on the best run of each of the ``most`` best sweeps."""
        return best_runs({row["number"]: row for row in self.rows}, self.sweep_rows(), most)

    def _sweep_row(self, sweep: SweepState | None, rows: Sequence[Row]) -> dict[str, Any]:
        validated = [row for row in rows if row["best"] is not None]
        scored = [row for row in validated if row["scored"] is not None]
        best, best_scored = (max(each, key=lambda row: row["best"], default=None) for each in (validated, scored))
        return {
            "number": sweep.number if sweep else 0,
            "name": sweep.name if sweep else "",
            "status": sweep.status if sweep else "",
            "problem": sweep.problem if sweep else "",
            "counts": Counter(row["status"] for row in rows),
            "validated": len(validated),
            "best": best["number"] if best else None,
            "best_scored": best_scored["number"] if best_scored else None,
        }


def distinct(folders: Iterable[Path]) -> dict[Identity, Path]:
    """Return the first path to each of the folders, by what identifies the folder whatever its path."""
    known: dict[Identity, Path] = {}
    for folder in folders:
        known.setdefault(_identity(folder), folder)
    return known


def _identity(folder: Path) -> Identity:
    try:
        status = os.stat(folder)  # noqa: PTH116  (as often as there are runs, and half the time)
    except OSError:  # a job that waits
        return folder
    return status.st_dev, status.st_ino
