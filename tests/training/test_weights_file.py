"""Test checkpoints as safetensors files: what they keep, and that their content is data."""

import hashlib
import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from fcnlab.errors import UserError
from fcnlab.models import FCN, Tiny
from fcnlab.models.weights import WeightsError, read_tensors
from fcnlab.training.checkpoints import read_checkpoint, read_nets, selection_of
from fcnlab.training.weights_file import read_facts, write_weights_file

SELECTION = {"checkpoint": "best", "monitor": "val/miou", "mode": "max", "set": "leaves", "list": "val", "among": 3}
SELECTION |= {"step": 30, "val_miou": 0.5, "images": "a" * 16}


def network() -> FCN:
    torch.manual_seed(0)
    net = FCN(Tiny(width=2), 2, (32, 16), skip_scales={16: 0.5})
    nn.init.normal_(net.heads["32"].weight)
    return net


def checkpoint() -> dict:
    backbone = {"_target_": "fcnlab.models.Tiny", "width": 2}
    model = {"_target_": "fcnlab.models.FCN", "backbone": backbone, "num_classes": 2, "levels": [32, 16]}
    record = {
        "version": "0.1.0",
        "model": model | {"skip_scales": {16: 0.5}},
        "classes": ["background", "Blatt ü"],
        "palette": [[0, 0, 0], [9, 200, 255]],
        "selection": SELECTION,
        "settings": {"data.root": "/home/me"},
        "trained": {"seed": 1, "root": "/home/me", "settings": {"data.root": "/home/me", "optim.lr": 0.1}, "files": {}},
    }
    return {"fcnlab": record, "global_step": 30, "resume": {"stopped_early": True}}


@pytest.fixture
def file(tmp_path):
    write_weights_file(tmp_path / "net.safetensors", network(), checkpoint(), {"license": "mit"})
    return tmp_path / "net.safetensors"


def test_weights_and_record_are_those_of_the_checkpoint(file):
    """Among them the whole numbers that are keys, which JSON does not have."""
    read = read_checkpoint(file)
    assert read["global_step"] == 30 and selection_of(read) == {**SELECTION, "stopped_early": True}
    for key in ("version", "model", "classes", "palette"):
        assert read["fcnlab"][key] == checkpoint()["fcnlab"][key]
    (trained,) = read_nets(file, [])
    state = network().state_dict()
    assert trained.net.skip_scales == {16: 0.5} and trained.net.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in trained.net.state_dict().items())


def test_other_programs_read_the_tensors_and_the_facts(file):
    state = network().state_dict()
    assert all(torch.equal(value, state[key]) for key, value in load_file(file).items())
    metadata = safe_open(file, "pt").metadata()
    assert metadata["format"] == "pt" and json.loads(metadata["fcnlab_facts"]) == {"license": "mit"}


def test_folders_of_this_machine_are_left_out(file):
    assert b"/home/me" not in file.read_bytes()
    assert read_checkpoint(file)["fcnlab"]["trained"]["settings"] == {"optim.lr": 0.1}


def test_everybody_who_may_read_the_folder_may_read_the_file(file, tmp_path):
    (tmp_path / "other").touch()
    assert file.stat().st_mode == (tmp_path / "other").stat().st_mode


def changed(file, **entries):
    """Write the file with other entries in its record."""
    record = json.loads(safe_open(file, "pt").metadata()["fcnlab"]) | entries
    save_file(load_file(file), file, {"fcnlab": json.dumps(record)})
    return file


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"model": {"_target_": "os.system", "command": "true"}}, "os.system"),
        ({"model": {"_target_": "fcnlab.models.FCN", "backbone": {"_target_": "mine.Net"}}}, "mine.Net"),
        ({"classes": ["only one"]}, "was changed: its palette is not RGB"),
        ({"step": "many"}, "its global_step is not an integer"),
        ({"selection": {"checkpoint": "best"}}, "its selection is invalid"),
        ({"model": [[[]]] * 20_000}, "more than 20 levels or 10000 values"),
    ],
)
def test_a_changed_record_is_refused_and_names_no_code(file, entries, message):
    with pytest.raises(UserError, match=message):
        read_nets(changed(file, **entries), [])


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "was not written by fcnlab train. To start from weights alone, use"),
        ({"fcnlab": "{"}, "its record is no JSON"),
        ({"fcnlab": "[" * 100_000}, "its record is no JSON"),
        ({"fcnlab": "[1]"}, "its record has no valid model"),
    ],
)
def test_a_file_of_others_is_refused(tmp_path, metadata, message):
    save_file(network().state_dict(), tmp_path / "net.safetensors", metadata)
    with pytest.raises(UserError, match=message):
        read_checkpoint(tmp_path / "net.safetensors")


