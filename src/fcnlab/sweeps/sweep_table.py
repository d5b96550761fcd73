"""Report the progress of a sweep: a live table on a terminal, one line per event in a file or pipe."""

import csv
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import Any, TextIO

from fcnlab.config.overrides import shell_join
from fcnlab.escaping import escape_line, escape_terminal
from fcnlab.files.reading import Unreadable, display_path, open_regular, read_json_facts
from fcnlab.sweeps.manifest import Job, Manifest

REDRAW_AFTER = 1.0  # seconds
REPORT_AFTER = 600.0  # seconds without a line, where there is no table
HYDRA_LINES = (  # Hydra writes them after every error; they say nothing about it
    "Error executing job with overrides:",
    "Set the environment variable HYDRA_FULL_ERROR=1",
)
TAIL = 64 * 1024  # bytes of metrics.csv that are read: some hundred rows
COLOURS = {"running": "36", "finished": "32", "failed": "31", "interrupted": "33", "waiting": "2"}
MARKS = {"finished": "✓", "failed": "✗", "interrupted": "‖", "running": "▶", "waiting": "·"}


@dataclass
class Progress:
    """The progress of a job: steps done, steps in all, and the best score so far."""

    total: int | None = None
    step: int = 0
    miou: float | None = None
    initial_fraction: float = 0.0  # the fraction that was done when this sweep was resumed

    @property
    def fraction(self) -> float:
        return min(1.0, self.step / self.total) if self.total else 0.0

    def read(self, folder: Path) -> None:
        """Read the job's newest metrics.csv, which is in a stage's folder if the job has stages."""
        curves = max(folder.glob("**/metrics.csv"), key=lambda path: path.stat().st_mtime, default=None)
        for row in read_last_rows(curves) if curves else []:
            with suppress(ValueError):  # the value is not a number
                self.step = int(row.get("step") or self.step)
                if miou := row.get("val/miou"):
                    self.miou = max(float(miou), self.miou or 0.0)


def read_last_rows(path: Path) -> list[dict[str, str]]:
    """Return the last complete rows of a metrics.csv that may still grow."""
    try:
        with open_regular(path) as file:
            header = file.readline(TAIL)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(len(header), size - TAIL))
            tail = file.read(TAIL)
    except (OSError, Unreadable):
        return []
    lines = tail[: tail.rfind(b"\n") + 1].split(b"\n", 0 if size - TAIL <= len(header) else 1)
    rows = csv.reader(StringIO((header + lines[-1]).decode(errors="replace")))
    columns = next(rows, [])
    dicts = (dict(zip(columns, cells, strict=False)) for cells in rows if cells)  # a short row lacks the last columns
    return [row for row in dicts if (row.get("step") or "0").isdigit()]


