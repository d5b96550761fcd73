"""The state of one run, from the files in its folder, which are foreign: each may be missing, damaged or half written.

Nothing is written or locked. Files that did not change are not read again.
"""

import os
import time
from collections import deque
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fcnlab.comparison.runs import MAX_NUMBER
from fcnlab.errors import first_line
from fcnlab.escaping import escape_line, without_secrets
from fcnlab.files.locks import PROCESSES, Holder, read_holder
from fcnlab.files.reading import Unreadable, read_json, read_json_facts, read_yaml
from fcnlab.live_view.curves import NAME as CURVES
from fcnlab.live_view.curves import Curves
from fcnlab.live_view.score_interval import ScoreInterval, score_interval
from fcnlab.runs.origins import nested_map
from fcnlab.sweeps.manifest import Job
from fcnlab.sweeps.sweep_table import read_last_rows, recorded_selection_score

# In the order of every view: a run that ended without a result comes before those that wait or have one.
STATUSES = ("running", "failed", "killed", "damaged", "interrupted", "waiting", "finished")
UNSETTLED = ("running", "waiting")  # others change only if the run is started again
RATE_OVER = 8  # changes of metrics.csv over which the speed is measured
LONGEST = 500  # characters of a text that a table shows

Row = dict[str, Any]
Stamp = tuple[int, int, int] | None


