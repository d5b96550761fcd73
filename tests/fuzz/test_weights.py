"""Weights are refused or read as they were saved, and no code of a file runs."""

import io
import json
import os
import pickle
import struct
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes
from safetensors.torch import save
from torch import Tensor, nn

from fcnlab.models.vgg import from_torchvision
from fcnlab.models.weights import WeightsError, load_backbone, load_strictly, read_tensors
from fuzz.damage import damaged

pytestmark = pytest.mark.filterwarnings("ignore")  # a run prints torch's warnings and continues

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.tensor([0.5, -0.5])}
LARGE = {"weight": torch.arange(1000.0)}  # so that most damage changes numbers


def zipped(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def legacy_format(content) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


@pytest.fixture
def read(tmp_path):
    """Return the tensors in these bytes; None if they are refused."""

    def reading(data: bytes, name: str = "net.pth") -> dict[str, Tensor] | None:
        (tmp_path / name).write_bytes(data)
        try:
            tensors = read_tensors(tmp_path / name)
        except WeightsError as error:
            assert name in str(error)
            return None
        assert all(isinstance(key, str) and value.cpu().numel() >= 0 for key, value in tensors.items())
        return tensors

    return reading


def same(tensors: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return tensors.keys() == others.keys() and all(torch.equal(tensors[key], others[key]) for key in others)


@given(damaged(zipped(LARGE)))
def test_a_damaged_archive_is_refused_or_unchanged(read, data):
    tensors = read(data)
    assert tensors is None or same(tensors, LARGE)


@given(damaged(legacy_format(STATE)))
def test_a_damaged_file_without_checksums_is_refused_or_gives_tensors(read, data):
    read(data)


@given(damaged(save(STATE)))
def test_damaged_safetensors_are_refused_or_give_tensors(read, data):
    read(data, "net.safetensors")


ENTRY = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(("F32", "I32", "F16", "BF16", "F8_E4M3", "F4", "BOOL", "U64", "C64", "x", None)),
        "shape": st.lists(st.integers(-1, 3) | st.just(2**62) | st.just(1.5), max_size=3) | st.none(),
        "data_offsets": st.lists(st.sampled_from((0, 8, 16, 24, 32, -1, 2**40, 2**64)), max_size=3),
        "extra": st.none(),
    },
)
HEADER = st.dictionaries(st.sampled_from(("weight", "bias", "__metadata__", "")), ENTRY) | st.lists(ENTRY)


@given(HEADER, st.sampled_from((0, 8, -1, 2**20, 2**62)))
def test_safetensors_of_odd_tensors_are_refused_or_loaded(read, header, more):
    words = json.dumps(header).encode()
    read(struct.pack("<Q", max(len(words) + more, 0)) + words + bytes(32), "net.safetensors")


KEYS = st.sampled_from(("weight", "bias", "state_dict", "model_state_dict", "", 0, None, 1.5, (1, 2), b"k"))
LEAVES = st.sampled_from((torch.zeros(2), torch.zeros(0), torch.tensor(1), 7, None, "x", b"x", 1j, torch.float16))
CONTENTS = st.recursive(
    LEAVES,
    lambda inside: (
        st.lists(inside, max_size=3)
        | st.tuples(inside, inside)
        | st.dictionaries(KEYS, inside, max_size=3)
        | st.dictionaries(KEYS, inside, max_size=3).map(OrderedDict)
        | st.sets(st.integers(), max_size=2)
        | st.just(Counter("ab"))
    ),
    max_leaves=8,
)


@given(CONTENTS, st.sampled_from((zipped, legacy_format)))
def test_any_containers_are_refused_or_loaded(read, content, write):
    tensors = read(write(content))
    for wrapper in ("state_dict", "model_state_dict"):
        inside = content.get(wrapper) if isinstance(content, dict) else None
        content = inside if isinstance(inside, dict) else content
    entries = content.items() if isinstance(content, dict) else ()
    expected = {key: value for key, value in entries if isinstance(key, str) and isinstance(value, Tensor)}
    assert same(tensors or {}, expected)


class Call:
    """An object that is pickled as a call."""

    def __init__(self, function, *words):
        self.function, self.words = function, words

    def __reduce__(self):
        return self.function, self.words


