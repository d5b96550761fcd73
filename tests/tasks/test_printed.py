"""Test that the commands that fcnlab prints work, whatever the names of the folders."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from fcnlab.config.overrides import format_override

pytestmark = pytest.mark.slow
LATIN1 = os.fsdecode(b"d\xe9j\xe0 it's")  # how Python represents bytes that are not UTF-8
ODD = ["a b", "lr=0.1,seed=1", "it's", 'say "so"', "$HOME [1]", LATIN1]


def words_of(line: str) -> list[str]:
    """Return the words that bash parses from a line."""
    completed = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return [os.fsdecode(word) for word in completed.stdout.split(b"\0")[:-1]]


@pytest.mark.parametrize("name", ODD)
def test_every_printed_command_works(train, train_code, fcnlab, tmp_path, capsys, name: str):
    folder = train(
        format_override("hydra.run.dir", name), "trainer.max_steps=2", "trainer.val_check_interval=2", folder="x"
    ).parent
    printed = re.search(r"Next: fcnlab (predict .*) input=FILE", capsys.readouterr().out)
    assert printed
    image = next((folder / name).glob("predictions/*.png"))
    assert fcnlab(*words_of(printed[1]), format_override("input", image), "output=out") == 0
    command = json.loads((folder / name / "metrics.json").read_text())["provenance"]["command"]
    assert fcnlab(*words_of(command)[1:], "hydra.run.dir=again") == 0
    assert fcnlab("compare", f"runs={name},again", "resamples=100") == 0
    assert fcnlab("train", format_override("from_run", name), "hydra.run.dir=repeated") == 0
    assert fcnlab("eval", format_override("checkpoint", folder / name / "checkpoints" / "best.ckpt")) == 0


def printed_command(message: str, before: str) -> list[str]:
    """Return the words of the command that was printed after these words, without "fcnlab"."""
    match = re.search(rf"{before}: fcnlab (.*)", message)
    assert match, message
    return shlex.split(match[1])


@pytest.fixture
def sweep_words(small, shapes_root):
    """Return overrides that make the jobs of a sweep take seconds."""
    steps = ("trainer=smoke", "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.accelerator=cpu")
    return (*small, *steps, f"data.root={shapes_root}", "logger=csv")


def test_the_printed_command_repeats_the_best_trial_of_a_search(fcnlab, tmp_path, capfd, sweep_words):
    """The trial's seed is its number; its learning rate comes from the search space of a file."""
    (tmp_path / "my conf" / "experiment").mkdir(parents=True)
    text = "# @package _global_\nhydra:\n  sweeper:\n    params: {optim.lr: 0.05}\n"
    (tmp_path / "my conf" / "experiment" / "own.yaml").write_text(text)
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "optim.weight_decay=interval(0,0.1)")
    options, seed = ("--config-dir", "my conf"), ("seed=${hydra:job.num}",)
    assert fcnlab("train", "-m", *options, *sweep_words, "experiment=own", *seed, *search, "hydra.sweep.dir=s") == 0
    again = printed_command(capfd.readouterr().out, "To rerun the best trial")
    assert fcnlab(*again, "hydra.run.dir=again") == 0
    best = json.loads((tmp_path / "s" / "search.json").read_text())["best"]
    first, second = (
        json.loads((folder / "metrics.json").read_text())
        for folder in (tmp_path / "s" / str(best["number"]), tmp_path / "again")
    )
    assert (second["miou"], second["provenance"]["seed"]) == (first["miou"], best["number"])


def test_the_commands_printed_by_a_sweep_with_a_failed_job_work(fcnlab, tmp_path, capfd, sweep_words):
    params = "hydra.sweeper.params={model.weights:'gone.ckpt,none',seed:3}"
    odd = ("hydra.launcher.slots=1", "hydra.sweep.subdir='job ${hydra.job.num}'", "hydra.sweep.dir='a b'")
    command = [sys.executable, "-m", "fcnlab", "train", "-m", *sweep_words, params, *odd]
    failed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)  # this process would keep its lock
    message = failed.stdout + failed.stderr
    assert failed.returncode == 1
    rerun = printed_command(message, "To rerun this job")
    resume = printed_command(message, "To rerun missing jobs")
    assert fcnlab(*rerun) == 1 and "gone.ckpt" in capfd.readouterr().err
    shutil.copy(tmp_path / "a b" / "job 1" / "checkpoints" / "best.ckpt", "gone.ckpt")
    assert fcnlab(*resume) == 0
    record = json.loads((tmp_path / "a b" / "sweep.json").read_text())
    assert [job["status"] for job in record["jobs"]] == ["finished"] * 2
    (tmp_path / "a b").rename("before")
    assert fcnlab(*shlex.split(record["command"])[1:], "hydra.sweep.dir=new") == 0
    jobs = json.loads((tmp_path / "new" / "sweep.json").read_text())["jobs"]
    assert [job["overrides"] for job in jobs] == [job["overrides"] for job in record["jobs"]]


def test_all_commands_work_in_a_folder_whose_name_is_not_utf8(
    fcnlab, small, shapes_root, tmp_path, monkeypatch, capsys
):
    """Its path is in the records of the run, of Hydra and of the sweep; the folder of user options is in it, too."""
    folder = tmp_path / LATIN1
    (folder / "conf" / "optim").mkdir(parents=True)
    (folder / "conf" / "optim" / "own.yaml").write_text("defaults: [sgd]\nlr: 0.02\n")
    monkeypatch.chdir(folder)
    own = ("--config-dir", str(folder / "conf"))
    fixed = (*small, f"data.root={shapes_root}", "trainer=smoke", "trainer.accelerator=cpu", "logger=csv", "optim=own")
    short = ("trainer.max_steps=2", "trainer.val_check_interval=2")
    assert fcnlab("train", *own, *fixed, *short, "hydra.run.dir=run") == 0
    longer = ("trainer.max_steps=4", "trainer.val_check_interval=2", "checkpoint=auto")
    assert fcnlab("train", *own, *fixed, *longer, "hydra.run.dir=run") == 0
    record = json.loads((folder / "run" / "run.json").read_text(encoding="utf-8"))
    assert (record["starts"], record["config_dir"]) == (2, str(folder / "conf"))
    assert fcnlab("eval", "checkpoint=run/checkpoints/best.ckpt", "hydra.run.dir=eval") == 0
    assert fcnlab("train", *own, "from_run=run", "checkpoint=null", "hydra.run.dir=repeated") == 0
    capsys.readouterr()
    assert fcnlab("train", *own, "-m", *fixed, *short, "seed=1,2", "hydra.sweep.dir=sweep") == 0
    printed = re.search(r"Next: fcnlab (compare .*)", capsys.readouterr().out)
    assert printed and fcnlab(*words_of(printed[1]), "resamples=100") == 0
    assert fcnlab("compare", "runs=run,repeated,eval,sweep", "resamples=100") == 0
    assert "Unusable:" not in "".join(capsys.readouterr())
    sweep = json.loads((folder / "sweep" / "sweep.json").read_text(encoding="utf-8"))
    assert words_of(sweep["command"])[2:5] == ["-m", *own] and sweep["status"] == "finished"
    assert fcnlab("train", *own, "-m", "sweep.resume=sweep", *fixed, *short, "seed=1,2") == 0
