"""trainer.precision=fastest: who decides, by how much, and what the record says afterwards."""

import json
from functools import partial

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from fcnlab.models import FCN
from fcnlab.models.tiny import Tiny
from fcnlab.training import precision
from fcnlab.training.losses import CrossEntropy
from fcnlab.training.optimizers import adamw, constant
from fcnlab.training.precision import Times, step_times
from fcnlab.training.segmenter import Segmenter

FASTER, SLOWER = Times([2.0, 2.2], [1.0, 1.1], 4), Times([1.0, 1.1], [2.0, 2.2], 4)


@pytest.mark.parametrize(
    ("single", "half", "chosen"),
    [
        ([2.0, 2.1], [1.0, 9.0], "bf16-mixed"),  # the least of each counts: the other was disturbed
        ([1.0, 1.0], [0.96, 0.96], "32-true"),  # too little to be sure of
        ([1.0, 1.0], [0.95, 0.95], "bf16-mixed"),
        ([1.0, 1.0], [3.0, 3.0], "32-true"),
    ],
)
def test_half_precision_must_be_clearly_faster(single, half, chosen):
    assert Times(single, half, 1).chosen == chosen


def test_message_contains_both_times():
    assert str(FASTER) == "forward and backward pass of 4 images took 1.0 s in bf16-mixed and 2.0 s in 32-true"
    assert str(SLOWER).endswith("took 1.0 s in 32-true and 2.0 s in bf16-mixed, which must be 5 % faster")


@pytest.mark.parametrize(("seconds", "images"), [(0.01, 4), (9.0, 1)])
def test_both_precisions_are_timed_on_the_run_s_model_and_batch(monkeypatch, seconds, images):
    """In turns, the first ones not counted; one image where a batch would take long. The run is as it was."""
    seen = []

    class Seen(nn.Module):
        def forward(self, scores, target):
            return CrossEntropy()(scores, target)

    net = Segmenter(FCN(Tiny(width=4), 3, (32,)), list("abc"), Seen(), partial(adamw, lr=0.1), constant)
    state, random = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()

    def timed(work, device):
        work()
        half = torch.float32 if not seen or seen[-1] == "half" else torch.bfloat16
        seen.append("single" if half == torch.float32 else "half")
        return seconds * (2.0 if seen[-1] == "single" else 1.0)

    monkeypatch.setattr(precision, "timed", timed)
    found = step_times(net, (4, 64, 64), torch.device("cpu"))
    assert found.images == images and found.chosen == "bf16-mixed"
    assert set(found.single) == {2 * seconds} and set(found.half) == {seconds} and 2 <= len(found.single) <= 5
    assert len(seen) >= 2 * len(found.single) + 4
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())


@pytest.fixture
def times(monkeypatch):
    """What is found when steps are timed; None: nothing may be timed."""

    def arrange(found: Times | None) -> None:
        def step_times(*args):
            assert found is not None, "it was decided before"
            return found

        monkeypatch.setattr(precision, "step_times", step_times)

    return arrange


def used(folder) -> set[str]:
    """What the parts of a record say."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["fcnlab"]
    return {
        OmegaConf.load(folder / "config.yaml").trainer.precision,
        json.loads((folder / "metrics.json").read_text())["protocol"]["precision"],
        checkpoint["settings"]["trainer.precision"],
        checkpoint["trained"]["settings"]["trainer.precision"],
    }


@pytest.mark.slow
def test_chosen_precision_is_recorded_and_kept_on_resume_and_repeat(train, times):
    times(FASTER)
    folder = train("trainer.precision=fastest", "trainer.max_steps=4", "trainer.val_check_interval=2")
    assert used(folder) == {"bf16-mixed"}
    chosen = "trainer.precision=fastest: using bf16-mixed, since forward and backward pass of 4 images took 1.0 s"
    assert chosen in (folder / "train.log").read_text()
    times(None)  # a choice that was made anew would be an error
    train("trainer.precision=fastest", "trainer.max_steps=6", "checkpoint=last")
    assert used(folder) == {"bf16-mixed"}
    segments = json.loads((folder / "run.json").read_text())["segments"]
    assert [set(segment["changed"]) for segment in segments[1:]] == [
        {"trainer.max_steps", "trainer.val_check_interval"}
    ]
    repeated = train(
        f"from_run={folder}", "trainer.max_steps=2", "callbacks.sample_images.enabled=false", folder="repeated"
    )
    assert used(repeated) == {"bf16-mixed"}
    same = "Using trainer.precision=bf16-mixed, as the recorded run did"
    assert same in (repeated / "train.log").read_text()


@pytest.mark.slow
def test_auto_precision_is_recorded(train):
    folder = train("trainer.max_steps=2")
    assert used(folder) == {"32-true"}
    train("trainer.max_steps=4", "checkpoint=last")  # by the same word
    segments = json.loads((folder / "run.json").read_text())["segments"]
    assert [set(segment["changed"]) for segment in segments[1:]] == [{"trainer.max_steps"}]
    train("trainer.max_steps=6", "checkpoint=last", "trainer.precision=bf16-mixed")
    changed = json.loads((folder / "run.json").read_text())["segments"][-1]["changed"]
    assert changed["trainer.precision"] == ["32-true", "bf16-mixed"]


def test_untimed_model_uses_single_precision(train, monkeypatch):
    monkeypatch.setattr(precision, "training_step", None)
    folder = train("trainer.precision=fastest", "trainer.max_steps=2")
    assert used(folder) == {"32-true"}
    assert "32-true, since no step could be timed" in (folder / "train.log").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["eval", "checkpoint=x.ckpt"], "fcnlab eval does not train: set trainer.precision=32-true"),
        (["train", "trainer.accelerator=cpu", "trainer.devices=2"], "trainer.devices=2 means several"),
        (["train", "trainer.accelerator=cpu", "trainer.num_nodes=2"], "needs a single device"),
    ],
)
def test_fastest_is_refused_without_training_steps(fcnlab, capsys, words, message):
    verb, *others = words
    assert fcnlab(verb, "trainer.precision=fastest", "logger=csv", *others) == 1
    assert message in capsys.readouterr().err.replace("\n", " ")
