"""Test run.json and its companions: they describe a run and how it ended, and allow repeating it."""

import json
import os
import shlex
import signal
import subprocess
from importlib import metadata

import pytest
import torch
import yaml

from fcnlab.errors import LONGEST_REASON
from fcnlab.files.reading import JSON_BYTES
from fcnlab.runs import run_record
from fcnlab.runs.run_record import uncommitted_changes
from fcnlab.runs.source_fingerprint import source_fingerprints


def record(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_a_run_records_its_settings_and_environment(train):
    folder = train("seed=7", "optim.lr=0.01")
    written = record(folder)
    assert written["status"] == "finished" and written["ended"] >= written["started"] and written["starts"] == 1
    assert {"seed=7", "optim.lr=0.01"} <= set(written["overrides"]) and written["command"].startswith("fcnlab train")
    assert written["packages"]["torch"] == metadata.version("torch") and written["packages"][
        "numpy"
    ] == metadata.version("numpy")
    scored = json.loads((folder / "metrics.json").read_text())["provenance"]
    assert written["source"] == scored["source"] == source_fingerprints() | {"lightning": metadata.version("lightning")}
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["data"]["seed"] == config["seed"] == 7 and "${" not in (folder / "config.yaml").read_text()


def test_the_recorded_changes_are_those_of_git(repository):
    """The recorded changes, applied to the commit, give the files that ran."""
    diff = subprocess.run(["git", "diff", "HEAD", "--no-color"], cwd=repository, capture_output=True, check=False)
    if diff.returncode:
        pytest.skip("no checkout here")
    assert uncommitted_changes() == diff.stdout.decode()


def test_a_record_of_a_long_error_is_small_and_readable(tmp_path):
    """An error that quoted a name of 900 MB once made the record unreadable."""
    end = run_record._end(OSError(36, "File name too long", "x" * (JSON_BYTES + 1) + "END"))
    assert end["reason"].startswith("OSError: [Errno 36] File name too long: 'xxx") and end["reason"].endswith("END'")
    assert len(end["reason"]) < LONGEST_REASON + 20
    run_record.RunRecord(tmp_path).write(**end)
    assert run_record.RunRecord(tmp_path).facts == end


def test_a_failed_run_is_recorded_as_failed(train_code, tmp_path):
    assert train_code("data.train_list=nowhere") == 1
    written = record(tmp_path / "run")
    assert written["status"] == "failed" and "nowhere" in written["reason"]


@pytest.mark.parametrize("moment", ["commit", "atomic_write"])
def test_a_signal_at_the_start_leaves_a_complete_record_or_none(train_code, monkeypatch, tmp_path, moment):
    """While the record is prepared ("commit") nothing is written; when it is first written, it is complete."""
    original = getattr(run_record, moment)

    def struck(*words):
        monkeypatch.setattr(run_record, moment, original)
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*words)

    monkeypatch.setattr(run_record, moment, struck)
    assert train_code() == 128 + signal.SIGTERM
    assert (tmp_path / "run" / "run.json").exists() == (moment == "atomic_write")
    if moment == "atomic_write":
        written = record(tmp_path / "run")
        assert (written["status"], written["reason"], written["starts"]) == ("interrupted", "SIGTERM", 1)
        assert "trainer=smoke" in written["overrides"]


def test_no_file_of_a_run_contains_the_w_and_b_key(train, monkeypatch):
    key = "abcdef0123456789" * 3
    monkeypatch.setenv("WANDB_API_KEY", key)
    folder = train("logger=default", "trainer.max_steps=2")
    for path in folder.rglob("*"):
        assert not path.is_file() or key.encode() not in path.read_bytes(), path


def test_a_new_run_does_not_overwrite_an_old_one(train, train_code, capsys):
    folder = train("trainer.max_steps=2")
    before = (folder / "metrics.json").read_bytes()
    assert train_code("trainer.max_steps=2") == 1
    assert "checkpoint=auto" in capsys.readouterr().err
    assert (folder / "metrics.json").read_bytes() == before


def weights(folder) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_run_is_repeated_from_its_record(train, fcnlab, tmp_path):
    first = train("seed=3", "model=fcn16s", "optim.lr=0.004", "trainer.max_steps=4")
    assert fcnlab("train", f"from_run={first}", f"hydra.run.dir={tmp_path}/again") == 0
    again = tmp_path / "again"
    original, repeated = weights(first), weights(again)
    assert original.keys() == repeated.keys() and all(torch.equal(original[key], repeated[key]) for key in original)
    assert (first / "metrics.csv").read_text() == (again / "metrics.csv").read_text()


def test_typed_overrides_replace_those_of_the_record(train, fcnlab, tmp_path):
    first = train("seed=3", "model=fcn16s", "trainer.max_steps=2")
    words = [f"from_run={first}", "seed=4", "model=fcn32s", f"hydra.run.dir={tmp_path}/other"]
    assert fcnlab("train", *words) == 0
    config = yaml.safe_load((tmp_path / "other" / "config.yaml").read_text())
    assert config["seed"] == config["data"]["seed"] == 4 and config["model"]["levels"] == [32]
    assert config["trainer"]["max_steps"] == 2