def test_weights_of_another_network_are_refused(file):
    state = load_file(file)
    state["heads.32.weight"] = state["heads.32.weight"][:1].clone()
    metadata = safe_open(file, "pt").metadata()
    del metadata["fcnlab_sha256"]
    save_file(state, file, metadata)
    with pytest.raises(UserError, match=r"1 of another shape: heads\.32\.weight"):
        read_nets(file, [])


def test_tied_weights_are_written_twice(tmp_path):
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1))
    net[1].weight = net[0].weight
    write_weights_file(tmp_path / "net.safetensors", net, checkpoint(), {})
    state = load_file(tmp_path / "net.safetensors")
    assert set(state) == set(net.state_dict())
    assert torch.equal(state["0.weight"], state["1.weight"]) and torch.equal(state["0.weight"], net[0].weight)


def flipped(file, part: bytes):
    """Flip one bit in the first place where the file contains these bytes."""
    content = bytearray(file.read_bytes())
    content[content.index(part) + len(part) - 1] ^= 1
    file.write_bytes(content)
    return file


def test_a_flipped_bit_in_a_tensor_is_an_error(file):
    """Whether the file is read as a checkpoint or as weights; safetensors itself does not notice it."""
    before = {name: value.clone() for name, value in load_file(file).items()}  # load_file maps the file
    flipped(file, before["heads.32.weight"].numpy().tobytes()[:8])
    after = load_file(file)
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["heads.32.weight"]
    with pytest.raises(UserError, match=r"net\.safetensors is damaged: its weights and its record do not have their"):
        read_checkpoint(file)
    with pytest.raises(WeightsError, match=r"^\S+net\.safetensors is damaged: .* checksum\. Fetch or save it again"):
        read_tensors(file)


def test_a_flipped_bit_in_the_record_is_an_error(file):
    """It could be a number of the network's, such as a scale of its skips."""
    with pytest.raises(UserError, match="do not have their checksum"):
        read_checkpoint(flipped(file, b'\\"skip_scales\\": {\\"16\\": 0.5'))


def test_the_checksum_is_that_of_names_types_shapes_bytes_and_record(file):
    """Computed with numpy and hashlib alone."""
    metadata, state = safe_open(file, "np").metadata(), safe_open(file, "np")
    digest = hashlib.sha256()
    for name in sorted(state.keys()):
        value: np.ndarray = state.get_tensor(name)
        digest.update(json.dumps([name, f"torch.{value.dtype}", list(value.shape)]).encode())
        digest.update(value.tobytes())
    digest.update(metadata["fcnlab"].encode())
    assert metadata["fcnlab_sha256"] == digest.hexdigest()


def test_a_file_without_a_checksum_is_read(file):
    before = {name: value.clone() for name, value in read_checkpoint(file)["state_dict"].items()}
    metadata = safe_open(file, "pt").metadata()
    save_file(load_file(file), file, {key: value for key, value in metadata.items() if key != "fcnlab_sha256"})
    after = read_checkpoint(file)["state_dict"]
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, None])
def test_facts_that_are_no_json_are_none(file, tmp_path, text):
    assert read_facts(file) == {"license": "mit"}
    save_file(network().state_dict(), tmp_path / "other.safetensors", {"fcnlab_facts": text} if text else None)
    assert read_facts(tmp_path / "other.safetensors") == {}
    torch.save({}, tmp_path / "net.ckpt")
    assert read_facts(tmp_path / "net.ckpt") == {}