@pytest.mark.parametrize("write", [zipped, legacy_format, pickle.dumps])
@pytest.mark.parametrize("function", [os.mkdir, os.system, eval, exec, __import__, getattr, print, np.zeros, nn.Linear])
def test_calls_in_a_file_are_not_executed(read, write, function, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert read(write(STATE | {"x": Call(function, "made")})) is None
    assert [path.name for path in tmp_path.iterdir()] == ["net.pth"] and not capsys.readouterr().out


class OwnMethods:
    """An object that is pickled as a state dict with methods that torch lets a file replace."""

    def __reduce__(self):
        return OrderedDict, (), dict.fromkeys(("items", "keys", "get"), Counter), None, iter(STATE.items())


def test_methods_defined_by_a_file_are_not_called(read):
    assert torch.load(io.BytesIO(zipped(OwnMethods()))).items() == Counter()
    assert same(read(zipped(OwnMethods())), STATE)


FORMS = {
    "float16": lambda value: value.half(),
    "bfloat16": lambda value: value.bfloat16(),
    "float64": lambda value: value.double(),
    "transposed": lambda value: value.T.contiguous().T if value.ndim == 2 else value,
    "parameter": nn.Parameter,
    "int64": lambda value: value.long(),
    "uint8": lambda value: value.byte(),
    "bool": lambda value: value.bool(),
    "complex": lambda value: value.to(torch.complex64),
    "sparse": lambda value: value.to_sparse(),
    "compressed": lambda value: value.to_sparse_csr() if value.ndim == 2 else value.to_sparse(),
    "quantised": lambda value: torch.quantize_per_tensor(value, 0.5, 0, torch.qint8),
    "meta": lambda value: value.to("meta"),
    "expanded": lambda value: torch.zeros(1).expand(value.shape),
}
LOADABLE_FORMS = ("float16", "bfloat16", "float64", "transposed", "parameter")


@pytest.mark.parametrize("form", FORMS)
def test_tensors_of_every_form_are_loaded_unchanged_or_refused(read, form):
    model, before = nn.Linear(3, 2), {}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    tensors = read(zipped({key: FORMS[form](value) for key, value in STATE.items()}))
    if tensors is not None:
        try:
            load_strictly(model, tensors, "net.pth")
        except WeightsError:
            tensors = None
    assert (tensors is not None) == (form in LOADABLE_FORMS)
    assert same(model.state_dict(), before if tensors is None else STATE)


SHAPES = st.just(()) | array_shapes(min_dims=1, max_dims=5, min_side=0, max_side=50)
LAYERS = st.sampled_from(
    ("classifier.0.weight", "classifier.0.bias", "classifier.3.weight", "features.0.weight", ".", "")
)


@given(st.dictionaries(LAYERS, SHAPES, min_size=1))
def test_layers_of_other_shapes_are_refused_by_a_model(tmp_path, shapes):
    torch.save({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match="do not fit"):
        load_backbone(nn.Linear(3, 2), str(tmp_path / "net.pth"), from_torchvision)


def archive(compression: int, name: str, content: bytes) -> bytes:
    """Return an archive of torch with one record rewritten."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(zipped(STATE))) as source, zipfile.ZipFile(file, "w", compression) as target:
        for record in source.namelist():
            target.writestr(record, content if record.endswith(name) else source.read(record))
    return file.getvalue()


def claiming(size: int) -> bytes:
    """Return a file in the format before torch 1.6 whose storage claims to have this many numbers."""
    return legacy_format({"w": torch.arange(77.0)}).replace(b"K\x4d", b"J" + struct.pack("<i", size))


BOMBS = {
    "deflated": ("net.pth", archive(zipfile.ZIP_DEFLATED, "data/0", bytes(2**28)), "in it is compressed"),
    "old": ("net.pth", claiming(2**31 - 1), "no readable weights file"),
    "safetensors": ("net.safetensors", struct.pack("<Q", 2**40) + b"{}", "header too large"),
    "safetensors' header": ("net.safetensors", struct.pack("<Q", 90 * 2**20) + b"{}", "header too large"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_before_they_take_memory(tmp_path, little_memory, name):
    file, data, message = BOMBS[name]
    (tmp_path / file).write_bytes(data)
    with pytest.raises(WeightsError, match=message):
        read_tensors(tmp_path / file)
