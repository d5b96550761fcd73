"""Test that a W&B run ends in a bounded time, and how the rest of its data is uploaded."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from fcnlab.tracking import end
from fcnlab.tracking.end import UNSENT, end_run, sync_command
from wandb_server import loopback_server


class FakeRun:
    """A run as far as its end needs it; ``finish`` is the body of its end."""

    def __init__(self, folder: Path, finish=lambda: None, offline: bool = False, timed_out: bool = False):
        self.summary: dict = {}
        self.settings = SimpleNamespace(finish_timeout=0.1, log_internal=str(folder / "debug-internal.log"))
        self.dir, self.offline, self._finish_timed_out = str(folder / "files"), offline, timed_out
        self._finish, self.exit_code = finish, None

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code
        self._finish()


@pytest.fixture(autouse=True)
def no_helper(monkeypatch):
    """No process of W&B, and short limits."""
    monkeypatch.setattr(end, "MARGIN", 0.1)
    monkeypatch.setattr(end, "helper_process", lambda: None)


def test_a_run_that_is_sent_ends_without_a_word(tmp_path, caplog):
    run = FakeRun(tmp_path)
    end_run(run, "interrupted", 143)
    assert run.summary == {"status": "interrupted"} and run.exit_code == 143 and not caplog.text


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"timed_out": True}, "they could not be sent within 0.1 s"),
        ({"finish": lambda: 1 / 0}, "division by zero"),
        ({"finish": lambda: time.sleep(1)}, "they could not be sent within 0.1 s"),
    ],
)
def test_what_is_not_sent_is_reported_with_the_command_for_it(tmp_path, caplog, settings, reason):
    began = time.monotonic()
    end_run(FakeRun(tmp_path, **settings), "finished", 0)
    assert time.monotonic() - began < 0.9
    assert f"({reason})" in caplog.text and f"wandb sync --include-online {tmp_path}" in caplog.text
    assert caplog.text.count("\n") == 1


def test_an_offline_run_is_not_reported_as_unsent(tmp_path, caplog):
    end_run(FakeRun(tmp_path, offline=True, timed_out=True), "finished", 0)
    assert not caplog.text and "--include-online" not in sync_command(FakeRun(tmp_path, offline=True))


@pytest.mark.parametrize(
    ("line", "unsent"),
    [
        ('{"level":"ERROR+4","msg":"filestream: fatal error: filestream: failed to upload: 401"}', True),
        ('{"level":"ERROR","msg":"runfiles: CreateRunFiles returned error: returned error 401"}', True),
        ('{"level":"INFO","msg":"api: retrying HTTP error","status":500}', False),
        ('{"level":"INFO","msg":"fileTransfer: Close: file transfer manager closed"}', False),
    ],
)
def test_w_and_bs_log_says_whether_data_were_refused(tmp_path, caplog, line, unsent):
    """Lines of wandb-core 0.31."""
    (tmp_path / "debug-internal.log").write_text(line.replace('{"', '{"time":"2026-11-30T00:00:00Z","', 1))
    assert bool(UNSENT.search(line.encode())) == unsent
    end_run(FakeRun(tmp_path), "finished", 0)
    assert ("the server refused some of them" in caplog.text) == unsent


@pytest.mark.parametrize("others", [False, True])
def test_w_and_bs_process_ends_with_a_run_that_does_not(tmp_path, monkeypatch, others):
    """It stays where a caller has further runs."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        monkeypatch.setattr(end, "helper_process", lambda: process)
        monkeypatch.setattr(end, "has_other_runs", lambda: others)
        monkeypatch.setattr(end, "_forget_helper_process", lambda: None)
        end_run(FakeRun(tmp_path, finish=lambda: threading.Event().wait(1)), "finished", 0)
        assert (process.poll() is None) == others
        process.kill()


def test_w_and_bs_process_holds_up_no_exit(monkeypatch):
    """W&B waits for it without a limit."""
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        monkeypatch.setattr(end, "helper_process", lambda: process)
        monkeypatch.setattr(end, "has_other_runs", lambda: False)
        monkeypatch.setattr(end, "EXIT_TIMEOUT", 0.05)
        end._end_helper_process_soon()
        assert process.wait(10) != 0


def test_an_interruption_of_the_end_ends_w_and_bs_process(tmp_path, monkeypatch):
    """A second Ctrl-C while a run waits for the server."""
    ended: list[bool] = []
    monkeypatch.setattr(end, "_end_helper_process", lambda: ended.append(True))

    def interrupted(seconds: float, call) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(end.calls, "run_within", interrupted)
    monkeypatch.setattr(end, "attempt", lambda content, call: None)
    with pytest.raises(KeyboardInterrupt):
        end_run(FakeRun(tmp_path), "interrupted", 130)
    assert ended == [True]


ONLINE = """
import sys, time
from pathlib import Path
import wandb
from fcnlab.tracking import connection, end
logger = connection.wandb_logger('.', {}, mode='online')
for step in range(30):
    logger.log_metrics({'x': float(step)}, step)
Path('broken').touch()
began = time.monotonic()
logger.experiment.log({'table': wandb.Table(['a'], [[1]])})  # for which W&B would verify the key first
logger.experiment.alert('title', 'text')  # for which W&B's process waits, and looks at no clock
end.end_run(logger.experiment, 'finished', 0)
print('ended after', time.monotonic() - began)
"""


@pytest.mark.slow  # W&B's own process, twice
def test_a_server_that_falls_silent_costs_seconds_and_nothing_is_lost(tmp_path):
    """The data that it did not get are uploaded to a server that works, by W&B's own command."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    clean |= {"WANDB_FINISH_TIMEOUT": "2"}
    program = Path(sys.executable).with_name("wandb")
    with loopback_server(fault="silent", is_broken=lambda: (tmp_path / "broken").exists()) as server:
        done = subprocess.run(
            [sys.executable, "-c", ONLINE],
            env=clean | server.environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=90,
        )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split("ended after")[1].split()[0]) < 10
    assert "wandb sync --include-online" in done.stderr
    (run,) = (tmp_path / "wandb").glob("run-*")
    with loopback_server() as server:
        environment = clean | server.environment
        subprocess.run([program, "sync", "--include-online", run], env=environment, check=True, capture_output=True)
    rows = server.history()
    assert [row["x"] for row in rows[:-1]] == [float(step) for step in range(30)]
    assert rows[-1]["table"]["nrows"] == 1 and any("table.json" in each["path"] for each in server.sent("upload"))
    (alert,) = server.sent("NotifyScriptableRunAlert")
    assert (alert["title"], alert["text"]) == ("title", "text")
    assert json.dumps(server.sent("file_stream")[-1]).count('"exitcode": 0') == 1
