"""A run's folder: held by one process, unchanged by what is refused, the same one by a link, whole after any damage."""

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
    """Every file below a folder: when it was written, and a hash of what is in it."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files} | {
        str(path): (0, "") for path in folder.rglob("*") if path.is_dir()
    }


def best(folder: Path) -> tuple:
    """The best checkpoint's step and weights, and what the last one says of its score."""
    found, last = (torch.load(folder / "checkpoints" / f"{name}.ckpt", weights_only=True) for name in ("best", "last"))
    state = next(state for key, state in last["callbacks"].items() if key.startswith("ModelCheckpoint"))
    weights = {name: tensor.numpy().tobytes() for name, tensor in found["state_dict"].items()}
    return found["global_step"], weights, float(state["best_model_score"])


@pytest.fixture
def ended(trained_once) -> Path:
    """A run that has ended, in ``run``."""
    return trained_once(*LENGTH)


@pytest.fixture
def longer(train_code, capsys):
    """Resume the run for some more steps; the exit code, and what was said on both streams."""

    def resume(*words: str) -> tuple[int, str]:
        capsys.readouterr()
        code = train_code(*LENGTH, "trainer.max_steps=7", "checkpoint=auto", *words)
        output = "".join(capsys.readouterr())
        assert "Traceback" not in output
        return code, output

    return resume


# The same folder by a link


def test_a_run_under_a_link_keeps_its_best(train, trained_once, train_code, at_call, tmp_path):
    """With this rate the best is an early one, which a later validation would overwrite."""
    straight = trained_once(*LENGTH, folder="straight")
    (tmp_path / "scratch").mkdir()
    (tmp_path / "linked").symlink_to("scratch")
    for place, step in (("linked/run", 4), ("linked/run", 1)):
        at_call(Segmenter, "training_step", step, send(signal.SIGTERM))
        assert train_code(*LENGTH, "checkpoint=auto", folder=place) == 128 + signal.SIGTERM
    at_call(Segmenter, "training_step", 10**9, send(signal.SIGTERM))
    assert best(train(*LENGTH, "checkpoint=auto", folder="scratch/run")) == best(straight)
    scores = [json.loads((folder / "metrics.json").read_text()) for folder in (straight, tmp_path / "scratch" / "run")]
    assert scores[0]["miou"] == scores[1]["miou"]


def test_relative_paths_never_begin_in_the_runs_folder(fcnlab, capsys):
    assert fcnlab("train", "hydra.job.chdir=true", "hydra.run.dir=run") == 1
    output = capsys.readouterr().err
    assert (
        "hydra.job.chdir=true is not supported: relative paths" in output
        and "Traceback" not in output
        and not Path("run").exists()
    )


# What is refused


REFUSED = {
    "train": ["train", "checkpoint=auto", "model=fcn32s"],
    "train on other images": ["train", "checkpoint=auto", "data.root=nowhere/at/all", "sweep.recorded=true"],
    "train with a callback that waits for nothing": ["train", "checkpoint=auto", "callbacks.top.monitor=val/miuo"],
    "train with a logger that finds a file in its place": [
        "train",
        "checkpoint=auto",
        "logger=tensorboard",
        "logger.tensorboard.save_dir=run/metrics.csv",
    ],
    "train with a logger whose package is not there": [
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
    "train anew": ["train"],
    "train in stages": ["train", "stages=[paper/fcn32s]"],
    "eval": ["eval", "checkpoint=run/checkpoints/best.ckpt"],
    "predict": ["predict", "checkpoint=run/checkpoints/best.ckpt", "input=run", "output=run"],
    "doctor": ["doctor"],
    "compare": ["compare", "runs=run"],
    "bench": ["bench", "benchmarks=nothing"],
}


@pytest.mark.parametrize("words", REFUSED.values(), ids=REFUSED)
def test_a_refused_command_leaves_the_folder_as_it_was(fcnlab, ended, small, shapes_root, capsys, words):
    if words[0] == "train":
        fixed = (*small, f"data.root={shapes_root}", "trainer=smoke", "trainer.accelerator=cpu", "logger=csv", *LENGTH)
        words = ["train", *fixed, *words[1:]]
    before = tree(ended)
    assert fcnlab(*words, "hydra.run.dir=run") == 1
    output = capsys.readouterr().err
    assert "Traceback" not in output and tree(ended) == before, output


@pytest.mark.parametrize("verb", ["eval", "predict", "doctor", "compare", "bench"])
def test_a_refused_command_changes_nothing_that_the_same_command_left(fcnlab, tmp_path, verb):
    folder = tmp_path / "left" / ".hydra"
    folder.mkdir(parents=True)
    (folder / "hydra.yaml").write_text(f"hydra: {{job: {{config_name: {verb}}}}}\n")
    before = tree(tmp_path / "left")
    assert fcnlab(verb, "+confidnce=1", "hydra.run.dir=left") == 1
    assert tree(tmp_path / "left") == before


@pytest.mark.parametrize("verb", ["train", "eval", "predict", "doctor", "compare", "bench"])
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
    )
    assert any(reason in output for reason in reasons) and tree(tmp_path / "there") == before


