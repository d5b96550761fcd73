"""Test that W&B's alerts are sent once for each of three events, and not at all unless they are on."""

import os
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import wandb

from fcnlab.config.run_context import RunContext
from fcnlab.signals import Interrupted
from fcnlab.tracking.alerts import alert_about_end, send_alert
from fcnlab.tracking.mirror import Mirror
from fcnlab.training import loggers
from fcnlab.training.callbacks.stopping import TrainingDiverged
from wandb_server import loopback_server


@pytest.fixture
def mirror(tmp_path) -> Mirror:
    """Return a logger of an online run, which sends alerts."""
    run = MagicMock(spec=wandb.Run, offline=False, dir=str(tmp_path / "files"))
    run.settings = SimpleNamespace(finish_timeout=1.0, log_internal=str(tmp_path / "none"))
    run._finish_timed_out = False
    logger = Mirror(experiment=run)
    logger.alerts = True
    return logger


def sent(logger: Mirror) -> list[tuple[str, str, str]]:
    return [call.args for call in logger._experiment.alert.call_args_list]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Interrupted(15), [("The run was interrupted", "It was stopped by SIGTERM.", "WARN")]),
        (TrainingDiverged("the loss became nan"), [("The run has diverged", "the loss became nan", "ERROR")]),
        (RuntimeError("out of memory"), []),
        (None, []),
    ],
)
def test_an_interruption_and_a_divergence_are_sent(mirror, composed, monkeypatch, tmp_path, error, expected):
    monkeypatch.setattr(loggers, "_open_wandb", lambda *words: mirror)
    cfg = composed("logger=wandb", "logger.wandb.alerts=true")
    try:
        with loggers.open_loggers(cfg, RunContext("train", tmp_path, ())):
            if error:
                raise error
    except (Interrupted, TrainingDiverged, RuntimeError):
        pass
    assert sent(mirror) == expected and mirror._experiment.finish.call_count == 1


def test_the_end_is_sent_with_the_score(mirror):
    alert_about_end(mirror, "final", 0.25)
    assert sent(mirror) == [("The run has ended", "final/miou: 25.00 %", "INFO")]


def test_nothing_is_sent_unless_alerts_are_on_and_the_run_is_online(mirror):
    mirror.alerts = False
    send_alert(mirror, "title", "text")
    mirror.alerts, mirror._experiment.offline = True, True
    send_alert(mirror, "title", "text")
    assert sent(mirror) == []


def test_an_error_of_an_alert_is_a_warning(mirror, caplog):
    mirror._experiment.alert.side_effect = ConnectionError("its process is gone")
    send_alert(mirror, "title", "text")
    assert "some alerts of this run are missing in W&B (its process is gone)" in caplog.text


def test_offline_alerts_are_reported_as_ineffective(composed, monkeypatch, tmp_path, caplog):
    offline = MagicMock(offline=True, dir=str(tmp_path / "files"))
    monkeypatch.setattr("fcnlab.tracking.connection._started", lambda described, mode: offline)
    for words, count in ((["logger.wandb.alerts=true"], 1), ([], 0)):
        caplog.clear()
        loggers._open_wandb(composed("logger=wandb", *words), RunContext("train", tmp_path, words), {})
        assert caplog.text.count("logger.wandb.alerts=true has no effect") == count


ONLINE = """
import sys
from pathlib import Path
import fcnlab
from fcnlab.config.run_context import RunContext
from fcnlab.signals import Interrupted
from fcnlab.training.callbacks.stopping import TrainingDiverged
from fcnlab.training.loggers import open_loggers
cfg = fcnlab.compose(['logger=wandb', 'logger.wandb.alerts=true'])
for error in (Interrupted(15), TrainingDiverged('train/loss is nan at step 7')):
    folder = Path(type(error).__name__)
    try:
        with open_loggers(cfg, RunContext('train', folder, (), options={})) as (logger,):
            logger.log_metrics({'train/loss': 1.0}, 7)
            raise error
    except type(error):
        pass
"""


@pytest.mark.slow  # W&B's own process
def test_a_server_gets_both_alerts(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    with loopback_server() as server:
        done = subprocess.run(
            [sys.executable, "-c", ONLINE],
            env=clean | server.environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, done.stderr
    assert [(each["title"], each["text"], each["severity"]) for each in server.sent("NotifyScriptableRunAlert")] == [
        ("The run was interrupted", "It was stopped by SIGTERM.", "WARN"),
        ("The run has diverged", "train/loss is nan at step 7", "ERROR"),
    ]
    assert [row["train/loss"] for row in server.history()] == [1.0, 1.0]
