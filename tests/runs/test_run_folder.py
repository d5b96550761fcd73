"""A run's folder is locked by one process, unchanged by refused commands, usable through links, and survives damage."""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fcnlab.errors import UserError
from fcnlab.files.locks import FolderLock
from fcnlab.runs.run_folder import is_first_process
from fcnlab.training.segmenter import Segmenter

LENGTH = ("trainer.max_steps=5", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "optim.lr=0.5")


def send(signum: int):
    return lambda: os.kill(os.getpid(), signum)


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Return the modification time and content hash of every file below a folder."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files} | {
        str(path): (0, "") for path in folder.rglob("*") if path.is_dir()
    }


def best(folder: Path) -> tuple:
    """Return the best checkpoint's step and weights, and its score according to the last checkpoint."""
    checkpoint, last = (
        torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("best", "last")
    )
    state = next(state for key, state in last["callbacks"].items() if key.startswith("ModelCheckpoint"))
    weights = {name: tensor.numpy().tobytes() for name, tensor in checkpoint["state_dict"].items()}
    return checkpoint["global_step"], weights, float(state["best_model_score"])


@pytest.fixture
def finished_run(trained_once) -> Path:
    """Return the folder of a finished run, ``run``."""
    return trained_once(*LENGTH)


@pytest.fixture
def resume_run(train_code, capsys):
    """Resume the run for some more steps; return the exit code and the output of both streams."""

    def resume(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = train_code(*LENGTH, "trainer.max_steps=7", "checkpoint=auto", *words)
        output = "".join(capsys.readouterr())
        assert "Traceback" not in output
        return code, output

    return resume


# The same folder through a link


def test_a_run_under_a_link_keeps_its_best_checkpoint(train, trained_once, train_code, at_call, tmp_path):
    """At this learning rate the best step is an early one, which a later validation would overwrite."""
    uninterrupted = trained_once(*LENGTH, folder="straight")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "linked").symlink_to("scratch")
    for place, step in (("linked/run", 4), ("linked/run", 1)):
        at_call(Segmenter, "training_step", step, send(signal.SIGTERM))
        assert train_code(*LENGTH, "checkpoint=auto", folder=place) == 128 + signal.SIGTERM
    at_call(Segmenter, "training_step", 10**9, send(signal.SIGTERM))
    assert best(train(*LENGTH, "checkpoint=auto", folder="scratch/run")) == best(uninterrupted)
    scores = [
        json.loads((folder / "metrics.json").read_text()) for folder in (uninterrupted, tmp_path / "scratch" / "run")
    ]
    assert scores[0]["miou"] == scores[1]["miou"]


def test_changing_into_the_run_folder_is_refused(fcnlab, capsys):
    assert fcnlab("train", "hydra.job.chdir=true", "hydra.run.dir=run") == 1
    output = capsys.readouterr().err
    assert (
        "hydra.job.chdir=true is not supported: relative paths" in output
        and "Traceback" not in output
        and not Path("run").exists()
    )


# Refused commands


REFUSED = {
    "train": ["train", "checkpoint=auto", "model=fcn32s"],
    "train on other images": ["train", "checkpoint=auto", "data.root=nowhere/at/all", "sweep.recorded=true"],
    "train with a callback that monitors an unknown metric": [
        "train",
        "checkpoint=auto",
        "callbacks.top.monitor=val/miuo",
    ],
    "train with a logger whose folder is a file": [
        "train",
        "checkpoint=auto",
        "logger=tensorboard",
        "logger.tensorboard.save_dir=run/metrics.csv",
    ],
    "train with a logger whose package is missing": [
        "train",
        "checkpoint=auto",
        "+logger.extra={_target_:lightning.pytorch.loggers.MLFlowLogger}",
    ],
    "train with a logger that would replace the run's curves": [
        "train",
        "checkpoint=auto",
        "+logger.extra={_target_:lightning.pytorch.loggers.CSVLogger,save_dir:run,name:'',version:''}",
    ],
    "train with two loggers in one folder": [
        "train",
        "checkpoint=auto",
        "+logger.a={_target_:lightning.pytorch.loggers.CSVLogger,save_dir:run,version:x}",
        "+logger.b={_target_:lightning.pytorch.loggers.CSVLogger,save_dir:run,version:x}",
    ],
    "train again": ["train"],
    "train in stages": ["train", "stages=[paper/fcn32s]"],
    "eval": ["eval", "checkpoint=run/checkpoints/best.ckpt"],
    "predict": ["predict", "checkpoint=run/checkpoints/best.ckpt", "input=run", "output=run"],
    "doctor": ["doctor"],
    "compare": ["compare", "runs=run"],
    "watch": ["watch", "runs=nowhere"],
    "figure": ["figure", "runs=run", "images=none"],
    "export": ["export", "checkpoint=run/run.json", "format=onnx"],
    "card": ["card", "checkpoint=run/run.json"],
    "bench": ["bench", "benchmarks=nothing"],
}


