"""Weights files: which are read, which are refused, and the error messages."""

import pickle
import socket
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fcnlab.models import weights
from fcnlab.models.weights import WeightsError, fc_to_conv, load_backbone, load_strictly, read_tensors

STATE = {"layer.weight": torch.arange(6.0).view(2, 3), "layer.bias": torch.tensor([0.5, -0.5])}

FOREIGN = {
    "a web page": b"<!DOCTYPE html>\n<html>",
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "an image": b"\x89PNG\r\n\x1a\n",
    "half a pickle": b"\x80\x02",
    "half a zip": b"PK\x03\x04",
    "noise": bytes(range(256)),
}


class Trojan:
    """An object that creates a file when it is unpickled without protection."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


def save_plain_pickle(state, path):
    with Path(path).open("wb") as file:
        pickle.dump(state, file, protocol=2)


def save_legacy(state, path):
    torch.save(state, path, _use_new_zipfile_serialization=False)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model_state_dict"])
@pytest.mark.parametrize("save", [torch.save, save_legacy])
def test_pytorch_files_are_read(tmp_path, save, wrapper):
    state = STATE if wrapper is None else {"epoch": 7, "arch": "FCN", wrapper: STATE}
    save(state, tmp_path / "net.pth")
    torch.testing.assert_close(read_tensors(tmp_path / "net.pth"), STATE, rtol=0, atol=0)


def test_safetensors_files_are_read(tmp_path):
    save_file(STATE, tmp_path / "net.safetensors")
    torch.testing.assert_close(read_tensors(str(tmp_path / "net.safetensors")), STATE, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["NET.SAFETENSORS", "net", "net.bin"])
def test_safetensors_files_are_recognised_by_content(tmp_path, name):
    save_file(STATE, tmp_path / name)
    torch.testing.assert_close(read_tensors(tmp_path / name), STATE, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["net.ckpt", "net.safetensors", "NET.SAFETENSORS"])
def test_empty_and_cut_files_are_named(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(b"")
    with pytest.raises(WeightsError, match=f"^{file} is empty. Fetch or save it again.$"):
        read_tensors(file)
    file.write_bytes(b"\x40\0\0\0\0\0\0")
    with pytest.raises(WeightsError, match=f"^{file} is cut off: it has only 7 bytes. Fetch or save it again.$"):
        read_tensors(file)


def test_a_safetensors_file_that_ends_in_its_header_is_cut_off(tmp_path):
    file = tmp_path / "net.safetensors"
    save_file(STATE, file)
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(WeightsError, match="is cut off: it ends in its header"):
        read_tensors(file)


@pytest.mark.parametrize("save", [torch.save, save_legacy, save_plain_pickle])
def test_a_file_that_contains_code_is_refused(tmp_path, save):
    file, marker = tmp_path / "net.pth", tmp_path / "ran"
    save(STATE | {"extra": Trojan(marker)}, file)
    with pytest.raises(WeightsError, match="could run code"):
        read_tensors(file)
    assert not marker.exists()
    pickle.loads(pickle.dumps(Trojan(marker)))
    assert marker.exists()  # the file is effective


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.5, 0.7, 0.9, 0.95, 0.999])
@pytest.mark.parametrize(
    ("name", "save"),
    [("net.pth", torch.save), ("net.pth", save_legacy), ("net.safetensors", save_file)],
    ids=["zip", "old", "safetensors"],
)
def test_truncated_files_are_refused(tmp_path, name, save, share):
    file = tmp_path / name
    save(STATE, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    with pytest.raises(WeightsError, match=name):
        read_tensors(file)


def test_a_flipped_bit_in_a_tensor_is_an_error(tmp_path):
    file = tmp_path / "net.pth"
    torch.save(STATE, file)
    content = bytearray(file.read_bytes())
    content[content.index(torch.tensor([0.5, -0.5]).numpy().tobytes()) + 3] ^= 2
    file.write_bytes(content)
    assert torch.load(file)["layer.bias"][0] != 0.5  # torch does not check
    with pytest.raises(WeightsError, match=r"net\.pth is damaged: net/data/\d in it does not have its checksum"):
        read_tensors(file)


def test_a_compressed_archive_is_refused(tmp_path):
    torch.save({"zeros": torch.zeros(10_000)}, tmp_path / "net.pth")
    with zipfile.ZipFile(tmp_path / "net.pth") as source, zipfile.ZipFile(tmp_path / "bomb.pth", "w", 8) as target:
        for record in source.namelist():
            target.writestr(record, source.read(record))
    with pytest.raises(WeightsError, match=r"bomb\.pth is no readable weights file: net/\S+ in it is compressed"):
        read_tensors(tmp_path / "bomb.pth")


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(2, 3, device="meta"), torch.zeros(1).expand(2, 3)],
    ids=["meta", "expanded"],
)
def test_tensors_without_values_are_refused(tmp_path, tensor):
    torch.save({"weight": tensor}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"net\.pth holds 1 tensors without their numbers: weight"):
        read_tensors(tmp_path / "net.pth")


def test_a_sparse_tensor_is_named(tmp_path):
    torch.save({"weight": torch.zeros(2, 3).to_sparse()}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"more than tensors .*: it names 'torch\._utils\._rebuild_sparse"):
        read_tensors(tmp_path / "net.pth")


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
@pytest.mark.parametrize("content", FOREIGN.values(), ids=FOREIGN)
def test_files_of_other_formats_are_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=name):
        read_tensors(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "contains a list, not a state dict"),
        (torch.zeros(2), "contains a Tensor, not a state dict"),
        ({"epoch": 1, "loss": 0.5}, "contains no tensors; its keys: epoch, loss"),
        ({}, "contains no tensors"),
        ({"state_dict": {}}, "contains no tensors"),
    ],
    ids=["list", "tensor", "numbers", "empty", "empty inside"],
)
def test_files_without_a_state_dict_are_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=message):
        read_tensors(tmp_path / "net.pth")


def test_a_missing_file_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError) as error:
        read_tensors("weights/net.pth")
    assert "no weights file at weights/net.pth" in str(error.value) and str(tmp_path) in str(error.value)


def test_a_download_from_a_stalled_server_times_out(monkeypatch, tmp_path):
    """torch's own download has no timeout."""
    monkeypatch.setattr(weights, "SILENCE", 0.2)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/resnet18-abcdef.pth"
        served = SimpleNamespace(
            url=url,
            get_state_dict=lambda **further: torch.hub.load_state_dict_from_url(url, str(tmp_path), **further),
        )
        monkeypatch.setattr("torchvision.models.get_weight", lambda name: served)
        with pytest.raises(WeightsError, match="timed out"):
            load_backbone(nn.Linear(1, 1), "imagenet", imagenet="ResNet18_Weights.IMAGENET1K_V1")
    assert socket.getdefaulttimeout() is None


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"weight": STATE["layer.weight"]}, "1 missing: bias"),
        ({"weight": torch.zeros(2, 3), "bias": torch.zeros(2), "scale": torch.zeros(2)}, "1 not in the model: scale"),
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, r"1 of another shape: weight \(3, 2\), not \(2, 3\)"),
        (
            {"weight": torch.zeros(2, 3, dtype=torch.int8), "bias": torch.zeros(2)},
            r"1 of another type: weight torch\.int8, not torch\.float32",
        ),
        (
            {"w": torch.zeros(1), "bias": torch.zeros(1)},
            r"1 missing: weight; 1 not in the model: w; 1 of another shape: bias \(1,\), not \(2,\)",
        ),
    ],
    ids=["missing", "left over", "other shape", "integers", "all three"],
)
def test_tensors_that_do_not_fit_are_named(state, message):
    net = nn.Linear(3, 2)
    before = net.weight.clone()
    with pytest.raises(WeightsError, match=f"model.weights=a.pth do not fit: {message}"):
        load_strictly(net, state, "model.weights=a.pth")
    assert torch.equal(net.weight, before)