def test_a_refused_command_leaves_no_new_folder(fcnlab, tmp_path):
    assert fcnlab("train", "optim.lr=-1", "hydra.run.dir=new") == 1
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    assert fcnlab("train", "optim.lr=-1", "hydra.run.dir=mine") == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]  # which somebody else has made


def test_what_was_said_before_a_run_began_is_in_its_log(train):
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
def test_no_callback_writes_into_another_run(ended, train_code, capsys, override, advice):
    before = tree(ended)
    assert train_code(*LENGTH, override, folder="new") == 1
    output = capsys.readouterr().err
    assert override.partition("=")[0] in output and advice in output and "Traceback" not in output
    assert tree(ended) == before and not Path("new").exists()


def test_a_w_and_b_run_that_is_refused_leaves_the_folder_as_it_was(ended, longer, monkeypatch):
    monkeypatch.setenv("WANDB_RUN_ID", "a b")
    before = tree(ended)
    code, output = longer("logger=wandb")
    assert code == 1 and "WANDB_RUN_ID=a b in the environment is not a valid id" in output and tree(ended) == before


def test_no_logger_replaces_the_curves_of_another_run(ended, train_code, capsys):
    """Lightning's CSV logger removes the metrics.csv that it finds."""
    before, place = tree(ended), "{_target_:lightning.pytorch.loggers.CSVLogger,save_dir:run,name:'',version:''}"
    assert train_code(*LENGTH, f"+logger.mine={place}", folder="new") == 1
    output = capsys.readouterr().err
    assert "logger.mine writes to" in output and "would replace its metrics.csv" in output and "Traceback" not in output
    assert tree(ended) == before


@pytest.mark.slow  # two trainings
def test_a_logger_outside_of_the_run_is_the_users_and_warned_of_where_files_are(train_code, capsys, tmp_path):
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


# Two at once


def test_a_second_process_is_kept_off_a_run(train_code, ended, capsys):
    lock = FolderLock(ended)
    lock.claim()
    before = tree(ended)
    assert train_code(*LENGTH, "checkpoint=auto") == 1
    output = capsys.readouterr().err
    assert f"process {os.getpid()} on {os.uname().nodename} is working there" in output and "Traceback" not in output
    assert tree(ended) == before
    (ended / ".lock").write_text(f"{2**30} on {os.uname().nodename}")  # of an earlier process, which was killed
    with pytest.raises(UserError, match="another process is working there"):
        FolderLock(ended)
    lock.release()
    FolderLock(ended).release()


def test_a_lock_ends_with_its_process_alone_and_not_with_its_workers(tmp_path):
    code = (
        "import os, sys, time; from pathlib import Path; from fcnlab.files.locks import FolderLock\n"
        "lock = FolderLock(Path(sys.argv[1])); lock.claim()\n"
        "if not os.fork(): print(os.getpid(), flush=True)\n"
        "time.sleep(60)"
    )
    done = subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, text=True)
    assert done.stdout
    worker = int(done.stdout.readline())  # which has begun
    done.kill()
    assert done.wait(20) == -signal.SIGKILL
    FolderLock(tmp_path).release()  # though the worker lives
    os.kill(worker, signal.SIGKILL)
    done.stdout.close()