@pytest.mark.parametrize("words", REFUSED.values(), ids=REFUSED)
def test_a_refused_command_leaves_the_folder_as_it_was(fcnlab, finished_run, small, shapes_root, capsys, words):
    if words[0] == "train":
        fixed = (*small, f"data.root={shapes_root}", "trainer=smoke", "trainer.accelerator=cpu", "logger=csv", *LENGTH)
        words = ["train", *fixed, *words[1:]]
    before = tree(finished_run)
    assert fcnlab(*words, "hydra.run.dir=run") == 1
    output = capsys.readouterr().err
    assert "Traceback" not in output and tree(finished_run) == before, output


@pytest.mark.parametrize("verb", ["eval", "predict", "doctor", "compare", "watch", "figure", "export", "card", "bench"])
def test_a_refused_repetition_leaves_the_folder_as_it_was(fcnlab, tmp_path, verb):
    folder = tmp_path / "left" / ".hydra"
    folder.mkdir(parents=True)
    (folder / "hydra.yaml").write_text(f"hydra: {{job: {{config_name: {verb}}}}}\n")
    before = tree(tmp_path / "left")
    assert fcnlab(verb, "+confidnce=1", "hydra.run.dir=left") == 1
    assert tree(tmp_path / "left") == before


@pytest.mark.parametrize(
    "verb", ["train", "eval", "predict", "doctor", "compare", "watch", "figure", "export", "card", "bench"]
)
@pytest.mark.parametrize("left", ["sweep.json", "run.json"])
def test_a_refused_sweep_leaves_the_folder_as_it_was(fcnlab, tmp_path, capsys, verb, left):
    (tmp_path / "there").mkdir()
    for name in (left, "multirun.yaml"):
        (tmp_path / "there" / name).write_text("{}\n")
    before = tree(tmp_path / "there")
    assert fcnlab(verb, "-m", "hydra.sweep.dir=there", *(["data.batch_size=2,4"] if verb == "train" else [])) == 1
    output = capsys.readouterr().err
    reasons = (
        "already contains a sweep",
        "contains run.json of a run",
        "hydra.sweep.dir=there: the folder is not empty",
        "fcnlab watch: -m must be left out",
    )
    assert any(reason in output for reason in reasons) and tree(tmp_path / "there") == before


def test_a_refused_command_leaves_no_new_folder(fcnlab, tmp_path):
    assert fcnlab("train", "optim.lr=-1", "hydra.run.dir=new") == 1
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    assert fcnlab("train", "optim.lr=-1", "hydra.run.dir=mine") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]  # which someone else has made


def test_messages_from_before_a_run_are_in_its_log(train):
    log = (train("trainer.max_steps=1", "data.num_workers=0", "data.prefetch_factor=3") / "train.log").read_text()
    assert "data.prefetch_factor has no effect" in log and log.count("Training on") == 1


@pytest.mark.parametrize(
    ("override", "advice"),
    [
        ("callbacks.best.dirpath=run/checkpoints", "hydra.run.dir=FOLDER"),
        ("callbacks.last.dirpath=run/checkpoints", "hydra.run.dir=FOLDER"),
        ("callbacks.top.dirpath=run/checkpoints", "hydra.run.dir=FOLDER"),
        ("callbacks.best.filename=../../run/checkpoints/best", "a file name in the run's folder"),
        ("callbacks.sample_images.folder=run/predictions", "hydra.run.dir=FOLDER"),
    ],
)
def test_no_callback_writes_into_another_run(finished_run, train_code, capsys, override, advice):
    before = tree(finished_run)
    assert train_code(*LENGTH, override, folder="new") == 1
    output = capsys.readouterr().err
    assert override.partition("=")[0] in output and advice in output and "Traceback" not in output
    assert tree(finished_run) == before and not Path("new").exists()


