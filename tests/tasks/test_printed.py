"""What fcnlab prints to be typed works when it is typed, whatever the folders are called."""

import json
import re
import shlex

import pytest

pytestmark = pytest.mark.slow
ODD = ["a b", "lr=0.1,seed=1", "it's", 'say "so"', "$HOME [1]"]


@pytest.mark.parametrize("name", ODD)
def test_every_printed_command_works(train, train_code, fcnlab, tmp_path, capsys, name: str):
    from fcnlab.launching import setting

    folder = train(
        setting("hydra.run.dir", name), "trainer.max_steps=2", "trainer.val_check_interval=2", folder="x"
    ).parent
    printed = re.search(r"Next: fcnlab (predict .*) input=FILE", capsys.readouterr().out)
    assert printed
    picture = next((folder / name).glob("predictions/*.png"))
    assert fcnlab(*shlex.split(printed[1]), setting("input", picture), "output=out") == 0
    command = json.loads((folder / name / "metrics.json").read_text())["provenance"]["command"]
    assert fcnlab(*shlex.split(command)[1:], "hydra.run.dir=again") == 0
    assert fcnlab("compare", f"runs={name},again", "resamples=100") == 0
    assert fcnlab("train", setting("from_run", name), "hydra.run.dir=repeated") == 0
    assert fcnlab("eval", setting("checkpoint", folder / name / "checkpoints" / "best.ckpt")) == 0
