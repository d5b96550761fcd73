"""What a sweep shows while it runs: a table that is drawn again and again on a terminal, lines remote."""

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
HYDRA_LINES = (
    "Error executing job with overrides:",
    "Set the environment variable HYDRA_FULL_ERROR=1",
)  # each time the same
TAIL = 64 * 1024  # bytes of metrics.csv: some hundred rows
COLOURS = {"running": "36", "finished": "32", "failed": "31", "interrupted": "33", "waiting": "2"}
MARKS = {"finished": "✓", "failed": "✗", "interrupted": "‖", "running": "▶", "waiting": "·"}


@dataclass
class Progress:
    """How far a job has come: the steps it has done, of how many, and its best score as yet."""

    total: int | None = None
    step: int = 0
    miou: float | None = None
    before: float = 0.0  # the part that was done when this sweep went on

    @property
    def part(self) -> float:
        return min(1.0, self.step / self.total) if self.total else 0.0

    def read(self, folder: Path) -> None:
        """Look into the job's curves; those of a stage, where it runs in stages."""
        curves = max(folder.glob("**/metrics.csv"), key=lambda path: path.stat().st_mtime, default=None)
        for row in read_last_rows(curves) if curves else []:
            with suppress(ValueError):  # a value that is no number
                self.step = int(row.get("step") or self.step)
                if found := row.get("val/miou"):
                    self.miou = max(float(found), self.miou or 0.0)


def read_last_rows(path: Path) -> list[dict[str, str]]:
    """The last whole rows of a metrics.csv that is being written."""
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
    found = (dict(zip(columns, cells, strict=False)) for cells in rows if cells)  # a short row has no more than it has
    return [row for row in found if (row.get("step") or "0").isdigit()]