def test_a_file_system_without_locks_is_warned_of(tmp_path, monkeypatch, caplog):
    def flock(file, what):
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    FolderLock(tmp_path).release()
    assert "has no locks (No locks available)" in caplog.text


def test_a_refused_command_takes_its_lock_away(tmp_path):
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
def test_of_several_processes_the_first_holds_the_folder(environment, is_first):
    assert is_first_process(environment) is is_first


# What is damaged


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2000])


def fold(path: Path) -> None:
    path.unlink()
    path.mkdir()


def swap_net(path: Path) -> None:
    found = torch.load(path, weights_only=True)
    found["state_dict"] = {name: torch.zeros(2) for name in found["state_dict"]}
    torch.save(found, path)


NOTHING_LEFT, TWO_MORE = 5, 7  # steps


@pytest.mark.parametrize(
    ("damage", "steps"),
    [
        (cut, TWO_MORE),
        (fold, TWO_MORE),
        (swap_net, NOTHING_LEFT),
        (Path.unlink, NOTHING_LEFT),
        *(
            pytest.param(damage, steps, marks=pytest.mark.slow)
            for damage, steps in (
                (cut, NOTHING_LEFT),
                (fold, NOTHING_LEFT),
                (swap_net, TWO_MORE),
                (Path.unlink, TWO_MORE),
            )
        ),
    ],
)
def test_a_run_ends_without_its_best_checkpoint(ended, longer, damage, steps):
    best = ended / "checkpoints" / "best.ckpt"
    damage(best)
    code, output = longer(f"trainer.max_steps={steps}")
    assert code == 0, output
    assert (damage is Path.unlink) or "It is renamed to best.ckpt.damaged, and its score no longer counts" in output
    scored = json.loads((ended / "metrics.json").read_text())["selection"]["checkpoint"]
    assert scored == ("last" if steps == 5 else "best") and best.exists() == (steps == 7)
    assert ("the last weights are scored" in output) == (steps == 5)


def test_a_best_checkpoint_that_is_damaged_at_the_end_does_not_end_the_run(train_code, at_call, tmp_path, capsys):
    at_call(Segmenter, "training_step", 5, lambda: cut(tmp_path / "run" / "checkpoints" / "best.ckpt"))
    assert train_code(*LENGTH) == 0
    assert "The last weights are scored instead" in "".join(capsys.readouterr())
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["selection"]["checkpoint"] == "last"


@pytest.mark.parametrize("known", [{"/gone.ckpt": torch.tensor(0.9)}, {}, {"best.ckpt": torch.tensor(-1.0)}])
def test_the_best_counts_whatever_the_last_checkpoint_says_of_it(ended, longer, known):
    """Else a worse one would take its place: no step here makes the weights any better."""
    last = ended / "checkpoints" / "last.ckpt"
    before, changed = best(ended), torch.load(last, weights_only=True)
    state = next(state for key, state in changed["callbacks"].items() if key.startswith("ModelCheckpoint"))
    state["best_k_models"] = known
    torch.save(changed, last)
    best_file = torch.load(ended / "checkpoints" / "best.ckpt", weights_only=True)
    score = best_file["fcnlab"]["selection"]["val_miou"]
    code, output = longer("optim.lr=0")
    assert code == 0 and f"best.ckpt contains a score of {score:.4f}, which is used" in output, output
    assert best(ended)[0] == before[0] and best(ended)[2] == score


def test_a_best_of_another_run_is_kept_and_said(ended, longer):
    path, last = (ended / "checkpoints" / f"{name}.ckpt" for name in ("best", "last"))
    changed, foreign = (torch.load(one, weights_only=True) for one in (last, path))
    next(state for key, state in changed["callbacks"].items() if key.startswith("ModelCheckpoint"))[
        "best_k_models"
    ] = {}
    foreign["fcnlab"]["trained"]["run"] = "another"
    torch.save(changed, last)
    torch.save(foreign, path)
    code, output = longer()
    assert code == 0 and "best.ckpt belongs to another run" in output and (path.parent / "best.ckpt.damaged").is_file()