def test_a_repeated_run_uses_the_recorded_defaults(train, fcnlab, tmp_path):
    """Simulates a version whose default differs from that of the version that wrote the record."""
    first = train("trainer.max_steps=2")
    path = first / ".hydra" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    assert config["schedule"]["power"] != 0.5
    config["schedule"]["power"] = 0.5
    path.write_text(yaml.safe_dump(config))
    assert fcnlab("train", f"from_run={first}", f"hydra.run.dir={tmp_path}/again") == 0
    again = tmp_path / "again"
    assert yaml.safe_load((again / "config.yaml").read_text())["schedule"]["power"] == 0.5
    assert "schedule.power" in (again / "train.log").read_text()
    assert fcnlab("train", f"from_run={again}", f"hydra.run.dir={tmp_path}/third") == 0
    assert yaml.safe_load((tmp_path / "third" / "config.yaml").read_text())["schedule"]["power"] == 0.5


def test_changed_interpolated_values_cause_a_warning(train, fcnlab, tmp_path, monkeypatch):
    (tmp_path / "conf" / "optim").mkdir(parents=True)
    (tmp_path / "conf" / "optim" / "mine.yaml").write_text(
        "defaults: [sgd]\nlr: ${oc.decode:${oc.env:LEARNING_RATE}}\nmomentum: ${oc.decode:${oc.env:MOMENTUM,0.9}}\n"
    )
    words = ("--config-dir", str(tmp_path / "conf"))
    monkeypatch.setenv("LEARNING_RATE", "0.01")
    first = train(*words, "optim=mine", "trainer.max_steps=2")
    monkeypatch.setenv("LEARNING_RATE", "0.02")
    assert fcnlab("train", *words, f"from_run={first}", f"hydra.run.dir={tmp_path}/again") == 0
    log = (tmp_path / "again" / "train.log").read_text()
    assert "optim.lr=0.02 here, but that run had 0.01" in log and "type optim.lr=0.01" in log
    assert "optim.momentum" not in log
    typed = (f"from_run={first}", "optim.lr=0.01", f"hydra.run.dir={tmp_path}/third")
    assert fcnlab("train", *words, *typed) == 0
    assert "but that run had" not in (tmp_path / "third" / "train.log").read_text()
    assert (first / "metrics.csv").read_text() == (tmp_path / "third" / "metrics.csv").read_text()


def test_the_command_of_a_job_contains_the_job_number(train):
    """The run is started like the job of a sweep, whose number is Hydra's."""
    folder = train("hydra.job.num=3", "seed=${hydra:job.num}", "trainer.max_steps=2")
    command = shlex.split(json.loads((folder / "run.json").read_text())["command"])
    assert "hydra.job.num=3" in command and "seed=${hydra:job.num}" in command
    assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == 3


@pytest.mark.parametrize(
    "place", [lambda bad: {"progress": bad}, lambda bad: {"progress": [bad]}, lambda bad: {"x": {"y[_target_]": "a.b"}}]
)
def test_a_record_that_names_foreign_code_is_refused(train, fcnlab, tmp_path, capsys, place):
    first = train("trainer.max_steps=2")
    path = first / ".hydra" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    (tmp_path / "src").touch()
    config["callbacks"] |= place({"_target_": "shutil.copyfile", "src": f"{tmp_path}/src", "dst": f"{tmp_path}/ran"})
    path.write_text(yaml.safe_dump(config))
    assert fcnlab("train", f"from_run={first}", f"hydra.run.dir={tmp_path}/again") == 1
    assert (
        "record" in (message := capsys.readouterr().err) and "callbacks." in message and not (tmp_path / "ran").exists()
    )


@pytest.mark.parametrize(
    "word", ["+callbacks.x._target_=a.b", "++hydra.run.dir=/x", "--multirun", "seed=${oc.env:HOME}"]
)
def test_record_overrides_that_are_not_settings_are_refused(fcnlab, tmp_path, capsys, word):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "run.json").write_text(json.dumps({"overrides": ["seed=1", word]}))
    assert fcnlab("train", f"from_run={tmp_path}/old") == 1
    assert "refused" in capsys.readouterr().err


def test_a_folder_without_a_record_is_named(fcnlab, tmp_path, capsys):
    assert fcnlab("train", f"from_run={tmp_path}/none") == 1
    assert "run.json" in capsys.readouterr().err


def test_changes_name_secret_files_without_their_contents(tmp_path, monkeypatch):
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        completed = subprocess.run(["git", *identity, *words], cwd=tmp_path, capture_output=True, check=True)
        return completed.stdout.decode()

    secrets = [".env", "conf/prod.env", "key.pem", ".ssh/known", "id_rsa", ".netrc", "gcp-credentials.json", "a b.key"]
    git("init", "-q")
    for name in ("code.py", ".env"):
        (tmp_path / name).write_text("before\n")
    git("add", "-A")
    git("commit", "-qm", "first")
    for name in ("code.py", "monkey.py", *secrets):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"hunter2 in {name}\n" if name in secrets else "after\n")
    git("add", "-A")
    monkeypatch.setattr(run_record, "git", git)
    changes = uncommitted_changes()
    assert "hunter2" not in changes and all(
        f"excluded, because it may contain a secret: {name!r}" in changes for name in secrets
    )
    (tmp_path / "changes").write_text(changes)
    git("reset", "-q", "--hard")
    git("apply", "changes")
    assert (tmp_path / "code.py").read_text() == (tmp_path / "monkey.py").read_text() == "after\n"