class SweepTable:
    """The state of a sweep, for people. ``steps`` is each job's length, by its number."""

    def __init__(self, manifest: Manifest, steps: dict[int, int | None], out: TextIO | None = None):
        self.manifest = manifest
        self.out = out or sys.stdout
        if isinstance(self.out, TextIOWrapper):
            self.out.reconfigure(errors="replace")  # a terminal without our marks is no reason to stop a sweep
        self.live = self.out.isatty() and os.environ.get("TERM") != "dumb"
        self.colours = self.live and "NO_COLOR" not in os.environ
        self.began = self._reported_at = time.monotonic()
        self._drawn_at, self._height = 0.0, 0
        self._times: dict[int, tuple[float, float | None]] = {}
        self.progress = {number: Progress(steps.get(number)) for number in manifest.jobs}
        for number, job in manifest.jobs.items():
            if job.status == "finished":
                self.progress[number].before = 1.0
            elif job.started:
                self.progress[number].read(manifest.folder / job.folder)
                self.progress[number].before = self.progress[number].part

    def say(self, text: str) -> None:
        """A line for the record, above the table."""
        self._draw([])
        self._reported_at = time.monotonic()
        print(f"[{time.strftime('%H:%M:%S')}] {escape_terminal(text)}", file=self.out, flush=True)

    def started(self, job: Job, where: str) -> None:
        self._times[job.number] = (time.monotonic(), None)
        if not self.live:
            self.say(f"Job {job.number} started on {where}{_name_suffix(job)}")

    def ended(self, job: Job) -> None:
        self._times[job.number] = (self._times[job.number][0], time.monotonic())
        if not self.live:
            self._read_progress()
            self.say(f"Job {job.number} {self._outcome(job)}{self._elapsed(job.number)}{_name_suffix(job)}. {self.summary()}")

    def refresh(self) -> None:
        """Draw the table again, or say how it stands, if that is due."""
        now = time.monotonic()
        if self.live and now - self._drawn_at >= REDRAW_AFTER:
            self._read_progress()
            width, height = shutil.get_terminal_size()
            self._draw(self.lines(width - 1, height - 2))
            self._drawn_at = now
        elif not self.live and now - self._reported_at >= REPORT_AFTER:
            self._read_progress()
            self.say(self.summary())

    def _read_progress(self) -> None:
        for job in self.manifest.jobs.values():
            if job.status == "running":
                self.progress[job.number].read(self.manifest.folder / job.folder)

    def close(self, *last: str, ended: bool = True) -> None:
        """Leave the whole table behind, and the last words below it; where the sweep has ended, what to type next."""
        self._draw([])
        width = shutil.get_terminal_size()[0] - 1 if self.live else 10_000
        lines = [
            *self.lines(width),
            *map(escape_terminal, last),
            *(map(escape_line, self._next_steps()) if ended else ()),
        ]
        print("\n".join(lines), file=self.out, flush=True)

    def _next_steps(self) -> Iterator[str]:
        folder = self.manifest.folder
        yield f"The sweep: {display_path(folder)}"
        if self._count("finished") > 1:
            yield f"Next: {shell_join(['fcnlab', 'compare', f'runs={display_path(folder)}'])}"

    def _draw(self, lines: Sequence[str]) -> None:
        """Put lines in the place of the table that is there, in one go, so that nothing flickers."""
        if self._height or lines:
            up = f"\x1b[{self._height}A" if self._height else ""
            print(up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J", end="", file=self.out, flush=True)
        self._height, self._drawn_at = len(lines), 0.0

    def lines(self, width: int, height: int = 10**9) -> list[str]:
        """The table, in so many columns and rows; where not all jobs fit, those that matter now."""
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
        said = escape_line(job.name) or "-"  # the only job differs from no other
        settings = said if len(said) <= name else said[: name - 1] + "…"
        best = "*" if job is self._best() else " "
        seconds = "" if job.number not in self._times else _duration(self._seconds(job.number))
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
        """How many jobs are in which state, how long the rest may take, and which is the best."""
        counted = [(status, self._count(status)) for status in MARKS]
        parts = [f"{count} {status}" for status, count in counted if count]
        left = self.seconds_left()
        parts += [f"about {_duration(left)} to go"] if left else []
        best = self._best()
        parts += [f"best {100 * (best.miou or 0):.2f} % (job {best.number}{_name_suffix(best)})"] if best else []
        return ", ".join(parts)

    def _count(self, status: str) -> int:
        return sum(job.status == status for job in self.manifest.jobs.values())

    def seconds_left(self) -> float | None:
        """From what was done since the sweep began or went on; None before anything was, or when nothing is left."""
        going_on = [job for job in self.manifest.jobs.values() if job.status in ("waiting", "running", "finished")]
        left = sum(1 - self._part(job) for job in going_on)
        done = sum(self._part(job) - self.progress[job.number].before for job in going_on)
        return (time.monotonic() - self.began) * left / done if done > 0 and left > 0 else None

    def _part(self, job: Job) -> float:
        return 1.0 if job.status == "finished" else self.progress[job.number].part

    def _outcome(self, job: Job) -> str:
        return job.status if job.status == "finished" else f"{job.status} with exit code {job.exit_code}"

    def _seconds(self, number: int) -> float:
        begin, end = self._times[number]
        return (end or time.monotonic()) - begin

    def _elapsed(self, number: int) -> str:
        return f" after {_duration(self._seconds(number))}"


def _name_suffix(job: Job) -> str:
    return f": {job.name}" if job.name else ""


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def failure_report(job: Job, log: Path, command: str, lines: int = 8) -> str:
    """Of a job that failed: the last lines of its log, and what to type to repeat it."""
    end = "".join(f"    {line}\n" for line in last_lines(log, lines))
    called = f" ({job.name})" if job.name else ""
    return (
        f"Job {job.number}{called} {job.status} with exit code {job.exit_code}. The end of {display_path(log)}:\n"
        f"{end}  To repeat it: {command}"
    )


def last_lines(path: Path, count: int) -> Sequence[str]:
    """The end of a log; of a progress bar only what it showed last."""
    try:
        with open_regular(path) as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            text = file.read(TAIL).decode(errors="replace")
    except (OSError, Unreadable):
        return []
    lines = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return [line for line in lines if line and not line.startswith(HYDRA_LINES)][-count:]


def selection_score(folder: Path) -> float | None:
    """The mean IoU (0 to 1) that a sweep ranks a run by; None where the record has none.

    Of a training, that of the scored weights on the validation images, whatever else they were scored on.
    """
    facts = read_json_facts(folder, "metrics.json")
    selection = facts.get("selection")
    if isinstance(selection, dict) and "val_miou" in selection:
        found = _validation_score(selection, facts)
    else:  # an evaluation's, or an older record
        found = facts.get("miou")
    return float(found) if isinstance(found, (int, float)) and not isinstance(found, bool) else None


def _validation_score(selection: dict, facts: dict) -> Any:
    """Weights that no validation scored may still have been scored on the validation images at the end."""
    validated = selection.get("same_images") is True or facts.get("split") == selection.get("list")
    return facts.get("miou") if selection["val_miou"] is None and validated else selection["val_miou"]
