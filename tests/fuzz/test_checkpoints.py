"""A checkpoint is refused or gives the saved model, and no code that it names runs."""

import os
from collections import Counter, OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcnlab.errors import UserError
from fcnlab.models import FCN, Tiny
from fcnlab.training.checkpoints import read_checkpoint, rebuild_model
from fuzz.damage import damaged
from fuzz.test_weights import OwnMethods, same, zipped

pytestmark = pytest.mark.filterwarnings("ignore")  # a run prints torch's warnings and continues

MODEL = {
    "_target_": "fcnlab.models.FCN",
    "num_classes": 3,
    "levels": [32, 16],
    "upsampling": "fixed",
    "skip_scales": {16: 0.01},
    "weights": "none",
    "reset_heads": False,
    "backbone": {"_target_": "fcnlab.models.Tiny", "padding": "same", "width": 2, "weights": "none"},
}
with torch.random.fork_rng():
    torch.manual_seed(0)
    SAVED_MODEL = FCN(Tiny(width=2), 3, levels=[32, 16], skip_scales={16: 0.01})
VALID_CHECKPOINT = {
    "global_step": 7,
    "fcnlab": {"version": "0", "variant": "x", "model": MODEL, "classes": ["a", "b", "c"], "palette": [[0, 0, 9]] * 3},
    "state_dict": {f"net.{key}": value for key, value in SAVED_MODEL.state_dict().items()},
}


def places(tree, start: tuple = ()) -> list[tuple]:
    """Yield the path to every value in nested dicts and lists."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [start] + [place for key, child in inside for place in places(child, (*start, key))]


MKDIR = {"_target_": "os.mkdir", "path": "made"}
REMOVED = object()
CYCLE: list = []
CYCLE.append(CYCLE)
LAUGHS: list = []
for _ in range(40):  # 2 ** 40 empty lists when traversed
    LAUGHS = [LAUGHS, LAUGHS]


class HidesItems(OwnMethods):
    """A dict whose ``items`` hides its contents."""

    def __reduce__(self):
        return OrderedDict, (), {"items": Counter}, None, iter((MODEL | {"backbone": MKDIR}).items())


ODD = {
    "removed": REMOVED,
    "none": None,
    "true": True,
    "zero": 0,
    "minus": -1,
    "large": 3000,  # a model of 20 GB
    "huge": 2**70,
    "nan": float("nan"),
    "empty": "",
    "text": "fixed",
    "name": "fcnlab.models.Tiny",
    "function": "fcnlab.models.weights.read_tensors",
    "class": "fcnlab.models.Grid",
    "constant": "fcnlab.models.weights.WRAPPERS",
    "module": "fcnlab.models.fcn",
    "foreign": "os.mkdir",
    "relative": "..models.FCN",
    "surrogate": "fcnlab.models.\ud800.FCN",
    "missing": "???",
    "interpolation": "${oc.env:HOME}",
    "bytes": b"x",
    "list": [],
    "dict": {},
    "set": {1},
    "tensor": torch.zeros(1),
    "number": torch.tensor(1.0),
    "sparse": torch.zeros(3, 3).to_sparse(),
    "int keys": {5: 3, None: 1},
    "tuple keys": {(1, 2): 3},
    "target": MKDIR,
    "target in a list": [MKDIR],
    "target in a tuple": (MKDIR,),
    "target in an OrderedDict": OrderedDict(backbone=MKDIR),
    "target that hides": HidesItems(),
    "partial": {"_target_": "fcnlab.models.Tiny", "_partial_": True},
    "directives": {"_target_": "fcnlab.models.Tiny", "_args_": 3, "_convert_": "x", "_recursive_": "x", "_partial_": 3},
    "arguments": {"_target_": "fcnlab.models.Tiny", "_args_": ["same", MKDIR]},
    "unknown key": {"_target_": "fcnlab.models.Tiny", 5: 3},
    "cycle": CYCLE,
    "laughs": LAUGHS,
}


def changed(tree, place: tuple, value):
    """Return a copy with another value at an existing path, or with an additional odd key if the path is missing."""
    if not place:
        return value
    key, *rest = place
    if isinstance(tree, list):
        return list(changed(dict(enumerate(tree)), place, value).values())
    if not isinstance(tree, dict):
        return tree  # an earlier change replaced it
    new = changed(tree.get(key), tuple(rest), value)
    return {name: child for name, child in (tree | {key: new}).items() if child is not REMOVED}


CHANGES = st.lists(
    st.tuples(st.sampled_from(places(VALID_CHECKPOINT)), st.sampled_from(sorted(ODD))), min_size=1, max_size=2
)


@pytest.fixture
def rebuilt(tmp_path, monkeypatch, little_memory):
    """Return the model in these bytes; None if they are refused."""
    monkeypatch.chdir(tmp_path)

    def rebuilding(data: bytes) -> FCN | None:
        (tmp_path / "a.ckpt").write_bytes(data)
        try:
            checkpoint = read_checkpoint("a.ckpt")
            model = rebuild_model(checkpoint, "checkpoint=a.ckpt", [])
        except UserError as error:
            assert "a.ckpt" in str(error) or "model." in str(error)
            return None
        finally:
            assert os.listdir() == ["a.ckpt"]  # noqa: PTH208 (of here)
        assert model.num_classes == len(checkpoint["fcnlab"]["classes"]) == len(checkpoint["fcnlab"]["palette"])
        return model

    return rebuilding


def test_a_valid_checkpoint_is_read(rebuilt):
    assert same(rebuilt(zipped(VALID_CHECKPOINT)).state_dict(), SAVED_MODEL.state_dict())


@given(CHANGES)
def test_a_changed_checkpoint_is_refused_or_its_weights_are_loaded(rebuilt, changes):
    tree = VALID_CHECKPOINT
    for place, name in changes:
        tree = changed(tree, place, ODD[name])
    model = rebuilt(zipped(None if tree is REMOVED else tree))
    if model is not None:
        assert same(
            model.state_dict(), {key[4:]: value for key, value in tree["state_dict"].items() if key[:4] == "net."}
        )


MODEL_PLACES = [place for place in places(VALID_CHECKPOINT) if place[:2] == ("fcnlab", "model") and len(place) > 1]


@given(st.sampled_from(MODEL_PLACES), st.sampled_from(sorted(ODD)))
def test_a_model_of_another_kind_is_refused_or_its_weights_are_loaded(rebuilt, place, name):
    model = rebuilt(zipped(changed(VALID_CHECKPOINT, place, ODD[name])))
    assert model is None or same(model.state_dict(), SAVED_MODEL.state_dict())


@given(damaged(zipped(VALID_CHECKPOINT)))
def test_a_damaged_checkpoint_is_refused_or_unchanged(rebuilt, data):
    model = rebuilt(data)
    assert model is None or same(model.state_dict(), SAVED_MODEL.state_dict())
