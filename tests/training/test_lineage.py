"""What made scored weights is told by their checkpoint, whatever lies at its path later."""

import json
import shutil
import signal

import pytest

from fcnlab.comparison.grouping import group_runs
from fcnlab.comparison.runs import Unusable, read_run
from fcnlab.training.segmenter import Segmenter

SHORT = ("trainer.max_steps=4", "trainer.val_check_interval=2")


@pytest.fixture
def scored(fcnlab, tmp_path):
    """Evaluate a checkpoint on the data of its run; give the record."""

    def run(checkpoint, name: str, *words: str):
        assert fcnlab("eval", f"checkpoint={checkpoint}", f"hydra.run.dir={name}", "logger=csv", *words) == 0
        return read_run(tmp_path / name)

    return run


def test_a_scoring_is_of_the_training_until_then(train, scored):
    """The run goes on afterwards: two moments of one training are two groups."""
    run = train(*SHORT, folder="run")
    before = scored(run / "checkpoints" / "last.ckpt", "before")
    train("checkpoint=last", "trainer.max_steps=6", SHORT[1], folder="run")
    after = scored(run / "checkpoints" / "last.ckpt", "after")
    assert before.settings["trainer.max_steps"] == 4 and "resumed" not in before.settings
    assert after.settings["resumed"] == "from step 4 trainer.max_steps=6 (was 4)"
    assert len(group_runs([before, after])[0]) == 2
    own = read_run(run)
    assert after.settings | {"scoring.checkpoint": "best.ckpt"} == own.settings and after.options == own.options
    assert after.seed == own.seed and own.settings["images.train"].startswith("24 (")


@pytest.mark.slow
def test_a_copied_checkpoint_is_known_by_its_content(train, scored, tmp_path):
    """One path, two nets; the runs that they came from are gone."""
    found = []
    for model in ("fcn8s", "fcn32s"):
        run = train(*SHORT, f"model={model}", "seed=3", folder=model)
        shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "m.ckpt")
        data = tuple(f"{word}" for word in json.loads((run / "run.json").read_text())["overrides"] if "data." in word)
        shutil.rmtree(run)
        found.append(scored("m.ckpt", f"eval/{model}", "data=shapes", *data))
    assert [run.options["model"] for run in found] == ["fcn8s", "fcn32s"] and {run.seed for run in found} == {3}
    assert len(group_runs(found)[0]) == 2


def test_a_checkpoint_of_a_stopped_training_counts_as_no_run(train_code, at_call, scored, tmp_path):
    at_call(Segmenter, "training_step", 4, lambda: signal.raise_signal(signal.SIGTERM))
    assert train_code(*SHORT, "trainer.max_steps=40") == 128 + signal.SIGTERM
    with pytest.raises(Unusable, match=r"not finished when its checkpoint of step \d was scored \(interrupted\)"):
        scored(tmp_path / "run" / "checkpoints" / "last.ckpt", "eval")


@pytest.mark.slow
def test_weights_of_another_training_make_another_group(train):
    """By paths of the same shape beside each run, as stages have them."""
    found = []
    for place, rate in enumerate(("0.01", "0.01", "0.001")):
        before = train(*SHORT, f"optim.lr={rate}", f"seed={place}", folder=f"{place}/pre") / "checkpoints" / "last.ckpt"
        found.append(read_run(train(*SHORT, f"model.weights={before}", f"seed={place}", folder=f"{place}/fine")))
    assert [len(made.runs) for made in group_runs(found)[0]] == [2, 1]
    assert len({run.weights for run in found}) == 3


def test_other_training_images_under_the_same_settings_make_another_group(train, tmp_path):
    first = train(*SHORT, f"data.root={tmp_path}/own", folder="first")
    (train_list,) = (tmp_path / "own").glob("**/Segmentation/train.txt")
    train_list.write_text("".join(train_list.read_text().splitlines(keepends=True)[:12]))
    second = train(*SHORT, f"data.root={tmp_path}/own", folder="second")
    one, other = (read_run(run) for run in (first, second))
    unlike = {path for path in one.settings if one.settings[path] != other.settings.get(path)}
    assert unlike == {"images.train"}


def test_resume_without_steps_left_accepts_no_other_settings(train, train_code, capsys, tmp_path):
    run = train(*SHORT)
    kept = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.suffix != ".log"}
    assert train_code(*SHORT, "checkpoint=last", "optim.lr=0.5") == 1
    assert "no step would use optim.lr=0.5 (was 0.002)" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in kept} == kept
    assert train(*SHORT, "checkpoint=last", "checkpointing.score=last") == run
    last = run / "checkpoints" / "last.ckpt"
    assert train_code(*SHORT, f"checkpoint={last}", folder="fork") == 1
    assert "there is nothing to train" in capsys.readouterr().err and not (tmp_path / "fork" / "checkpoints").exists()


@pytest.mark.slow
def test_a_run_that_begins_at_anothers_checkpoint_has_its_code_too(train):
    before = train(*SHORT, folder="before")
    checkpoint = before / "checkpoints" / "last.ckpt"
    record = json.loads((before / "run.json").read_text())
    fork = train("trainer.max_steps=6", SHORT[1], f"checkpoint={checkpoint}", folder="fork")
    facts = json.loads((fork / "run.json").read_text())
    assert facts["inherited"] == [{"source": record["source"]}] and facts["resumed_at"] == 4
    assert facts["id"] != record["id"] and "minutes" not in read_run(fork).cost


@pytest.mark.slow
def test_a_relative_root_leads_where_it_led_when_the_run_began(train, fcnlab, tmp_path, monkeypatch, small):
    """In the folder of the evaluation lie other data under the same name."""
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    (away / "shapes").mkdir(parents=True)
    monkeypatch.chdir(home)
    words = (*small, "trainer=smoke", "trainer.accelerator=cpu", "logger=csv", *SHORT, "data.root=shapes")
    assert fcnlab_here(monkeypatch, fcnlab, home, "train", *words, f"hydra.run.dir={home}/run") == 0
    checkpoint = f"checkpoint={home}/run/checkpoints/best.ckpt"
    assert fcnlab_here(monkeypatch, fcnlab, away, "eval", checkpoint, "logger=csv", f"hydra.run.dir={away}/eval") == 0
    records = [json.loads((folder / "metrics.json").read_text()) for folder in (home / "run", away / "eval")]
    assert records[0]["miou"] is not None and records[1]["selection"]["same_images"]
    assert not any((away / "shapes").iterdir())


def fcnlab_here(monkeypatch, fcnlab, folder, *words) -> int:
    monkeypatch.chdir(folder)
    return fcnlab(*words)
