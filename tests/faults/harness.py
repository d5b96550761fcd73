"""Disturb a small training again and again, let it go on each time, and compare its end with one left in peace.

    python tests/faults/harness.py --count 200 --seed 1        (make faults)

Each disturbance comes at a random moment, seeded. Most victims are forked from this process, which has torch imported
already; every eighth is started cold. The report, as JSON, is the last line; the exit code is not 0 if any promise of
docs/explanation/reliability.md was broken.
"""

import argparse
import contextlib
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "WANDB_MODE": "offline"}

import torch

import fcnlab.tasks.train  # noqa: F401  before forking: the victims share what it imports
from fcnlab.cli import main

torch.set_num_threads(1)

STEPS = 90
SETTINGS = (
    "trainer=smoke", "trainer.accelerator=cpu", "logger=csv", f"trainer.max_steps={STEPS}",
    "trainer.val_check_interval=20", "trainer.log_every_n_steps=1", "callbacks.progress.enabled=false",
    "checkpointing.every_n_minutes=0.005", "data.dataset.num_train=24", "data.dataset.num_val=6",
    "data.dataset.size=64", "data.crop_size=64", "data.batch_size=4", "model.backbone.width=4",
)  # fmt: skip
POLITE = {each.name: each for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)}
KINDS = (*POLITE, "SIGKILL", "second process", "truncated", "flipped", "data gone", "worker killed", "disk full")
LONGEST = 90  # seconds that any victim may take


@dataclass
class Variant:
    """A run's settings, and how it ends when nobody disturbs it."""

    workers: int
    accumulate: int
    end: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def settings(self) -> tuple[str, ...]:
        return f"data.num_workers={self.workers}", f"trainer.accumulate_grad_batches={self.accumulate}"


