"""The jobs of a sweep, as many at a time as there are places, each a process of its own."""

import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from fcnlab.files.writing import timestamp
from fcnlab.signals import STOPPING, Interrupted, StopSignals
from fcnlab.sweeps.manifest import Job, Manifest
from fcnlab.sweeps.processes import JobHandle, shell_exit_code
from fcnlab.sweeps.resources import Allocation, Requirement, ResourcePool
from fcnlab.sweeps.sweep_table import SweepTable, selection_score

POLL_INTERVAL = 0.2  # seconds
RANK_GRACE_PERIOD = 10.0  # seconds after their first: one that hangs would keep its GPU


@dataclass
class RunningJob:
    """A job's process, its part of the machine, and when the process was first seen to have ended."""

    process: JobHandle
    share: Allocation
    ended: float | None = None


class JobQueue:
    """Works off the waiting jobs of a manifest.

    ``begin`` starts the process of a job on its share. A job that fails leaves the others alone. A stopping signal
    becomes a SIGTERM for each running job: they save themselves and are waited for; Ctrl-C a second time kills them.
    So does an error in this process, such as a record that cannot be written.
    """

    def __init__(
        self,
        manifest: Manifest,
        places: ResourcePool,
        needs: dict[int, Requirement],
        begin: Callable[[Job, Allocation], JobHandle],
        board: SweepTable,
    ):
        self.manifest, self.places, self.needs, self.begin, self.board = manifest, places, needs, begin, board
        self.running: dict[int, RunningJob] = {}
        self._passed_on = False

    def run(self, jobs: Iterable[Job], signals: StopSignals) -> None:
        """Return when no job is left; :class:`Interrupted` where a signal came."""
        waiting = list(jobs)
        signals.waiting = True
        try:
            self._work_off(waiting, signals)
        except Interrupted:
            self._kill()
            raise
        finally:
            signals.waiting = False
        if signals.asked:
            raise Interrupted(signals.asked, at_once=False)

    def _work_off(self, waiting: list[Job], signals: StopSignals) -> None:
        try:
            while self.running or (waiting and not signals.asked):
                if signals.asked:
                    self._forward_signal(signals.asked)
                else:
                    self._start_fitting_jobs(waiting)
                self._collect_ended_jobs()
                self.board.refresh()
                time.sleep(POLL_INTERVAL)
        except Exception:  # of ours, such as a full disk
            self._terminate()
            self._wait_for_all()
            raise

    def _wait_for_all(self) -> None:
        """Until no job is left, even where what becomes of them cannot be written."""
        while self.running:
            with suppress(OSError):
                self._collect_ended_jobs()
            time.sleep(POLL_INTERVAL)

    def _start_fitting_jobs(self, waiting: list[Job]) -> None:
        for job in list(waiting):
            share = self.places.take(self.needs[job.number])
            if share is not None:
                waiting.remove(job)
                self._begin(job, share)

    def _begin(self, job: Job, share: Allocation) -> None:
        job.status, job.exit_code, job.started, job.ended = "running", None, timestamp(), None
        try:
            self.manifest.write()
            self.running[job.number] = RunningJob(self.begin(job, share), share)
        except Exception:
            job.status = "waiting"
            raise
        self.board.started(job, str(share))

    def _forward_signal(self, asked: int) -> None:
        """To each job once; as SIGTERM, which also ends a process that is not listening yet, with the code for it."""
        if not self._passed_on:
            self._passed_on = True
            self.board.say(f"{signal.Signals(asked).name}: the running jobs save themselves and end")
            self._terminate()

    def _terminate(self) -> None:
        for running in self.running.values():
            running.process.send_signal(signal.SIGTERM)

    def _collect_ended_jobs(self) -> None:
        for number, running in list(self.running.items()):
            if running.process.poll() is not None and self._all_ended(running):
                self._end(self.manifest.jobs[number], running)

    def _all_ended(self, running: RunningJob) -> bool:
        """Whether its other processes have ended, too; they are killed when they hang."""
        running.ended = running.ended or time.monotonic()
        if running.process.is_alive() and time.monotonic() - running.ended < RANK_GRACE_PERIOD:
            return False
        running.process.kill_all()
        return True

    def _end(self, job: Job, running: RunningJob) -> None:
        del self.running[job.number]
        self.places.give_back(running.share)
        code = shell_exit_code(running.process.poll() or 0)
        job.exit_code, job.ended = code, timestamp()
        job.status = "finished" if code == 0 else "interrupted" if code - 128 in STOPPING else "failed"
        job.miou = selection_score(self.manifest.folder / job.folder) if code == 0 else None
        self.manifest.write()
        self.board.ended(job)

    def _kill(self) -> None:
        for running in self.running.values():
            running.process.kill_all()