def test_a_refused_w_and_b_run_leaves_the_folder_as_it_was(finished_run, resume_run, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "a b")
    before = tree(finished_run)
    code, output = resume_run("logger=wandb")
    assert (
        code == 1 and "WANDB_RUN_ID=a b in the environment is not a valid id" in output and tree(finished_run) == before
    )


def test_no_logger_replaces_the_curves_of_another_run(finished_run, train_code, capsys):
    """Lightning's CSV logger removes an existing metrics.csv."""
    before, place = tree(finished_run), "{_target_:lightning.pytorch.loggers.CSVLogger,save_dir:run,name:'',version:''}"
    assert train_code(*LENGTH, f"+logger.mine={place}", folder="new") == 1
    output = capsys.readouterr().err
    assert "logger.mine writes to" in output and "would replace its metrics.csv" in output and "Traceback" not in output
    assert tree(finished_run) == before


@pytest.mark.slow  # two training runs
def test_a_logger_outside_of_the_run_warns_if_files_are_there(train_code, capsys, tmp_path):
    words = ("logger=tensorboard", f"logger.tensorboard.save_dir={tmp_path}/curves", "trainer.max_steps=1")
    for folder, warned in (("one", False), ("two", True)):
        assert train_code(*words, folder=folder) == 0
        output = "".join(capsys.readouterr())
        assert (f"logger.tensorboard writes to {tmp_path}/curves/tensorboard, outside of" in output) == warned
        assert list((tmp_path / "curves").rglob("events.*"))
        assert json.loads((tmp_path / folder / "run.json").read_text())["status"] == "finished"


def test_a_callback_may_write_elsewhere_in_its_run(train):
    words = ("checkpointing.keep_top=1", "callbacks.top.dirpath=run/others")
    folder = train("trainer.max_steps=2", *words, "callbacks.best.filename=of/best")
    assert list((folder / "others").glob("*.ckpt")) and (folder / "checkpoints" / "of" / "best.ckpt").is_file()


# Two processes at once


def test_a_second_process_is_refused_in_a_run_folder(train_code, finished_run, capsys):
    lock = FolderLock(finished_run)
    lock.claim()
    before = tree(finished_run)
    assert train_code(*LENGTH, "checkpoint=auto") == 1
    output = capsys.readouterr().err
    assert f"process {os.getpid()} on {os.uname().nodename} is working there" in output and "Traceback" not in output
    assert tree(finished_run) == before
    (finished_run / ".lock").write_text(f"{2**30} on {os.uname().nodename}")  # of an earlier process, which was killed
    with pytest.raises(UserError, match="another process is working there"):
        FolderLock(finished_run)
    lock.release()
    FolderLock(finished_run).release()


def test_a_lock_ends_with_its_process_even_if_workers_live(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from fcnlab.files.locks import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); lock.claim()\n"
        "if not os.fork(): print(os.getpid(), flush=True)\n"
        "time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    worker = int(process.stdout.readline())  # which has started
    process.kill()
    assert process.wait(20) == -signal.SIGKILL
    FolderLock(tmp_path).release()  # although the worker lives
    os.kill(worker, signal.SIGKILL)
    process.stdout.close()


def test_a_file_system_without_locks_causes_a_warning(tmp_path, monkeypatch, caplog):
    def flock(file, operation):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    FolderLock(tmp_path).release()
    assert "has no locks (No locks available)" in caplog.text


def test_a_refused_command_removes_its_lock(tmp_path):
    FolderLock(tmp_path).abandon()
    assert list(tmp_path.iterdir()) == []
    first = FolderLock(tmp_path)
    first.claim()
    first.abandon()
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    with pytest.raises(UserError, match="is a link, or not a regular file"):
        (tmp_path / ".lock").unlink()
        (tmp_path / ".lock").symlink_to("x")
        FolderLock(tmp_path)


