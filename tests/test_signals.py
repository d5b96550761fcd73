"""Test which signals are handled, what they end, and how a process ends that cannot handle them."""

import ctypes
import enum
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from fcnlab import cli, signals
from fcnlab.signals import STOPPING, Interrupted, StopSignals, ended_by_signals
from fcnlab.sweeps import processes


@pytest.fixture
def exits(monkeypatch) -> list:
    """Record the calls that would have ended this process."""
    calls: list = []
    monkeypatch.setattr(signals, "_leave", lambda signum, line: calls.append((signum, line)))
    return calls


# --- handled signals


@pytest.mark.parametrize("signum", STOPPING)
def test_each_signal_ends_a_run_with_its_own_code(signum):
    with StopSignals(), pytest.raises(Interrupted) as stopped:
        signal.raise_signal(signum)
    assert stopped.value.code == 128 + signum
    assert signal.SIGHUP in STOPPING


@pytest.fixture
def without_hangup():
    """Ignore SIGHUP, like nohup does."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGHUP, before)


def test_a_closed_terminal_is_ignored_under_nohup(without_hangup, exits):
    with ended_by_signals(), StopSignals() as listening:
        listening.listen()
        signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN and not exits and listening.asked is None


def test_signals_unknown_to_the_system_are_left_out():
    windows = enum.IntEnum("Signals", {"SIGINT": 2, "SIGTERM": 15})
    assert list(signals.of_this_system(windows)) == [15, 2]


def test_a_signal_before_a_command_starts_ends_it_with_one_line(exits):
    before = [signal.getsignal(signum) for signum in STOPPING]
    with ended_by_signals():
        for signum in STOPPING:
            signal.raise_signal(signum)
    assert exits == [(signum, f"fcnlab: stopped by {signum.name}\n") for signum in STOPPING]
    assert [signal.getsignal(signum) for signum in STOPPING] == before


@pytest.mark.parametrize("verb", ["eval", "predict"])
def test_a_stopped_command_reports_it_in_one_line(fcnlab, monkeypatch, capsys, verb):
    def stopped(cfg) -> None:
        with StopSignals():
            signal.raise_signal(signal.SIGHUP)

    monkeypatch.setattr(cli, "_run", stopped)
    assert fcnlab(verb) == 128 + signal.SIGHUP
    assert capsys.readouterr().err == "fcnlab: stopped by SIGHUP\n"


@pytest.mark.parametrize("chained", [True, False])
def test_errors_of_an_interrupted_import_are_reported_as_interruption(chained):
    """The import drops our exception, and the partially imported module fails later."""
    with StopSignals() as listening, pytest.raises(Interrupted), listening.reraise_as_interrupted():
        try:
            signal.raise_signal(signal.SIGINT)
        except Interrupted as swallowed:
            if chained:
                raise RecursionError from swallowed
        raise RecursionError


# --- a process that cannot handle signals


@pytest.mark.parametrize(
    ("received", "over", "ends"),
    [
        ([signal.SIGINT, signal.SIGCHLD, signal.SIGINT], False, True),
        ([signal.SIGINT, signal.SIGCHLD, signal.SIGTERM], False, False),
        ([signal.SIGINT, signal.SIGINT], True, False),  # it ended by itself in the meantime
    ],
)
def test_the_second_ctrl_c_is_counted_outside_the_main_thread(monkeypatch, exits, received, over, ends):
    monkeypatch.setattr(signals, "HARD_STOP_AFTER", 0.01)
    reading, writing = os.pipe()
    os.write(writing, bytes(received))
    os.close(writing)
    ended = threading.Event()
    if over:
        ended.set()
    signals._count_interrupts(reading, ended)
    assert [signum for signum, _ in exits] == ([signal.SIGINT] if ends else [])


def test_signals_to_a_fork_are_not_counted():
    with ended_by_signals():
        child = os.fork()
        if not child:
            os._exit(signal.set_wakeup_fd(-1) + 1)  # 0: it had no wakeup file
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        kept = signal.set_wakeup_fd(-1)
        assert kept >= 0
        signal.set_wakeup_fd(kept)


# --- a parent that ends


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
@pytest.mark.parametrize(("parent", "ends"), [(os.getppid(), None), (os.getppid() + 1, 128 + signal.SIGKILL)])
def test_a_rank_ends_if_the_first_rank_is_gone(monkeypatch, parent, ends):
    prctl_calls, ended = [], []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(prctl=lambda *words: prctl_calls.append(words)))
    monkeypatch.setattr(os, "_exit", ended.append)
    processes.die_with_parent(parent)
    assert prctl_calls == [(processes.PR_SET_PDEATHSIG, signal.SIGKILL)]  # first, since the parent could end in between
    assert ended == ([] if ends is None else [ends])


LATE = """
import ctypes, os, sys
from types import SimpleNamespace
from fcnlab.sweeps.processes import start_process
prctl = ctypes.CDLL(None).prctl
def late(option, signum):
    parent = os.getppid()
    os.kill(parent, 9)
    while os.getppid() == parent:
        pass
    return prctl(option, signum)
ctypes.CDLL = lambda name: SimpleNamespace(prctl=late)
start_process([sys.executable, "-S", "-c", "print('alone')"], None, None, [])
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_a_child_whose_parent_ends_before_prctl_is_killed():
    completed = subprocess.run([sys.executable, "-c", LATE], stdout=subprocess.PIPE, timeout=60)
    assert completed.returncode == -signal.SIGKILL and completed.stdout == b""  # all of it: the child has it open, too


