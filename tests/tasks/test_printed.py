"""What fcnlab prints to be typed works when it is typed, whatever the folders are called."""

import json
import os
import re
import subprocess

import pytest

from fcnlab.launching import setting

pytestmark = pytest.mark.slow
LATIN1 = os.fsdecode(b"d\xe9j\xe0 it's")  # as Python hands on what is not UTF-8
ODD = ["a b", "lr=0.1,seed=1", "it's", 'say "so"', "$HOME [1]", LATIN1]


def words_of(line: str) -> list[str]:
    """What bash makes of a line."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    return [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]


@pytest.mark.parametrize("name", ODD)
def test_every_printed_command_works(train, train_code, fcnlab, tmp_path, capsys, name: str):
    folder = train(
        setting("hydra.run.dir", name), "trainer.max_steps=2", "trainer.val_check_interval=2", folder="x"
    ).parent
    printed = re.search(r"Next: fcnlab (predict .*) input=FILE", capsys.readouterr().out)
    assert printed
    picture = next((folder / name).glob("predictions/*.png"))
    assert fcnlab(*words_of(printed[1]), setting("input", picture), "output=out") == 0
    command = json.loads((folder / name / "metrics.json").read_text())["provenance"]["command"]
    assert fcnlab(*words_of(command)[1:], "hydra.run.dir=again") == 0
    assert fcnlab("compare", f"runs={name},again", "resamples=100") == 0
    assert fcnlab("train", setting("from_run", name), "hydra.run.dir=repeated") == 0
    assert fcnlab("eval", setting("checkpoint", folder / name / "checkpoints" / "best.ckpt")) == 0


def test_all_verbs_work_in_a_folder_whose_name_is_not_utf8(fcnlab, small, shapes_root, tmp_path, monkeypatch, capsys):
    """Its path is in every record: of the run, of Hydra, of a sweep, and of the folder with options of one's own."""
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
    assert "Cannot be used" not in "".join(capsys.readouterr())
    sweep = json.loads((folder / "sweep" / "sweep.json").read_text(encoding="utf-8"))
    assert words_of(sweep["command"])[2:5] == ["-m", *own] and sweep["status"] == "finished"
    assert fcnlab("train", *own, "-m", "sweep.resume=sweep", *fixed, *short, "seed=1,2") == 0
