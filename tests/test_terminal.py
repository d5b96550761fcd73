"""Test that a command continues, and escapes its output, if standard streams are closed, full or ASCII."""

import errno
import io
import os
import pty
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from fcnlab.terminal import keep_writable, open_standard_files, print_failure
from run_folders import write_run

ASCII = {"LC_ALL": "POSIX", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.fixture
def closed_pipe():
    """Return a stream without a reader, as before ``| head -1``."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        yield stream


@pytest.fixture
def full_disk():
    """Return a stream on a full disk."""
    with Path("/dev/full").open("w") as stream:
        yield stream


def test_writes_to_a_closed_terminal_are_dropped():
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as plain:
        out = keep_writable(plain, 1)
        print("seen", file=out, flush=True)
        assert os.read(master, 100) == b"seen\r\n"
        os.close(master)
        with pytest.raises(OSError, match="Input/output error"):
            os.write(slave, b"x")
        print("not seen", file=out, flush=True)
        assert print_failure(out) is None


def test_writes_to_a_closed_pipe_are_dropped(closed_pipe):
    out = keep_writable(closed_pipe, 1)
    print("not seen", file=out, flush=True)
    assert print_failure(out) is None


def test_a_full_disk_is_remembered(full_disk):
    out = keep_writable(full_disk, 1)
    print("lost" * 10_000, file=out)
    print("lost", file=out)
    assert print_failure(out) == os.strerror(errno.ENOSPC)


def test_a_stream_in_memory_is_unchanged():
    for stream in (io.StringIO(), io.TextIOWrapper(io.BytesIO())):
        assert keep_writable(stream, 1) is stream
        assert print_failure(stream) is None


def test_a_non_blocking_pipe_receives_everything():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    received = []

    def read():
        with os.fdopen(reading, "rb") as file:
            received.append(file.read())

    thread = threading.Thread(target=read)
    with os.fdopen(writing, "w") as stream:
        out = keep_writable(stream, 1)
        thread.start()
        for number in range(50_000):
            print(f"line {number}", file=out)
        out.flush()
    thread.join()
    assert received[0].decode().splitlines() == [f"line {number}" for number in range(50_000)]


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # of PYTHONIOENCODING and of LC_ALL=POSIX
def test_characters_outside_the_encoding_are_escaped(tmp_path, errors):
    with (tmp_path / "out").open("w", encoding="ascii", errors=errors) as stream:
        print("✓ Lov\xe1sz \udce9", file=keep_writable(stream, 1), flush=True)
    assert (tmp_path / "out").read_bytes() == rb"\u2713 Lov\xe1sz \udce9" + b"\n"


def test_closed_standard_streams_are_opened_to_dev_null():
    child = os.fork()
    if not child:
        os.closerange(0, 3)
        open_standard_files()
        print("nowhere", file=keep_writable(None, 1), flush=True)
        is_nowhere = os.fstat(1).st_rdev == os.stat(os.devnull).st_rdev  # noqa: PTH116
        os._exit(0 if is_nowhere and os.open(__file__, os.O_RDONLY) > 2 and os.get_inheritable(1) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("words", [("--help",), ("train", "--help")])
def test_a_closed_pipe_is_not_an_error(fcnlab, monkeypatch, capsys, closed_pipe, words):
    monkeypatch.setattr(sys, "stdout", closed_pipe)
    assert fcnlab(*words) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("train", "--cfg", "job")])
def test_unprinted_output_is_an_error_of_commands_that_only_print(fcnlab, monkeypatch, capsys, full_disk, words):
    monkeypatch.setattr(sys, "stdout", full_disk)
    assert fcnlab(*words) == 1
    assert capsys.readouterr().err == (
        "fcnlab: not all output could be written to standard output: No space left on device\n"
    )


def test_a_comparison_is_complete_if_nobody_reads_its_table(fcnlab, monkeypatch, capsys, closed_pipe, tmp_path):
    write_run(tmp_path / "runs" / "a")
    monkeypatch.setattr(sys, "stdout", closed_pipe)
    assert fcnlab("compare", "runs=runs", "hydra.run.dir=c") == 0
    assert capsys.readouterr().err == ""
    assert (tmp_path / "c" / "comparison.html").is_file()


def test_a_comparison_is_complete_if_its_table_cannot_be_printed(fcnlab, monkeypatch, capsys, full_disk, tmp_path):
    write_run(tmp_path / "runs" / "a")
    monkeypatch.setattr(sys, "stdout", full_disk)
    assert fcnlab("compare", "runs=runs", "hydra.run.dir=c") == 0
    assert "not all output could be written" in (message := capsys.readouterr().err) and "Traceback" not in message
    assert (tmp_path / "c" / "comparison.html").is_file()


def process(tmp_path: Path, *words: str, redirect: str = "", **environment: str) -> subprocess.CompletedProcess:
    """Run a command in a separate shell, with its standard streams redirected by ``redirect``."""
    shell = f'set -o pipefail; "{sys.executable}" -m fcnlab "$@" {redirect}'
    return subprocess.run(
        ["bash", "-c", shell, "bash", *words],
        cwd=tmp_path,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize("redirect", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_daemon_needs_no_standard_streams(tmp_path, redirect):
    write_run(tmp_path / "runs" / "a")
    completed = process(tmp_path, "compare", "runs=runs", "hydra.run.dir=c", redirect=redirect)
    assert (completed.returncode, completed.stderr) == (0, b"")
    assert (tmp_path / "c" / "comparison.html").is_file()


@pytest.mark.slow
def test_a_sweep_continues_without_its_terminal(tmp_path, small, shapes_root):
    words = [*small, f"data.root={shapes_root}", "trainer=smoke", "logger=csv", "trainer.accelerator=cpu"]
    completed = process(
        tmp_path, "train", "-m", "seed=1,2", "hydra.sweep.dir=s", *words, redirect="| head -1", OMP_NUM_THREADS="1"
    )
    assert completed.returncode == 0, completed.stderr
    assert len(list((tmp_path / "s").glob("*/metrics.json"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("redirect", ["", "| head -1"])
def test_the_exit_code_of_doctor_does_not_depend_on_its_terminal(tmp_path, small, shapes_root, redirect):
    words = [*(word for word in small if word.startswith("data.")), f"data.root={shapes_root}", "hydra.run.dir=d"]
    completed = process(tmp_path, "doctor", *words, redirect=redirect, **ASCII)
    assert (completed.returncode, completed.stderr) == (0, b"")
    assert completed.stdout.isascii()
    assert "shapes" in (tmp_path / "d" / "doctor.log").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_log_is_utf_8_on_an_ascii_terminal(tmp_path):
    write_run(tmp_path / "runs" / "a")
    completed = process(tmp_path, "compare", "runs=runs", "hydra.run.dir=c", **ASCII)
    assert (completed.returncode, completed.stderr) == (0, b"")
    assert rb"Mean \xb1 standard" in completed.stdout
    assert "Mean ± standard" in (tmp_path / "c" / "compare.log").read_text(encoding="utf-8")
