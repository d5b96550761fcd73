"""Test the whole ``fcnlab watch`` command."""

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
from urllib.request import urlopen

import pytest

CODE = "import sys; from fcnlab.cli import main\ntry: main()\n"
CODE += "finally: print('TORCH' if {'torch', 'lightning', 'wandb'} & set(sys.modules) else 'NO TORCH')"


def start(folder, *words, **kwargs):
    return subprocess.Popen([sys.executable, "-c", CODE, "watch", *words], cwd=folder, text=True, **kwargs)


def test_the_page_is_served_until_ctrl_c_and_nothing_is_written(make_run, tmp_path):
    make_run("a")
    environment = os.environ | {"TMPDIR": str(tmp_path / "tmp")}
    (tmp_path / "tmp").mkdir()
    before = sorted(tmp_path.rglob("*"))
    process = start(tmp_path, "runs=runs", stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        found = re.fullmatch(
            r"Watching runs at (http://127\.0\.0\.1:\d+/) \(only on this machine; Ctrl-C ends it\)\n", line
        )
        assert found, line
        with urlopen(f"{found[1]}changes") as answer:
            assert [row["folder"] for row in json.load(answer)["rows"]] == ["a"]
    finally:
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (0, "NO TORCH\n", "")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_pipe_gets_the_view_once(make_run, tmp_path, fcnlab, capsys):
    make_run("a")
    assert fcnlab("watch", "runs=runs", "--terminal") == 0
    output = capsys.readouterr().out
    assert (
        output.startswith(
            "1 finished\nBest so far: a: 50.00 % validation mIoU at step 40, the highest of 1 run (finished)."
        )
        and "\x1b" not in output
    )


def test_settings_of_the_page_have_no_effect_in_the_terminal(make_run, fcnlab, capsys):
    make_run("a")
    assert fcnlab("watch", "runs=runs", "--terminal", "port=8600", "open=true") == 0
    output = capsys.readouterr().out
    assert all(f"{word} has no effect with terminal=true" in output for word in ("port=8600", "open=true"))


def test_a_terminal_is_redrawn_until_ctrl_c(make_run, tmp_path):
    make_run("a")
    master, slave = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    process = start(tmp_path, "runs=runs", "terminal=true", stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    timer = threading.Timer(60, process.kill)
    timer.start()
    text = b""
    while text.count(b"1 finished") < 2:
        text += os.read(master, 4096)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    timer.cancel()
    os.close(master)
    height = text.split(b"1 finished")[1].count(b"\n")
    assert f"\x1b[{height}A".encode() in text  # back to its first line
    assert all(len(re.sub(r"\x1b\[\w+", "", line)) < 80 for line in text.decode().splitlines())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["runs=nowhere"], "runs=nowhere: the folder does not exist. Choose a folder with runs"),
        ([], "runs=outputs: the folder does not exist"),
        (["runs=.", "port=-1"], "port must be a port from 0 (any free one) to 65535, got -1."),
        (["runs=.", "prt=1"], "prt"),
        (["runs=[]"], "runs=[] must name at least one folder"),
        (["runs=.", "-m"], "fcnlab watch: -m must be left out"),
        (["runs=.", "hydra.mode=MULTIRUN"], "fcnlab watch: -m must be left out"),
    ],
)
def test_a_user_error_is_reported_without_a_traceback(fcnlab, capsys, words, message):
    assert fcnlab("watch", *words) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_port_in_use_is_reported(fcnlab, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert fcnlab("watch", "runs=.", f"port={port}") == 1
    assert f"port={port} cannot be used: Address already in use. Choose another one" in capsys.readouterr().err


def test_the_flag_belongs_to_watch(fcnlab):
    assert fcnlab("compare", "--terminal") != 0