def test_a_last_checkpoint_that_is_a_folder_is_told(ended, longer):
    fold(ended / "checkpoints" / "last.ckpt")
    code, output = longer("checkpoint=last")
    assert code == 1 and "last.ckpt is not a file" in output
    code, output = longer()
    assert code == 0 and "last.ckpt is not a file" in output and (ended / "checkpoints" / "last.ckpt.damaged").is_dir()


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
def test_what_cannot_be_gone_on_with_is_told_in_a_sentence(ended, longer, name, spoil, output):
    spoil(ended / name)
    before = tree(ended)
    code, shown = longer()
    assert code == 1 and output in shown and tree(ended) == before


@pytest.mark.parametrize("name", ["checkpoints", "predictions", "predictions/VOC", "wandb", "run.json", "metrics.json"])
def test_nothing_is_written_through_a_link_that_leads_out(ended, longer, tmp_path, name):
    """Not by the run's folder either, which may be a link itself."""
    place, victim = ended / name, tmp_path / "victim"
    if place.exists():
        place.rename(victim)
    else:
        victim.mkdir()
    place.symlink_to(victim)
    ended.rename(tmp_path / "moved")
    ended.symlink_to("moved")
    before = tree(tmp_path)
    code, shown = longer()
    assert code == 1 and f"{name} is a link" in shown and "does not write through" in shown, shown
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", [".lock", "train.log", "metrics.csv"])
def test_a_backup_by_hard_links_does_not_change_with_the_run(ended, longer, tmp_path, name):
    """``cp -al RUN BACKUP``: what is replaced as a whole is the run's own again, the rest is not."""
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / name).hardlink_to(ended / name)
    before = tree(ended)
    code, message = longer()
    assert code == 1 and f"{name} is a hard link" in message, message
    assert f"Work in a copy of {ended} (cp -r)" in message
    assert tree(ended) == before


def test_a_backup_of_what_is_replaced_stays_as_it_is(ended, longer, tmp_path):
    shutil.copytree(ended, tmp_path / "backup", copy_function=os.link)
    for name in (".lock", "train.log", "metrics.csv"):
        (ended / name).unlink()
    before = tree(tmp_path / "backup")
    assert longer()[0] == 0
    assert tree(tmp_path / "backup") == before


def test_images_replace_links(ended, longer, tmp_path):
    (tmp_path / "victim").write_text("mine")
    images = sorted((ended / "predictions").glob("*.png"))
    for path in images:
        path.unlink()
        path.symlink_to(tmp_path / "victim")
    assert images and longer()[0] == 0
    assert (tmp_path / "victim").read_text() == "mine" and not any(path.is_symlink() for path in images)


@pytest.mark.parametrize("text", ["[]", "{", '{"earlier": 3}', '{"id": "\\ud800"}', '{"wandb": "../x"}'])
def test_a_record_that_is_none_is_kept_aside(ended, longer, text):
    (ended / "run.json").write_text(text)
    code, output = longer()
    assert code == 0 and "The file is kept as run.json.damaged, and a new one is started" in output
    assert (ended / "run.json.damaged").read_text() == text
    assert json.loads((ended / "run.json").read_text())["status"] == "finished"


def test_curves_that_are_gone_are_told_and_validations_still_counted(ended, longer):
    (ended / "metrics.csv").unlink()
    among = json.loads((ended / "metrics.json").read_text())["selection"]["among"]
    code, output = longer()
    assert code == 0 and "the earlier rows are lost" in output
    assert json.loads((ended / "metrics.json").read_text())["selection"]["among"] == among + 2


def test_a_folder_that_cannot_be_one_is_told(fcnlab, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("gone")
    for word, output in (("file/run", "file is not a folder"), ("link", "is a broken link")):
        assert fcnlab("train", f"hydra.run.dir={word}") == 1
        shown = capsys.readouterr().err
        assert output in shown and "Traceback" not in shown


def test_half_written_checkpoints_of_a_killed_run_are_removed(ended, longer):
    for name in ("checkpoints/miou=0.1000-step=3.ckpt.part", "run.json.part"):
        (ended / name).write_text("half")
    (ended / "notes.part").write_text("mine")
    assert longer()[0] == 0
    assert [path.name for path in ended.rglob("*.part")] == ["notes.part"]
