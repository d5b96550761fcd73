"""Small pickles that exhaust a reader are refused, and files of torch, Lightning and fcnlab are read."""

import inspect
import io
import pickle
import random
import zipfile
from collections import Counter, OrderedDict

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from fcnlab.models import pickles
from fcnlab.models.weights import WeightsError, load_without_code

LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)  # before the contents


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(module: str, attribute: str, values: bytes) -> bytes:
    return name(module, attribute) + values + b"R"


def text(value: str) -> bytes:
    return b"X" + len(value).to_bytes(4, "little") + value.encode()


NUMBER = b"J\xff\xff\xff\x7f"
MANY = b"](" + b"".join(b"J" + value.to_bytes(4, "little") for value in range(2000)) + b"e"  # a list of 2,000 numbers
MAP = b"}(" + b"".join(b"J" + value.to_bytes(4, "little") + b"N" for value in range(2000)) + b"u"
STORAGE = b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x01tQ"
NESTED = b")" + b"\x85" * 1000


def again(value: bytes, each: bytes) -> bytes:
    """Return a pickle that defines a value once and uses it 2,000 times."""
    return b"](" + value + b"q\x01" + each * 2000 + b"e"


BOMBS = {
    "a bytearray by a number": (call("builtins", "bytearray", NUMBER + b"\x85"), "names 'builtins.bytearray'"),
    "the same, of Python 2": (call("__builtin__", "bytearray", NUMBER + b"\x85"), "names '__builtin__.bytearray'"),
    "a tensor by a number": (call("torch", "Tensor", NUMBER + b"\x85"), "names 'torch.Tensor'"),
    "a typed tensor by a number": (call("torch", "FloatTensor", NUMBER + b"\x85"), "names 'torch.FloatTensor'"),
    "a storage by a number": (
        call("torch.storage", "UntypedStorage", NUMBER + b"\x85"),
        "calls 'torch.storage.UntypedStorage'",
    ),
    "a parameter of its own": (name("torch.nn.parameter", "Parameter") + NUMBER + b"\x85\x81", "names 'torch.nn.p"),
    "a quantised tensor": (name("torch._utils", "_rebuild_qtensor"), "names 'torch._utils._rebuild_qtensor'"),
    "a sparse tensor with too many indices": (
        name("torch._utils", "_rebuild_sparse_tensor"),
        "_rebuild_sparse_tensor'",
    ),
    "a tensor that is converted": (name("torch._utils", "_rebuild_device_tensor_from_cpu_tensor"), "from_cpu_tensor'"),
    "a subclass": (name("torch._tensor", "_rebuild_from_type_v2"), "names 'torch._tensor._rebuild_from_type_v2'"),
    "range": (call("builtins", "range", NUMBER + b"\x85"), "names 'builtins.range'"),
    "defaultdict": (name("collections", "defaultdict"), "names 'collections.defaultdict'"),
    "code": (call("os", "system", text("true") + b"\x85"), "names 'os.system'"),
    "a list as sets": (again(MANY, name("builtins", "set") + b"h\x01\x85R"), "copies more than"),
    "a map as maps": (again(MAP, name("collections", "OrderedDict") + b"h\x01\x85R"), "copies more than"),
    "a map as attributes": (again(MAP, name("collections", "OrderedDict") + b")Rh\x01b"), "copies more than"),
    "a text as bytes": (
        again(text("x" * 2000), name("_codecs", "encode") + b"h\x01" + text("latin1") + b"\x86R"),
        "copies more than",
    ),
    "a slow encoding": (
        call("_codecs", "encode", text("x") + text("punycode") + b"\x86"),
        "encodes text as 'punycode'",
    ),
    "a key in 1,000 tuples": (b"}" + NESTED + b"Ns", "a key of nested tuples"),
    "nested tuples in a set": (call("builtins", "set", b"]" + NESTED + b"a\x85"), "a key of nested tuples"),
    "nested tuples in pairs": (
        call("collections", "OrderedDict", b"]]" + NESTED + b"aNaa\x85"),
        "a key of nested tuples",
    ),
    "nested tuples in a storage": (STORAGE.replace(text("0"), NESTED), "a key of nested tuples"),
    "a key of many bits": (b"}\x8a\x10" + b"\x7f" * 16 + b"Ns", "beyond 64 bits"),
    "more than names and shapes": (b"](" + b"N" * 1_000_000 + b"e", "more than 67,108,864 bytes or 1,000,000 values"),
    "text that is not there": (b"X\xff\xff\xff\x7f", "no pickle that torch writes"),
    "an unlisted instruction": (b"\x96" + b"\xff" * 7 + b"\x00", "no pickle that torch writes"),
    "an attribute of a list": (b"]}b", "changes a list"),
    "a call of a text": (text("collections.OrderedDict") + b")R", "calls 'collections.OrderedDict'"),
}