def test_long_lists_of_names_are_shortened():
    with pytest.raises(WeightsError, match=r"5 not in the model: t0, t1, t2, …\. They"):
        load_strictly(nn.ReLU(), {f"t{index}": torch.zeros(1) for index in range(5)}, "weights")


def test_backbone_weights_are_converted(tmp_path):
    torch.save(STATE, tmp_path / "net.pth")
    net = nn.Linear(3, 2)
    assert not load_backbone(net, "none")
    assert load_backbone(net, str(tmp_path / "net.pth"), lambda state: {key[6:]: state[key] for key in state})
    assert torch.equal(net.weight, STATE["layer.weight"]) and torch.equal(net.bias, STATE["layer.bias"])
    with pytest.raises(WeightsError, match=r"weights=.*net\.pth for the backbone Linear do not fit"):
        load_backbone(net, str(tmp_path / "net.pth"))


@pytest.mark.parametrize("kernel", [1, 3])
@torch.no_grad()
def test_a_linear_layer_over_a_block_becomes_a_convolution(kernel):
    linear, conv = nn.Linear(4 * kernel * kernel, 5), nn.Conv2d(4, 5, kernel)
    conv.load_state_dict(fc_to_conv(linear.state_dict(), kernel))
    image = torch.rand(2, 4, kernel + 2, kernel + 1)
    scores = conv(image)
    assert scores.shape == (2, 5, 3, 2)
    for row in range(3):
        for col in range(2):
            block = image[:, :, row : row + kernel, col : col + kernel].flatten(1)
            torch.testing.assert_close(scores[:, :, row, col], linear(block))


def test_other_layers_are_not_converted():
    odd = {"weight": torch.zeros(4, 10), "none": torch.zeros(0, 9), "bias": torch.zeros(4), "number": torch.tensor(1.0)}
    converted = fc_to_conv(odd, 3)
    assert [tuple(value.shape) for value in converted.values()] == [(4, 10), (0, 1, 3, 3), (4,), ()]


def test_a_layer_that_was_saved_transposed_is_converted():
    weight = torch.arange(36.0).view(9, 4).T
    assert torch.equal(fc_to_conv({"weight": weight}, 3)["weight"], weight.contiguous().view(4, 1, 3, 3))