@dataclass
class Report:
    """What was tried and what came of it."""

    tried: Counter = field(default_factory=Counter)
    runs: int = 0
    too_late: int = 0  # the run was over before the fault
    lost_steps: dict[str, list[int]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


class Victim:
    """A training process."""

    def __init__(self, words: tuple[str, ...], log: Path, cold: bool):
        self.log = log
        if cold:
            with log.open("ab") as file:
                command = [sys.executable, "-m", "fcnlab", *words]
                self.pid = subprocess.Popen(command, stdout=file, stderr=file).pid
        else:
            self.pid = self._forked(words)

    def _forked(self, words: tuple[str, ...]) -> int:
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            with self.log.open("ab") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            sys.argv = ["fcnlab", *words]
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1 if stop.code else 0
        finally:
            sys.stdout.flush()
            os._exit(code)

    def wait(self, seconds: float) -> int | None:
        """Its exit code (negative: the signal that killed it), or None if it still runs after so long."""
        deadline = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > deadline:
                return None
            time.sleep(0.005)

    def workers(self) -> list[int]:
        try:
            return [int(pid) for pid in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]
        except OSError:
            return []


class Run:
    """A run folder, and the promises that are checked on it."""

    def __init__(self, variant: Variant, folder: Path, data: Path):
        self.variant, self.folder, self.data = variant, folder, data
        self.started = 0
        self.last = folder / "checkpoints" / "last.ckpt"
        self.log = folder.with_suffix(".log")
        self.spoilt: bytes | None = None  # what last.ckpt became on purpose

    def start(self, cold: bool = False) -> Victim:
        words = ("train", *SETTINGS, *self.variant.settings, f"data.root={self.data}")
        self.started += 1
        folder = self.folder if self.started % 2 else self.folder.resolve()  # by its link, where there is one, and not
        return Victim((*words, f"hydra.run.dir={folder}", "checkpoint=auto"), self.log, cold)

    def holder(self) -> int | None:
        """The process that says in the folder that it works there."""
        path = self.folder / ".lock"
        text = path.read_text() if path.is_file() else ""
        return int(text.split()[0]) if text else None

    def status(self) -> dict:
        path = self.folder / "run.json"
        return json.loads(path.read_text()) if path.is_file() else {"status": "not begun", "starts": 0}

    def logged_steps(self) -> int:
        path = self.folder / "metrics.csv"
        steps = [row["step"] for row in read_rows(path)] if path.is_file() else []
        return max((int(step) for step in steps if step), default=0)

    def saved_steps(self) -> int:
        return torch.load(self.last, weights_only=True)["global_step"] if self.last.is_file() else 0

    def damaged(self) -> list[str]:
        """Checkpoints that are not whole, but for what was spoilt on purpose and not written again since."""
        bad = [path for path in self.folder.glob("checkpoints/*.ckpt") if not is_whole(path)]
        return [path.name for path in bad if path.read_bytes() != self.spoilt]

    def is_spoilt(self) -> bool:
        return self.last.is_file() and self.last.read_bytes() == self.spoilt

    def end(self) -> dict[str, str]:
        """A hash of each thing that a run ends with: weights, optimiser, curves, scores."""
        end = {}
        for name in ("last", "best"):
            checkpoint = torch.load(self.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
            for part in ("state_dict", "current_model_state", "optimizer_states", "global_step"):
                end[f"{part} of {name}.ckpt"] = hashed(checkpoint[part])
        for number, row in enumerate(read_rows(self.folder / "metrics.csv"), 1):
            end[f"row {number} of metrics.csv"] = hashed(sorted((k, v) for k, v in row.items() if v))
        scores = json.loads((self.folder / "metrics.json").read_text())
        return end | {name: hashed(scores[name]) for name in ("pixel_acc", "mean_acc", "miou", "fw_iou", "iou")}


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def hashed(value) -> str:
    total = hashlib.sha256()
    add(total, value)
    return total.hexdigest()


def add(total, value) -> None:
    if isinstance(value, torch.Tensor):
        total.update(value.detach().cpu().contiguous().numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            total.update(str(key).encode())
            add(total, value[key])
    elif isinstance(value, list):
        for part in value:
            add(total, part)
    else:
        total.update(repr(value).encode())


def is_whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            if file.testzip() is not None:
                return False
        torch.load(path, weights_only=True)
    except Exception:  # whatever a damaged file makes of its readers
        return False
    return True


class Harness:
    """Disturbs runs until ``count`` faults have struck."""

    def __init__(self, seed: int, work: Path, kinds: tuple[str, ...]):
        self.random, self.work, self.kinds = random.Random(seed), work, kinds
        self.report = Report()
        self.real_data = work / "shapes"
        self.small_disk = mount_small_disk(work / "small") if "disk full" in kinds else None
        if self.small_disk is None:
            self.kinds = tuple(kind for kind in kinds if kind != "disk full")

    def straight(self, variant: Variant) -> None:
        run = Run(variant, self.work / f"straight-{variant.workers}-{variant.accumulate}", self.real_data)
        started = time.monotonic()
        code = run.start().wait(LONGEST)
        variant.seconds = time.monotonic() - started
        if code != 0:
            sys.exit(f"the undisturbed run ended with {code}:\n{run.log.read_text()[-3000:]}")
        variant.end = run.end()

    def until(self, count: int, variants: list[Variant]) -> Report:
        for variant in variants:
            self.straight(variant)
            self.straight(variant)  # the first one drew the shapes
        # Kinds take turns, but one that needs workers or the small disk may have to wait for a run that has them.
        while sum(self.report.tried.values()) < count or min(self.report.tried[kind] for kind in self.kinds) == 0:
            left = max(3, count - sum(self.report.tried.values()))
            self.disturb(variants[self.report.runs % len(variants)], left)
        return self.report

    def disturb(self, variant: Variant, most: int) -> None:
        """One run, disturbed at most so many times, to its end."""
        self.report.runs += 1
        on_small_disk = self.small_disk is not None and self.report.runs % 3 == 0
        place = self.small_disk if on_small_disk else self.work
        if self.report.runs % 3 == 1:
            place = self.work / f"link-{self.report.runs}"
            (self.work / f"linked-{self.report.runs}").mkdir()
            place.symlink_to(f"linked-{self.report.runs}")
        data = self.work / f"data-{self.report.runs}"
        data.symlink_to(self.real_data)
        run = Run(variant, place / f"run-{self.report.runs}", data)
        faults = 0
        while True:
            before, was = run.logged_steps(), run.status()["starts"]
            # In turn, so that each kind has its share; those that need another variant or disk wait for one.
            kind = self.next_kind(variant, on_small_disk)
            victim = run.start(cold=sum(self.report.tried.values()) % 8 == 7)
            wait = self.random.uniform(0.2, 1.1) * variant.seconds if faults < most else LONGEST
            code = victim.wait(wait)
            if code is None and faults < most:
                faults += 1
                self.report.tried[kind] += 1
                code = self.strike(kind, run, victim)
                self.check(kind, run, code, before, was)
            elif code is None:
                self.complain(run, "hangs")
                os.kill(victim.pid, signal.SIGKILL)
                victim.wait(10)
                break
            elif code == 0:
                self.report.too_late += faults < most
                break
            else:
                self.complain(run, f"ended with {code} by itself")
                break
        if run.status()["status"] != "finished":
            self.complain(run, "did not end")
        elif unlike := sorted(name for name, _ in set(run.end().items()) ^ set(variant.end.items())):
            self.complain(run, f"ended unlike the undisturbed run: {', '.join(dict.fromkeys(unlike))}")
        data.unlink(missing_ok=True)
        if not self.report.broken:
            shutil.rmtree(run.folder, ignore_errors=True)

    def next_kind(self, variant: Variant, on_small_disk: bool) -> str:
        possible = [
            kind
            for kind in self.kinds
            if (kind != "worker killed" or variant.workers) and (kind != "disk full" or on_small_disk)
        ]
        fewest = min(self.report.tried[kind] for kind in possible)
        return self.random.choice([kind for kind in possible if self.report.tried[kind] == fewest])

    def strike(self, kind: str, run: Run, victim: Victim) -> int:
        """Do what the kind says; give the victim's exit code."""
        with contextlib.ExitStack() as afterwards:
            if kind in POLITE:
                os.kill(victim.pid, POLITE[kind])
            elif kind in ("SIGKILL", "second process", "truncated", "flipped"):
                if kind == "second process" and run.holder() == victim.pid:
                    self.start_second(run, victim)
                os.kill(victim.pid, signal.SIGKILL)
            elif kind == "data gone":
                run.data.unlink()
                afterwards.callback(self.bring_back, run.data)
            elif kind == "worker killed":
                for pid in victim.workers()[:1]:
                    os.kill(pid, signal.SIGKILL)
            elif kind == "disk full":
                afterwards.callback(fill(self.small_disk).unlink)
            code = victim.wait(LONGEST)
        if code is None:
            self.complain(run, f"hangs after {kind}")
            os.kill(victim.pid, signal.SIGKILL)
            return victim.wait(10) or 0
        if kind in ("truncated", "flipped") and run.last.is_file():
            damage(run.last, kind, self.random)
            run.spoilt = run.last.read_bytes()
        return code

    def start_second(self, run: Run, first: Victim) -> None:
        """Another process in the same folder, which has to be refused as long as the first one works there."""
        second = run.start()
        code = second.wait(LONGEST)
        still = Path(f"/proc/{first.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        message = "is working there" in run.log.read_text(errors="replace")
        if still and (code != 1 or not message):
            self.complain(run, f"a second process was let in: code {code}")

    def bring_back(self, data: Path) -> None:
        """A victim that had not looked for its data yet has drawn them anew."""
        if data.exists():
            shutil.rmtree(data)
        data.symlink_to(self.real_data)

    def check(self, kind: str, run: Run, code: int, logged_before: int, starts_before: int) -> None:
        status = run.status()
        begun = status["starts"] > starts_before
        if kind in POLITE:
            number = POLITE[kind]
            # Before the record's first line there is nothing to say "interrupted" of; after the command's last one,
            # the signal kills a process as it kills any other.
            unheard = not begun and code == 128 + number
            over = status["status"] == "finished" and code in (0, -number, 128 + number)
            right = unheard or over or (status["status"] == "interrupted" and code == 128 + number)
        elif kind in ("SIGKILL", "second process", "truncated", "flipped"):
            right = code == -signal.SIGKILL or (status["status"] == "finished" and code == 0)  # it was over already
        else:  # an error, unless the run had no use any more for what it lost
            right = code == (0 if status["status"] == "finished" else 1)
            right = right or (kind == "disk full" and code == 1)  # run.json may have to stay as it was
        if not right:
            self.complain(run, f"{kind}: exit code {code}, status {status['status']}")
        if kind not in ("truncated", "flipped"):
            if run.damaged():
                self.complain(run, f"{kind}: {run.damaged()} is not whole")
            elif not run.is_spoilt() and run.logged_steps() != logged_before:
                lost = max(0, run.logged_steps() - run.saved_steps())
                self.report.lost_steps.setdefault(kind, []).append(lost)
                if lost and kind in POLITE:
                    self.complain(run, f"{kind}: {lost} steps lost")

    def complain(self, run: Run, what: str) -> None:
        message = run.log.read_text(errors="replace")[-3000:] if run.log.is_file() else ""
        self.report.broken.append(f"{run.folder.name} ({run.variant.workers} workers): {what}")
        print(f"BROKEN: {self.report.broken[-1]}\n{message}", file=sys.stderr, flush=True)


def damage(path: Path, kind: str, random: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if kind == "truncated":
        path.write_bytes(data[: random.randrange(len(data))])
    else:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        path.write_bytes(data)


def mount_small_disk(folder: Path) -> Path | None:
    """A disk of a few megabytes; None where this user may not mount one."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    return folder if subprocess.run(mount, capture_output=True).returncode == 0 else None


def fill(folder: Path) -> Path:
    """Leave no room; give the file that takes it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass
    return ballast


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default=",".join(KINDS))
    return parser.parse_args()


def run_harness() -> int:
    wanted = parse()
    for signum in POLITE.values():  # whatever started this: nohup, or a shell's background, ignores some
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    started = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix="fcnlab-faults-"))
    os.chdir(work)
    harness = Harness(wanted.seed, work, tuple(wanted.kinds.split(",")))
    try:
        report = harness.until(wanted.count, [Variant(w, a) for w, a in ((0, 1), (2, 1), (0, 3), (2, 3))])
    finally:
        if harness.small_disk:
            subprocess.run(["umount", "-l", str(harness.small_disk)], check=False)
    if not report.broken:
        shutil.rmtree(work, ignore_errors=True)
    lost = {
        kind: {"mean": round(sum(steps) / len(steps), 2), "most": max(steps)}
        for kind, steps in report.lost_steps.items()
    }
    print(
        json.dumps(
            {
                "faults": sum(report.tried.values()), "by_kind": dict(report.tried), "runs": report.runs,
                "too_late": report.too_late, "lost_steps": lost, "broken": report.broken,
                "not_possible_here": sorted(set(wanted.kinds.split(",")) - set(harness.kinds)),
                "minutes": round((time.monotonic() - started) / 60, 1),
            }
        )
    )  # fmt: skip
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(run_harness())