@pytest.mark.parametrize(
    ("environment", "is_first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_only_the_first_of_several_processes_locks_the_folder(environment, is_first):
    assert is_first_process(environment) is is_first


# Damaged files


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def swap_model(path: Path) -> None:
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state_dict"] = {name: torch.zeros(2) for name in checkpoint["state_dict"]}
    torch.save(checkpoint, path)


NOTHING_LEFT, TWO_MORE = 5, 7  # steps


@pytest.mark.parametrize(
    ("damage", "steps"),
    [
        (truncate, TWO_MORE),
        (replace_by_folder, TWO_MORE),
        (swap_model, NOTHING_LEFT),
        (Path.unlink, NOTHING_LEFT),
        *(
            pytest.param(damage, steps, marks=pytest.mark.slow)
            for damage, steps in (
                (truncate, NOTHING_LEFT),
                (replace_by_folder, NOTHING_LEFT),
                (swap_model, TWO_MORE),
                (Path.unlink, TWO_MORE),
            )
        ),
    ],
)
def test_a_run_ends_without_its_best_checkpoint(finished_run, resume_run, damage, steps):
    best = finished_run / "checkpoints" / "best.ckpt"
    damage(best)
    code, output = resume_run(f"trainer.max_steps={steps}")
    assert code == 0, output
    assert (damage is Path.unlink) or "It is renamed to best.ckpt.damaged, and its score no longer counts" in output
    scored = json.loads((finished_run / "metrics.json").read_text())["selection"]["checkpoint"]
    assert scored == ("last" if steps == 5 else "best") and best.exists() == (steps == 7)
    assert ("the last weights are scored" in output) == (steps == 5)


def test_a_best_checkpoint_damaged_at_the_end_does_not_fail_the_run(train_code, at_call, tmp_path, capsys):
    at_call(Segmenter, "training_step", 5, lambda: truncate(tmp_path / "run" / "checkpoints" / "best.ckpt"))
    assert train_code(*LENGTH) == 0
    assert "The last weights are scored instead" in "".join(capsys.readouterr())
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["selection"]["checkpoint"] == "last"


@pytest.mark.parametrize("known", [{"/gone.ckpt": torch.tensor(0.9)}, {}, {"best.ckpt": torch.tensor(-1.0)}])
def test_the_score_in_the_best_checkpoint_overrides_the_last_checkpoint(finished_run, resume_run, known):
    """Otherwise a worse checkpoint would replace it: no step here improves the weights."""
    last = finished_run / "checkpoints" / "last.ckpt"
    before, changed = best(finished_run), torch.load(last, weights_only=True)
    state = next(state for key, state in changed["callbacks"].items() if key.startswith("ModelCheckpoint"))
    state["best_k_models"] = known
    torch.save(changed, last)
    best_file = torch.load(finished_run / "checkpoints" / "best.ckpt", weights_only=True)
    score = best_file["fcnlab"]["selection"]["val_miou"]
    code, output = resume_run("optim.lr=0")
    assert code == 0 and f"best.ckpt contains a score of {score:.4f}, which is used" in output, output
    assert best(finished_run)[0] == before[0] and best(finished_run)[2] == score


def test_a_best_checkpoint_of_another_run_is_kept_and_reported(finished_run, resume_run):
    path, last = (finished_run / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    changed, foreign = (torch.load(file, weights_only=True) for file in (last, path))
    next(state for key, state in changed["callbacks"].items() if key.startswith("ModelCheckpoint"))[
        "best_k_models"
    ] = {}
    foreign["fcnlab"]["trained"]["run"] = "another"
    torch.save(changed, last)
    torch.save(foreign, path)
    code, output = resume_run()
    assert code == 0 and "best.ckpt belongs to another run" in output and (path.parent / "best.ckpt.damaged").is_file()


def test_a_last_checkpoint_that_is_a_folder_is_reported(finished_run, resume_run):
    replace_by_folder(finished_run / "checkpoints" / "last.ckpt")
    code, output = resume_run("checkpoint=last")
    assert code == 1 and "last.ckpt is not a file" in output
    code, output = resume_run()
    assert (
        code == 0
        and "last.ckpt is not a file" in output
        and (finished_run / "checkpoints" / "last.ckpt.damaged").is_dir()
    )


@pytest.mark.parametrize(
    ("name", "spoil", "output"),
    [
        (
            "metrics.csv",
            lambda path: path.write_bytes(b"step,\xff\xfe\n1,2\n"),
            "metrics.csv is not a valid CSV file in UTF-8",
        ),
        (
            "metrics.csv",
            lambda path: path.write_bytes(b"step,epoch\n1,2,3\n"),
            "row 2 has 3 cells, but the header has 2",
        ),
        ("metrics.csv", lambda path: path.write_bytes(b"step,epoch\n1\n2,3\n"), "row 2 has 1 cells"),
        ("checkpoints", lambda path: (shutil.rmtree(path), path.write_text("x")), "checkpoints is not a folder"),
        ("checkpoints", lambda path: (shutil.rmtree(path), path.symlink_to("gone")), "a broken link to gone"),
        (".hydra", lambda path: (shutil.rmtree(path), path.write_text("x")), ".hydra is not a folder"),
        ("metrics.json", lambda path: (path.unlink(), path.mkdir()), "metrics.json is not a file"),
        (
            "checkpoints/best.ckpt",
            lambda path: (path.unlink(), path.symlink_to("/gone")),
            "a link to /gone, which does not exist",
        ),
        (
            "train.log",
            lambda path: (path.unlink(), path.symlink_to("mine")),
            "train.log is a link, or not a regular file",
        ),
    ],
)
def test_files_that_prevent_resuming_are_reported_in_a_sentence(finished_run, resume_run, name, spoil, output):
    spoil(finished_run / name)
    before = tree(finished_run)
    code, error = resume_run()
    assert code == 1 and output in error and tree(finished_run) == before


@pytest.mark.parametrize("name", ["checkpoints", "predictions", "predictions/VOC", "wandb", "run.json", "metrics.json"])
def test_nothing_is_written_through_a_link_out_of_the_run_folder(finished_run, resume_run, tmp_path, name):
    """The run's folder itself may be a link."""
    place, victim = finished_run / name, tmp_path / "victim"
    if place.exists():
        place.rename(victim)
    else:
        victim.mkdir()
    place.symlink_to(victim)
    finished_run.rename(tmp_path / "moved")
    finished_run.symlink_to("moved")
    before = tree(tmp_path)
    code, error = resume_run()
    assert code == 1 and f"{name} is a link" in error and "does not write through" in error, error
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", [".lock", "train.log", "metrics.csv"])
def test_appending_to_hard_linked_files_is_refused(finished_run, resume_run, tmp_path, name):
    """After ``cp -al RUN BACKUP``, writing to these files would also change the backup."""
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / name).hardlink_to(finished_run / name)
    before = tree(finished_run)
    code, message = resume_run()
    assert code == 1 and f"{name} is a hard link" in message, message
    assert f"Work in a copy of {finished_run} (cp -r)" in message
    assert tree(finished_run) == before


def test_replacing_files_does_not_change_a_hard_linked_backup(finished_run, resume_run, tmp_path):
    shutil.copytree(finished_run, tmp_path / "backup", copy_function=os.link)
    for name in (".lock", "train.log", "metrics.csv"):
        (finished_run / name).unlink()
    before = tree(tmp_path / "backup")
    assert resume_run()[0] == 0
    assert tree(tmp_path / "backup") == before


def test_predictions_replace_links(finished_run, resume_run, tmp_path):
    (tmp_path / "victim").write_text("mine")
    images = sorted((finished_run / "predictions").glob("*.png"))
    for path in images:
        path.unlink()
        path.symlink_to(tmp_path / "victim")
    assert images and resume_run()[0] == 0
    assert (tmp_path / "victim").read_text() == "mine" and not any(path.is_symlink() for path in images)


@pytest.mark.parametrize("text", ["[]", "{", '{"earlier": 3}', '{"id": "\\ud800"}', '{"wandb": "../x"}'])
def test_an_invalid_record_is_set_aside(finished_run, resume_run, text):
    (finished_run / "run.json").write_text(text)
    code, output = resume_run()
    assert code == 0 and "The file is kept as run.json.damaged, and a new one is started" in output
    assert (finished_run / "run.json.damaged").read_text() == text
    assert json.loads((finished_run / "run.json").read_text())["status"] == "finished"


def test_missing_curves_are_reported_and_validations_are_counted(finished_run, resume_run):
    (finished_run / "metrics.csv").unlink()
    among = json.loads((finished_run / "metrics.json").read_text())["selection"]["among"]
    code, output = resume_run()
    assert code == 0 and "the earlier rows are lost" in output
    assert json.loads((finished_run / "metrics.json").read_text())["selection"]["among"] == among + 2


def test_an_invalid_run_folder_is_reported(fcnlab, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("gone")
    for word, output in (("file/run", "file is not a folder"), ("link", "is a broken link")):
        assert fcnlab("train", f"hydra.run.dir={word}") == 1
        error = capsys.readouterr().err
        assert output in error and "Traceback" not in error


def test_half_written_checkpoints_of_a_killed_run_are_removed(finished_run, resume_run):
    for name in ("checkpoints/miou=0.1000-step=3.ckpt.part", "run.json.part"):
        (finished_run / name).write_text("half")
    (finished_run / "notes.part").write_text("mine")
    assert resume_run()[0] == 0
    assert [path.name for path in finished_run.rglob("*.part")] == ["notes.part"]
