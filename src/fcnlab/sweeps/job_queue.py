"""Run the jobs of a sweep in processes of their own, as many at a time as the machine's resources allow."""

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
RANK_GRACE_PERIOD = 10.0  # seconds for the other ranks to end after rank 0: one that hangs would keep its GPU


@dataclass
class RunningJob:
    """A job's process, its resources, and the time at which the process was first seen to have ended."""

    process: JobHandle
    allocation: Allocation
    ended: float | None = None


class JobQueue:
    """Run the waiting jobs of a manifest.

    ``start`` starts the process of a job on its allocation. A job that fails does not stop the others. A stop signal
    is forwarded to each running job as SIGTERM: the jobs save a checkpoint, and the queue waits for them. A second
    Ctrl-C kills them. An error in this process, such as a full disk, stops them like a signal.
    """

    def __init__(
        self,
        manifest: Manifest,
        pool: ResourcePool,
        requirements: dict[int, Requirement],
        start: Callable[[Job, Allocation], JobHandle],
        table: SweepTable,
    ):
        self.manifest, self.pool, self.requirements = manifest, pool, requirements
        self.start, self.table = start, table
        self.running: dict[int, RunningJob] = {}
        self._signal_forwarded = False

    def run(self, jobs: Iterable[Job], signals: StopSignals) -> None:
        """Run all jobs; raise :class:`Interrupted` if a signal stopped them."""
        waiting = list(jobs)
        signals.waiting = True
        try:
            self._run_all(waiting, signals)
        except Interrupted:
            self._kill()
            raise
        finally:
            signals.waiting = False
        if signals.asked:
            raise Interrupted(signals.asked, at_once=False)

    def _run_all(self, waiting: list[Job], signals: StopSignals) -> None:
        try:
            while self.running or (waiting and not signals.asked):
                if signals.asked:
                    self._forward_signal(signals.asked)
                else:
                    self._start_fitting_jobs(waiting)
                self._collect_ended_jobs()
                self.table.refresh()
                time.sleep(POLL_INTERVAL)
        except Exception:  # in this process, such as a full disk
            self._terminate()
            self._wait_for_all()
            raise

    def _wait_for_all(self) -> None:
        """Wait until all jobs have ended, even if their status cannot be written to the record."""
        while self.running:
            with suppress(OSError):
                self._collect_ended_jobs()
            time.sleep(POLL_INTERVAL)

    def _start_fitting_jobs(self, waiting: list[Job]) -> None:
        for job in list(waiting):
            allocation = self.pool.take(self.requirements[job.number])
            if allocation is not None:
                waiting.remove(job)
                self._start(job, allocation)

    def _start(self, job: Job, allocation: Allocation) -> None:
        job.status, job.exit_code, job.started, job.ended = "running", None, timestamp(), None
        try:
            self.manifest.write()
            self.running[job.number] = RunningJob(self.start(job, allocation), allocation)
        except Exception:
            job.status = "waiting"
            raise
        self.table.job_started(job, str(allocation))

    def _forward_signal(self, signum: int) -> None:
        """Send SIGTERM to each job once; it also ends a process that has not installed its signal handlers yet."""
        if not self._signal_forwarded:
            self._signal_forwarded = True
            self.table.log(f"{signal.Signals(signum).name} received: running jobs save a checkpoint and stop")
            self._terminate()

    def _terminate(self) -> None:
        for running in self.running.values():
            running.process.send_signal(signal.SIGTERM)

    def _collect_ended_jobs(self) -> None:
        for number, running in list(self.running.items()):
            if running.process.poll() is not None and self._all_ended(running):
                self._end(self.manifest.jobs[number], running)

    def _all_ended(self, running: RunningJob) -> bool:
        """Return whether the job's other processes have ended, too; those that hang are killed."""
        running.ended = running.ended or time.monotonic()
        if running.process.is_alive() and time.monotonic() - running.ended < RANK_GRACE_PERIOD:
            return False
        running.process.kill_all()
        return True

    def _end(self, job: Job, running: RunningJob) -> None:
        del self.running[job.number]
        self.pool.release(running.allocation)
        code = shell_exit_code(running.process.poll() or 0)
        job.exit_code, job.ended = code, timestamp()
        job.status = "finished" if code == 0 else "interrupted" if code - 128 in STOPPING else "failed"
        job.miou = selection_score(self.manifest.folder / job.folder) if code == 0 else None
        self.manifest.write()
        self.table.job_ended(job)

    def _kill(self) -> None:
        for running in self.running.values():
            running.process.kill_all()
