"""The best few of a run that resumes from its best.ckpt, which was saved before their turn had come."""

from types import SimpleNamespace

import pytest
import torch

from fcnlab.training.callbacks import TopCheckpoints
from fcnlab.training.callbacks.checkpointing import relocate_checkpoints


@pytest.fixture
def resumed(tmp_path):
    """What is known after a resume from a best.ckpt of step 9 and score 0.5, and what lies in the folder."""

    def resuming(keep: int, known: dict[str, float], facts=(), there: tuple[str, ...] = ()) -> tuple[dict, set[str]]:
        folder = tmp_path / "checkpoints"
        folder.mkdir()
        for name in ("best.ckpt", *known, *there):
            (folder / name).write_text(name)
        callback = TopCheckpoints(folder, keep)
        callback.best_k_models = {str(folder / name): torch.tensor(score) for name, score in known.items()}
        state = callback.state_dict() | {"dirpath": str(folder)}
        selection = {"checkpoint": "best", "val_miou": 0.5, "step": 9} | dict(facts)
        checkpoint = {"callbacks": {callback.state_key: state}, "fcnlab": {"selection": selection}}
        trainer = SimpleNamespace(
            checkpoint_callbacks=[callback], ckpt_path=str(folder / "best.ckpt"), is_global_zero=True
        )
        relocate_checkpoints(trainer, checkpoint)  # pyright: ignore[reportArgumentType]
        found = {path.rpartition("/")[2]: float(score) for path, score in state["best_k_models"].items()}
        assert state["best_model_path"].endswith(max(found, key=lambda name: found[name])) if found else True
        assert state["kth_best_model_path"].endswith(min(found, key=lambda name: found[name])) if found else True
        return found, {path.name for path in folder.iterdir()} - {"best.ckpt"}

    return resuming


NEW, OLD, OLDEST = "miou=0.5000-step=9.ckpt", "miou=0.2500-step=6.ckpt", "miou=0.1250-step=3.ckpt"


def test_it_is_saved_among_them_where_there_is_room(resumed, tmp_path):
    assert resumed(2, {OLD: 0.25}) == ({NEW: 0.5, OLD: 0.25}, {NEW, OLD})
    assert (tmp_path / "checkpoints" / NEW).read_text() == "best.ckpt"


def test_the_worst_makes_room_for_it(resumed):
    assert resumed(2, {OLD: 0.25, OLDEST: 0.125}) == ({NEW: 0.5, OLD: 0.25}, {NEW, OLD})


def test_one_that_was_saved_is_known_and_stays_as_it_is(resumed, tmp_path):
    assert resumed(2, {OLD: 0.25}, there=(NEW,)) == ({NEW: 0.5, OLD: 0.25}, {NEW, OLD})
    assert (tmp_path / "checkpoints" / NEW).read_text() == NEW


@pytest.mark.parametrize(
    ("keep", "known", "facts"),
    [
        (0, {}, {}),
        (1, {OLD: 0.75}, {}),  # better already
        (1, {OLD: 0.5}, {}),  # as good, and earlier
        (2, {OLD: 0.25}, {"checkpoint": "last"}),  # which was saved behind them, and knows them all
        (2, {OLD: 0.25}, {"val_miou": None}),  # at no validation
    ],
)
def test_otherwise_they_stay(resumed, keep, known, facts):
    assert resumed(keep, known, facts) == (known, set(known))