@pytest.fixture
def no_torch_load(monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch built it"))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize(("content", "why"), BOMBS.values(), ids=BOMBS)
def test_a_bomb_is_refused_before_torch_builds_it(tmp_path, no_torch_load, content, why, legacy):
    path = tmp_path / "net.pth"
    if legacy:
        path.write_bytes(LEGACY + b"\x80\x02" + content + b".")
    else:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("net/DATA.PKL", b"\x80\x02" + content + b".")
    with pytest.raises(WeightsError, match=why) as error:
        load_without_code(path)
    assert str(path) in str(error.value) and "save its state dict" in str(error.value)


def test_a_shared_value_is_accepted(tmp_path):
    """Only calls copy values: a list that 2,000 others contain is stored once."""
    shared = list(range(2000))
    torch.save([[shared] for _ in range(2000)], tmp_path / "net.pth")
    assert load_without_code(tmp_path / "net.pth")[1999] == [shared]


def trained(optimizer_type: type, weights: nn.Linear) -> torch.optim.Optimizer:
    kind = {"nesterov": True, "momentum": 0.9} if optimizer_type is torch.optim.SGD else {}
    chosen = [weights.weight] if optimizer_type is getattr(torch.optim, "Muon", None) else weights.parameters()
    optimizer = optimizer_type(chosen, lr=0.1, **kind)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = weights(torch.ones(1, 3)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return optimizer


OPTIMIZERS = [
    cls
    for _, cls in inspect.getmembers(torch.optim, inspect.isclass)
    if issubclass(cls, torch.optim.Optimizer) and cls not in (torch.optim.Optimizer, torch.optim.SparseAdam)
]


@pytest.mark.parametrize("optimizer_type", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_states_of_all_optimizers_are_read(tmp_path, optimizer_type):
    state = trained(optimizer_type, nn.Linear(3, 2)).state_dict()
    torch.save({"optimizer_states": [state]}, tmp_path / "a.ckpt")
    loaded = load_without_code(tmp_path / "a.ckpt")["optimizer_states"][0]
    assert loaded["param_groups"] == state["param_groups"] and repr(loaded["state"]) == repr(state["state"])


SCHEDULES = {
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step),
    "MultiStepLR": lambda optimizer: lr_scheduler.MultiStepLR(optimizer, [3, 3, 5]),  # its milestones are a Counter
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.1, 100),
    "CosineAnnealingWarmRestarts": lambda optimizer: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 5),
    "ReduceLROnPlateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_states_of_schedulers_are_read(tmp_path, schedule):
    state = schedule(torch.optim.SGD(nn.Linear(3, 2).parameters(), 0.1)).state_dict()
    torch.save(state, tmp_path / "a.ckpt")
    assert load_without_code(tmp_path / "a.ckpt") == state


PLAIN = {
    "state": OrderedDict(a=1),
    "counts": Counter("abca"),
    "set": {1, "x", (2, 3)},
    "bytes": b"\x00\xff",
    "complex": 1 - 2j,
    "size": torch.Size([2, 3]),
    "device": torch.device("cpu"),
    "random": random.Random(1).getstate(),
    ("a", 1): None,
    None: -(2**63),
    **{str(dtype): dtype for dtype in (torch.float16, torch.uint8, torch.float8_e4m3fn, torch.complex64)},
}


@pytest.mark.parametrize("zipped", [True, False])
def test_plain_values_of_all_types_are_read(tmp_path, zipped):
    torch.save(PLAIN, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    assert load_without_code(tmp_path / "a.ckpt") == PLAIN


DTYPES = (torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64)


@pytest.mark.parametrize(
    ("dtype", "zipped"),
    [(torch.uint16, True), *((dtype, zipped) for dtype in DTYPES for zipped in (True, False))],
)
def test_tensors_of_all_dtypes_are_read(tmp_path, dtype, zipped):
    values = {"a": torch.tensor([[0, 1]]).to(dtype), "b": nn.Parameter(torch.ones(2))}
    torch.save(values, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
    loaded = load_without_code(tmp_path / "a.ckpt")
    assert torch.equal(loaded["a"], values["a"]) and torch.equal(loaded["b"], values["b"])


def test_a_large_checkpoint_stays_far_below_the_limits(tmp_path, monkeypatch):
    from torchvision.models import resnet101

    with torch.device("meta"):
        weights = resnet101().state_dict()
    content = [  # the weights, and two moments of each
        {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in weights.items()}
        for _ in range(3)
    ]
    file = io.BytesIO()
    torch.save(content, file)
    with zipfile.ZipFile(file) as archive:
        data = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    for limit in ("SIZE", "READS", "COPIED"):
        monkeypatch.setattr(pickles, limit, getattr(pickles, limit) // 8)
    pickles.check_pickle(io.BytesIO(data))


def test_dictionaries_written_by_python_2_are_read(tmp_path):
    """pytorch-fcn's first files have this format."""
    pairs = b"](" + b"](U\x01aK\x01e" + b"](U\x01bK\x02e" + b"e"
    (tmp_path / "net.pth").write_bytes(
        LEGACY + b"\x80\x02" + call("collections", "OrderedDict", pairs + b"\x85") + b"." + pickle.dumps([], 2)
    )
    assert load_without_code(tmp_path / "net.pth") == OrderedDict(a=1, b=2)


def test_numpy_scalars_are_refused(tmp_path):
    torch.save({"best": np.float64(0.5)}, tmp_path / "net.pth")
    with pytest.raises(WeightsError, match=r"names 'numpy\._?core\.multiarray\.scalar'"):
        load_without_code(tmp_path / "net.pth")