# --- real processes


def start(folder: Path, *words: str, **further) -> subprocess.Popen:
    command = [sys.executable, "-W", "ignore", "-m", "fcnlab", *words]
    with (folder / "message").open("ab") as message:
        streams = {"stdout": message, "stderr": message} | further
        return subprocess.Popen(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, **streams)


def wait_for_row(run: Path, process: subprocess.Popen) -> None:
    """Wait until the run has logged a row."""
    deadline = time.monotonic() + 120
    while not (run / "metrics.csv").is_file():
        assert process.poll() is None and time.monotonic() < deadline, (run.parent / "message").read_text()
        time.sleep(0.05)


LONG = ("trainer.max_steps=5000", "trainer.val_check_interval=5000", "trainer.log_every_n_steps=1", "hydra.run.dir=run")


@pytest.mark.slow
@pytest.mark.parametrize("bar", ["callbacks.progress.enabled=true", "callbacks.progress.enabled=false"])
def test_a_run_saves_itself_when_its_terminal_closes(tmp_path, small, bar):
    """The progress bar writes to the terminal all the time, also between its end and the signal."""
    words = ["train", *small, "trainer=smoke", "trainer.accelerator=cpu", "logger=csv", bar, *LONG]
    pid, terminal = pty.fork()
    if not pid:
        os.chdir(tmp_path)
        os.execve(sys.executable, [sys.executable, "-W", "ignore", "-m", "fcnlab", *words], dict(os.environ))
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.csv").is_file() and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.05)[0]:
            os.read(terminal, 4096)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP
    assert json.loads((tmp_path / "run" / "run.json").read_text())["reason"] == "SIGHUP"
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl is Linux's")
def test_the_second_ctrl_c_ends_a_run_with_a_blocked_rank(tmp_path, small):
    words = ["train", *small, "data.batch_size=2", "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu"]
    process = start(tmp_path, *words, "logger=csv", *LONG, start_new_session=True)
    wait_for_row(tmp_path / "run", process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    rank = next(int(pid) for pid in children if b"train_ddp_process" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(rank, signal.SIGSTOP)
    for _ in range(2):
        time.sleep(1)
        os.killpg(process.pid, signal.SIGINT)
    sent_at = time.monotonic()
    assert process.wait(60) == 128 + signal.SIGINT
    assert time.monotonic() - sent_at < signals.HARD_STOP_AFTER + 5
    deadline = time.monotonic() + 5
    while Path(f"/proc/{rank}").exists() and "Z" not in Path(f"/proc/{rank}/stat").read_text().split(")")[1][:3]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.3, 1.0, 2.0, 4.0])
def test_ctrl_c_while_a_command_starts_is_reported_in_one_line(tmp_path, small, after):
    words = ["train", *small, "trainer=smoke", "trainer.accelerator=cpu", "logger=csv", *LONG]
    process = start(tmp_path, *words, start_new_session=True)
    time.sleep(after)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 128 + signal.SIGINT
    message = (tmp_path / "message").read_text()
    assert "Traceback" not in message and message.lower().count("stopped by sigint") == 1


class Dropped:
    """Calls a function in its finaliser, which cannot raise exceptions."""

    def __init__(self, does: Callable[[], object]):
        self.does = does

    def __del__(self):
        self.does()


@pytest.mark.parametrize("place", ["a finaliser", "a fork"])
def test_a_signal_that_python_swallows_is_raised_again(place, capsys, monkeypatch):
    """It is never lost, and Python does not print "Exception ignored in ..."."""
    printed: list = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    if place == "a fork":
        asking: list = [True]
        os.register_at_fork(after_in_parent=lambda: asking and asking.pop() and signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Interrupted) as stopped, StopSignals():
        if place == "a fork":
            child = os.fork()
            if not child:
                os._exit(0)
        else:
            Dropped(lambda: signal.raise_signal(signal.SIGTERM))
        time.sleep(1)
        pytest.fail("the signal is lost")
    assert stopped.value.signal == signal.SIGTERM and not printed and not capsys.readouterr().err
    assert sys.unraisablehook == printed.append and signal.getitimer(signal.ITIMER_REAL)[0] == 0


def test_other_unraisable_errors_are_reported_as_usual(monkeypatch):
    printed: list = []
    monkeypatch.setattr(sys, "unraisablehook", lambda swallowed: printed.append(swallowed.exc_type))
    with StopSignals():
        Dropped(lambda: 1 / 0)
    assert printed == [ZeroDivisionError]


def test_a_starting_data_loader_is_completed_before_a_signal_ends_the_run():
    """torch's loader fails if it is dropped incomplete, and Python prints that ("Exception ignored in ...")."""
    places: dict = {"__name__": "torch.utils.data.dataloader", "raise_signal": signal.raise_signal, "sleep": time.sleep}
    exec("def __init__(made):\n    raise_signal(15)\n    sleep(0.2)\n    made.append(True)", places)
    made: list = []
    with pytest.raises(Interrupted) as stopped, StopSignals() as signals:
        places["__init__"](made)
        time.sleep(1)
        pytest.fail("the signal is lost")
    assert made == [True] and stopped.value.signal == signal.SIGTERM and signals.raised