class RedrawnLines:
    """Lines on a terminal that are replaced by newer ones in the same place."""

    def __init__(self, out: TextIO):
        self.out, self._height = out, 0

    def draw(self, lines: Sequence[str]) -> None:
        """Replace the lines, in one write so that they do not flicker."""
        if self._height or lines:
            up = f"\x1b[{self._height}A" if self._height else ""
            print(up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J", end="", file=self.out, flush=True)
        self._height = len(lines)


class SweepTable:
    """Print the state of a sweep. ``steps`` holds each job's number of training steps by its job number."""

    def __init__(self, manifest: Manifest, steps: dict[int, int | None], out: TextIO | None = None):
        self.manifest = manifest
        self.out = out or sys.stdout
        if isinstance(self.out, TextIOWrapper):
            self.out.reconfigure(errors="replace")  # the terminal's encoding may lack the marks of the table
        self.live = self.out.isatty() and os.environ.get("TERM") != "dumb"
        self.colours = self.live and "NO_COLOR" not in os.environ
        self.began = self._reported_at = time.monotonic()
        self._drawn_at, self._lines = 0.0, RedrawnLines(self.out)
        self._times: dict[int, tuple[float, float | None]] = {}
        self.progress = {number: Progress(steps.get(number)) for number in manifest.jobs}
        for number, job in manifest.jobs.items():
            if job.status == "finished":
                self.progress[number].initial_fraction = 1.0
            elif job.started:
                self.progress[number].read(manifest.folder / job.folder)
                self.progress[number].initial_fraction = self.progress[number].fraction

    def log(self, text: str) -> None:
        """Print a line above the table."""
        self._draw([])
        self._reported_at = time.monotonic()
        print(f"[{time.strftime('%H:%M:%S')}] {escape_terminal(text)}", file=self.out, flush=True)

    def job_started(self, job: Job, device: str) -> None:
        self._times[job.number] = (time.monotonic(), None)
        if not self.live:
            self.log(f"Job {job.number} started on {device}{_name_suffix(job)}")

    def job_ended(self, job: Job) -> None:
        self._times[job.number] = (self._times[job.number][0], time.monotonic())
        if not self.live:
            self._read_progress()
            after = f" after {duration_text(self._seconds(job.number))}"
            self.log(f"Job {job.number} {self._outcome(job)}{after}{_name_suffix(job)}. {self.summary()}")

    def refresh(self) -> None:
        """Redraw the table, or print the summary where there is no table, if it is due."""
        now = time.monotonic()
        if self.live and now - self._drawn_at >= REDRAW_AFTER:
            self._read_progress()
            width, height = shutil.get_terminal_size()
            self._draw(self.lines(width - 1, height - 2))
            self._drawn_at = now
        elif not self.live and now - self._reported_at >= REPORT_AFTER:
            self._read_progress()
            self.log(self.summary())

    def _read_progress(self) -> None:
        for job in self.manifest.jobs.values():
            if job.status == "running":
                self.progress[job.number].read(self.manifest.folder / job.folder)

    def close(self, *messages: str, ended: bool = True) -> None:
        """Print the whole table, the messages, and, if the sweep has ended, the command to type next."""
        self._draw([])
        width = shutil.get_terminal_size()[0] - 1 if self.live else 10_000
        lines = [
            *self.lines(width),
            *map(escape_terminal, messages),
            *(map(escape_line, self._next_steps()) if ended else ()),
        ]
        print("\n".join(lines), file=self.out, flush=True)

    def _next_steps(self) -> Iterator[str]:
        folder = self.manifest.folder
        yield f"Sweep folder: {display_path(folder)}"
        if self._count("finished") > 1:
            yield f"Next: {shell_join(['fcnlab', 'compare', f'runs={display_path(folder)}'])}"

    def _draw(self, lines: Sequence[str]) -> None:
        self._lines.draw(lines)
        self._drawn_at = 0.0

    def lines(self, width: int, height: int = 10**9) -> list[str]:
        """Return the table's lines; if not all jobs fit into ``height`` rows, the most relevant ones."""
        jobs = self._visible_jobs(height - 3)
        name = max([len("settings"), *(len(job.name) for job in jobs)])
        name = max(12, min(name, width - 47))
        head = f"     job  {'settings':<{name}}  {'state':<16} {'val mIoU':>10}  {'time':>7}"
        rows = [self._row(job, name, width) for job in jobs]
        left_out = len(self.manifest.jobs) - len(jobs)
        more = [f"          and {left_out} more"] if left_out else []
        return [self._paint("1", escape_line(self.summary())[:width]), head[:width], *rows, *more]

    def _row(self, job: Job, name: int, width: int) -> str:
        progress = self.progress[job.number]
        running = job.status == "running" and progress.total
        state = f"{progress.step} of {progress.total}" if running else job.status
        miou = job.miou if job.miou is not None else progress.miou
        score = "" if miou is None else f"{100 * miou:.2f} %"
        label = escape_line(job.name) or "-"  # a single job has no differing settings
        settings = label if len(label) <= name else label[: name - 1] + "…"
        best = "*" if job is self._best() else " "
        seconds = "" if job.number not in self._times else duration_text(self._seconds(job.number))
        row = f"  {MARKS[job.status]} {job.number:>4}  {settings:<{name}}  {state:<16} {best}{score:>9}  {seconds:>7}"
        return self._paint(COLOURS[job.status], row[:width])

    def _paint(self, colour: str, text: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self.colours else text

    def _visible_jobs(self, rows: int) -> list[Job]:
        jobs = sorted(self.manifest.jobs.values(), key=lambda job: job.number)
        if len(jobs) <= rows:
            return jobs
        rank = {"running": 1, "failed": 2, "interrupted": 2, "waiting": 3, "finished": 4}
        best = self._best()
        kept = sorted(jobs, key=lambda job: (0 if job is best else rank[job.status], job.number))
        return sorted(kept[: max(1, rows - 1)], key=lambda job: job.number)

    def _best(self) -> Job | None:
        scored = [job for job in self.manifest.jobs.values() if job.miou is not None]
        return max(scored, key=lambda job: job.miou or 0.0, default=None)

    def summary(self) -> str:
        """Return one line: the number of jobs in each state, the time left, and the best job."""
        counts = [(status, self._count(status)) for status in MARKS]
        parts = [f"{count} {status}" for status, count in counts if count]
        left = self.seconds_left()
        parts += [f"about {duration_text(left)} left"] if left else []
        best = self._best()
        parts += [f"best {100 * (best.miou or 0):.2f} % (job {best.number}{_name_suffix(best)})"] if best else []
        return ", ".join(parts)

    def _count(self, status: str) -> int:
        return sum(job.status == status for job in self.manifest.jobs.values())

    def seconds_left(self) -> float | None:
        """Extrapolate from the work done since this process started; None before any is done or when none is left."""
        jobs = [job for job in self.manifest.jobs.values() if job.status in ("waiting", "running", "finished")]
        left = sum(1 - self._fraction(job) for job in jobs)
        done = sum(self._fraction(job) - self.progress[job.number].initial_fraction for job in jobs)
        return (time.monotonic() - self.began) * left / done if done > 0 and left > 0 else None

    def _fraction(self, job: Job) -> float:
        return 1.0 if job.status == "finished" else self.progress[job.number].fraction

    def _outcome(self, job: Job) -> str:
        return job.status if job.status == "finished" else f"{job.status} with exit code {job.exit_code}"

    def _seconds(self, number: int) -> float:
        begin, end = self._times[number]
        return (end or time.monotonic()) - begin


def _name_suffix(job: Job) -> str:
    return f": {job.name}" if job.name else ""


def duration_text(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def failure_report(job: Job, log: Path, command: str, lines: int = 8) -> str:
    """Describe a failed job: its exit code, the last lines of its log, and the command that reruns it."""
    tail = "".join(f"    {line}\n" for line in last_lines(log, lines))
    name = f" ({job.name})" if job.name else ""
    return (
        f"Job {job.number}{name} {job.status} with exit code {job.exit_code}. Last lines of {display_path(log)}:\n"
        f"{tail}  To rerun this job: {command}"
    )


def last_lines(path: Path, count: int) -> Sequence[str]:
    """Return the last lines of a log; of a progress bar only its last state."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            text = file.read(TAIL).decode(errors="replace")
    except (OSError, Unreadable):
        return []
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line for line in lines if line and not line.startswith(HYDRA_LINES)][-count:]


def selection_score(folder: Path) -> float | None:
    """Return the mean IoU (0 to 1) by which a sweep ranks a run; None if the record has none.

    For a training run it is the score of the evaluated weights on the validation images, also where ``data.test_list``
    names other images.
    """
    return recorded_selection_score(read_json_facts(folder, "metrics.json"))


def recorded_selection_score(facts: dict[str, Any]) -> float | None:
    """Return the same score from the content of a ``metrics.json``."""
    selection = facts.get("selection")
    if isinstance(selection, dict) and "val_miou" in selection:
        score = _validation_score(selection, facts)
    else:  # an evaluation's
        score = facts.get("miou")
    return float(score) if isinstance(score, (int, float)) and not isinstance(score, bool) else None


def _validation_score(selection: dict, facts: dict) -> Any:
    """Return the validation score; without one, the final score if it is on the validation images."""
    validated = selection.get("same_images") is True or facts.get("split") == selection.get("list")
    return facts.get("miou") if selection["val_miou"] is None and validated else selection["val_miou"]