class RunState:
    """What is known of the run in ``folder``; ``job`` is its entry in the record of its sweep, if it is part of one.

    ``row`` holds what the table shows of it. The record of the sweep is foreign, too.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.job: Job | None = None
        self.curves = Curves(folder)
        self.facts: dict[str, Any] = {}
        self.scores: dict[str, Any] = {}
        self.interval: ScoreInterval | None = None
        self.no_interval = ""  # why there is none, for a reader
        self.lacks_interval = False  # the scores are read, and their interval is not computed yet
        self.status = "waiting"
        self.problem = ""
        self.holder: Holder | None = None
        self.row: Row = {}
        self.stages: tuple[Path, ...] = ()  # the folders of its stages; the curves are those of the newest
        self._stamps: dict[Path, Stamp] = {}
        self._last_step: int | None = None
        self._total: int | None = None
        self._total_of: tuple[str, Path] | None = None
        self._seen: deque[tuple[float, int]] = deque(maxlen=RATE_OVER)

    @property
    def is_settled(self) -> bool:
        return self.status not in UNSETTLED and self.curves.is_complete

    def has_changed(self) -> bool:
        """Return whether the records changed since they were read, as if the run was resumed."""
        return any(file_stamp(path) != stamp for path, stamp in self._stamps.items())

    def update(self, job: Job | None, is_sweep_alive: bool | None) -> None:
        """Read what changed. ``is_sweep_alive`` is False if the process of the sweep has ended."""
        self.job = job
        try:
            self._update(is_sweep_alive)
        except Exception as error:  # one folder must not end the view of the others
            self.facts, self.scores, self.interval, self.no_interval, self.lacks_interval = {}, {}, None, "", False
            self.curves.is_complete = True  # nothing more is read of it
            self.problem, self.status = f"its record was not written by fcnlab: {first_line(error)}", "damaged"
        self.row = self._row()

    def _update(self, is_sweep_alive: bool | None) -> None:
        self._read_records()
        self._follow_stages()
        self.holder = read_holder(self.folder) if self.facts.get("status", "running") == "running" else None
        self.status = self._status(is_sweep_alive)
        if self.status in UNSETTLED or not self.scores:
            self.update_curves()
            self._last_step = self.curves.step
        elif self._is_new(self._metrics):  # the scores contain the best validation: the curves are read when shown
            rows = read_last_rows(self._metrics)
            self._last_step = whole_number(int(rows[-1].get("step") or 0)) if rows else None

    @property
    def _metrics(self) -> Path:
        return self.curves.folder / CURVES

    def _follow_stages(self) -> None:
        """Take the curves from the stage that has written last."""
        if not self.stages:
            return
        newest = max((self.folder, *self.stages), key=lambda folder: modified(folder / CURVES) or 0.0)
        if newest != self.curves.folder:
            self.curves = Curves(newest, self.curves.version + 1)
            self._seen.clear()

    def update_curves(self) -> bool:
        """Read what was appended to metrics.csv; return whether anything changed."""
        changed = self.curves.update()
        is_progress = self.curves.is_complete  # the first parts of a long file say nothing about the speed now
        if changed and is_progress and self.curves.step is not None and self.status in UNSETTLED:
            if self._seen and self._seen[-1][1] > self.curves.step:  # resumed from an earlier step
                self._seen.clear()
            self._seen.append((modified(self._metrics) or time.time(), self.curves.step))
        return changed

    def compute_interval(self) -> None:
        """Compute the interval of the recorded score; takes up to a tenth of a second."""
        self.lacks_interval = False
        if (miou := score(self.scores.get("miou"))) is not None:
            found = score_interval(self.folder, miou)
            self.interval, self.no_interval = (None, found) if isinstance(found, str) else (found, "")
            self.row = self._row()

    def _read_records(self) -> None:
        if self._is_new(self.folder / "run.json"):
            self.problem = ""
            try:
                self.facts = read_json(self.folder, "run.json") or {}
            except (OSError, Unreadable) as error:
                self.facts, self.problem = {}, str(error)
            self._seen.clear()
        if self._is_new(self.folder / "metrics.json"):
            self.scores, self.interval, self.no_interval = read_json_facts(self.folder, "metrics.json"), None, ""
            self.lacks_interval = bool(self.scores)

    def _is_new(self, path: Path) -> bool:
        stamp = file_stamp(path)
        is_new = path not in self._stamps or self._stamps[path] != stamp
        self._stamps[path] = stamp
        return is_new

    def _status(self, is_sweep_alive: bool | None) -> str:
        """Return the recorded status, or "killed" if its process has ended without a record of it."""
        if self.problem:
            return "damaged"
        of_job = self.job.status if self.job else None
        status = self.facts.get("status")
        if status is None:  # an evaluation, or a job that has not started its run
            status = "finished" if self.scores else of_job or "running"
        if status not in STATUSES:
            self.problem = f"its record was not written by fcnlab: its status is {status}"
            return "damaged"
        if status != "running":
            return status
        if of_job in ("failed", "interrupted"):  # the sweep knows how the process ended
            return of_job
        if of_job == "running" and is_sweep_alive:  # also before the run has claimed its folder
            return "running"
        is_alive = self.holder.is_alive if self.holder else is_sweep_alive if self.job else False
        return "killed" if is_alive is False else "running"

    def _row(self) -> Row:
        best = self.curves.highest("val/miou")
        is_training = bool(self.facts)  # an evaluation has no run.json
        recorded = score(recorded_selection_score(self.scores)) if is_training else None
        best_step = number(nested_map(self.scores, "selection").get("step")) if recorded is not None else None
        total = self._steps_in_all()
        step = self._last_step
        rate = self._rate()
        left = (total - step) / rate if rate and total and step is not None and step < total else None
        return {
            "name": shown(self.job.name) if self.job else "",
            "status": self.status,
            "reason": self._reason(),
            "step": step,
            "total": total,
            "best": recorded if recorded is not None else best and best[0],
            "best_step": best[1] if recorded is None and best else best_step,
            "loss": self.curves.last("train/loss"),
            "scored": score(self.scores.get("miou")),
            "interval": self.interval and self.interval[:2],
            "no_interval": self.no_interval,
            "images": self.interval and self.interval.images,
            "set": shown(nested_map(self.scores, "protocol").get("set")),
            "rate": rate if self.status == "running" else None,
            "left": left if self.status == "running" else None,  # none during the final evaluation
            "minutes": self._minutes(),
            "memory": self._memory(),
        }

    def _reason(self) -> str:
        if self.problem or self.curves.problem:
            return shown(self.problem or self.curves.problem)
        if self.status == "killed":
            return "its process has ended without a record of it"
        if self.status == "running" and self.holder and self.holder.is_alive is None:
            return shown(f"on {self.holder.host}: from here, it cannot be seen whether its process still runs")
        if self.status in ("failed", "interrupted"):
            return shown(self.facts.get("reason") or f"exit code {self.job and self.job.exit_code}")
        return ""

    def _steps_in_all(self) -> int | None:
        """Return the number of steps of the run if its configuration sets it; read once for each start of the run."""
        start = str(self.facts.get("started")), self.curves.folder
        if self.status == "running" and start != self._total_of and self.facts:
            self._total_of = start
            try:
                trainer = nested_map(read_yaml(self.curves.folder, "config.yaml"), "trainer")
            except (OSError, Unreadable):
                trainer = {}
            steps, epochs = whole_number(trainer.get("max_steps")), trainer.get("max_epochs")
            unlimited = epochs is None or epochs == -1
            self._total = steps if steps and steps > 0 and unlimited else None
        return self._total

    def _rate(self) -> float | None:
        """Return the steps per second over the last changes of metrics.csv, by the times at which it was written."""
        if len(self._seen) > 1:
            (began, first), (now, last) = self._seen[0], self._seen[-1]
        elif (
            self._seen
            and not self.stages
            and self.facts.get("starts") == 1
            and (started := time_of(self.facts.get("started")))
        ):
            (began, first), (now, last) = (started, 0), self._seen[0]
        else:
            return None
        return (last - first) / (now - began) if now > began and last > first else None

    def _minutes(self) -> float | None:
        """Return how long the run took; of a running one, how long ago it was started."""
        source = self.facts if self.facts.get("started") else vars(self.job) if self.job else {}
        started, ended = time_of(source.get("started")), time_of(source.get("ended"))
        if started is None or (ended is None and self.status != "running"):
            return None
        if ended is None:
            ended = max(filter(None, map(modified, (self.folder, self._metrics))), default=time.time())
        return max(0.0, ended - started) / 60

    def _memory(self) -> float | None:
        """Return MiB: the recorded peak of the training, or what the main process has on this machine now."""
        if self.status == "running":
            return resident_memory(self.holder.process) if self.holder and self.holder.is_alive else None
        cost = nested_map(self.scores, "cost")
        return number(cost.get("training_peak_memory_mib", cost.get("peak_memory_mib")))


def modified(path: Path) -> float | None:
    """Return when a file was last written, in seconds since 1970; None if it does not exist."""
    stamp = file_stamp(path)
    return stamp[1] / 1e9 if stamp else None


def file_stamp(path: Path) -> Stamp:
    """Return what changes if a file is written; None if it does not exist."""
    try:
        status = os.stat(path)  # noqa: PTH116  (as often as there are runs, and half the time)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def resident_memory(process: int) -> float | None:
    """Return the memory in MiB that a process of this machine has; None if it has ended."""
    try:
        pages = int((PROCESSES / str(process) / "statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return None
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, -1)  # to ten: each change is sent to the page


def time_of(value: Any) -> float | None:
    """Return a recorded time in seconds since 1970; None if it is invalid."""
    try:
        moment = datetime.fromisoformat(value)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (TypeError, ValueError, OverflowError, OSError):
        return None


def number(value: Any) -> float | None:
    """Return a number of a record that a table can show; None for anything else."""
    return float(value) if type(value) in (int, float) and abs(value) < MAX_NUMBER else None


def whole_number(value: Any) -> int | None:
    """Return a whole number of a record that a table can show; None for anything else."""
    return value if type(value) is int and abs(value) < MAX_NUMBER else None


def score(value: Any) -> float | None:
    """Return a score of a record, from 0 to 1; None for anything else."""
    found = number(value)
    return found if found is not None and 0 <= found <= 1 else None


def shown(value: Any) -> str:
    """Return a text of a record as one line of limited length, without what looks like a secret."""
    # The limit comes last: a part of an address would no longer look like one.
    return without_secrets(escape_line(value[: 4 * LONGEST]))[:LONGEST] if isinstance(value, str) else ""
