"""Reading weights: files that hold tensors and nothing else, renamed and reshaped by pure functions."""

import hashlib
import json
import os
import pickle
import socket
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fcnlab.errors import UserError, first_line
from fcnlab.models.archives import checked_members
from fcnlab.models.pickles import check_pickle

StateDict = Mapping[str, Tensor]
SILENCE = 30.0  # seconds without a byte that a download may take
LEGACY_PICKLES = 5  # in a file of torch before 1.6, before the numbers
COUNT = 8  # bytes before the numbers of each of its storages
HEADER, TENSORS, DIMENSIONS = 8 << 20, 50_000, 64  # of safetensors; a ResNet-101 has 60 kB and 626 tensors
SMALLEST = 10  # bytes; of a safetensors file without tensors, and other files of weights are larger
SUFFIX = ".safetensors"
RECORD, CHECKSUM = "fcnlab", "fcnlab_sha256"  # names in the metadata of a safetensors file of fcnlab export
WRAPPERS = ("state_dict", "model_state_dict")  # Lightning's and pytorch-fcn's training checkpoints


class WeightsError(UserError):
    """A weights file that is missing, cannot be read safely, or belongs to another model."""


class InertObject:
    """What stands in a file's contents where the file has a number of numpy's: neither is it read nor does it do
    anything. pytorch-fcn's training checkpoints hold their best mean IU so.
    """

    def __init__(self, *_: Any):
        pass

    def __setstate__(self, _: Any) -> None:
        pass


INERT: list[Any] = [
    (InertObject, name) for name in ("numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
]


def fc_to_conv(layer: StateDict, kernel: int) -> dict[str, Tensor]:
    """A linear layer over a (channels, kernel, kernel) block as the convolution that it is (CVPR 2015, section 3.1).

    What is no such layer's stays as it is.
    """

    def is_over_blocks(value: Tensor) -> bool:
        return value.ndim == 2 and value.shape[1] % kernel**2 == 0

    return {
        key: value.reshape(len(value), value.shape[1] // kernel**2, kernel, kernel) if is_over_blocks(value) else value
        for key, value in layer.items()
    }


def without_layers(state: StateDict, *layers: str) -> dict[str, Tensor]:
    """All but some layers: the classifiers, which an FCN cuts off."""
    prefixes = tuple(f"{layer}." for layer in layers)
    return {key: value for key, value in state.items() if not key.startswith(prefixes)}


def with_batch_counters(state: StateDict) -> dict[str, Tensor]:
    """Zeros for batch normalisation's ``num_batches_tracked``, where a file was written before PyTorch 0.4.1 had it."""
    counters = {
        key.removesuffix("running_mean") + "num_batches_tracked": torch.tensor(0)
        for key in state
        if key.endswith("running_mean")
    }
    return counters | dict(state)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` file or a PyTorch file, read without running any code from it.

    Raises
    ------
    WeightsError
        No such file; not a weights file; a file that holds more than tensors and plain Python values; a tensor
        without its numbers.
    """
    return read_labelled(path)[0]


def read_labelled(path: str | Path) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors as :func:`read_tensors` does, and the model's name if the file has one.

    Training checkpoints of pytorch-fcn have it, as "arch".
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}: check the path (relative paths start at {Path.cwd()})")
    state = load_without_code(path, INERT)
    if not isinstance(state, dict):
        raise WeightsError(f"{path} contains a {type(state).__name__}, not a state dict")
    label = dict.get(state, "arch")  # a file can give an OrderedDict a `get` and an `items` of its own
    for wrapper in WRAPPERS:
        inside = dict.get(state, wrapper)
        if isinstance(inside, dict):
            state = inside
    tensors = {key: value for key, value in dict.items(state) if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path} contains no tensors; its keys: {first_names(state)}")
    check_tensors(tensors, str(path))
    return tensors, label if isinstance(label, str) else None


def load_without_code(path: Path, stand_ins: Iterable[Any] = ()) -> Any:
    """What a safetensors file or a PyTorch file holds, read without running any code from it.

    ``stand_ins`` are what to build where the file names something else: see :class:`InertObject`.

    Raises
    ------
    WeightsError
        It cannot be read, is damaged (by its own checksums, too), or holds more than tensors and plain Python values.
    """
    if is_safetensors(path):
        return _load_safetensors(path)
    with _errors_as_damage(path), path.open("rb") as file:  # one for both: what torch reads is what was checked
        inert = list(stand_ins)
        _check_file(file, path, {name for _, name in inert})
        file.seek(0)
        with torch.serialization.safe_globals(inert):
            return torch.load(file, map_location="cpu", weights_only=True)


def is_safetensors(path: Path) -> bool:
    """Return whether a file is one of safetensors, by its name or, if its name does not say so, by its first bytes.

    Raises
    ------
    WeightsError
        It cannot be opened, or is too small to be a file of weights.
    """
    with _errors_as_damage(path), path.open("rb") as file:
        head = file.read(SMALLEST)
    if not head:
        raise WeightsError(f"{path} is empty. Fetch or save it again.")
    if len(head) < SMALLEST:
        raise WeightsError(f"{path} is cut off: it has only {len(head)} bytes. Fetch or save it again.")
    begins_so = int.from_bytes(head[:8], "little") <= HEADER and head[8:9] == b"{"
    return begins_so or path.suffix.lower() == SUFFIX


def read_metadata(path: Path) -> dict[str, str]:
    """The texts that a safetensors file has beside its tensors, by name.

    Raises
    ------
    WeightsError
        As :func:`load_without_code`.
    """
    with _errors_as_damage(path), path.open("rb") as file:
        found = _check_safetensors(file, path).get("__metadata__")
    texts = found.items() if isinstance(found, dict) else ()
    return {name: text for name, text in texts if isinstance(text, str)}


def checksum(tensors: StateDict, record: str) -> str:
    """The sha256 of tensors (names, types, shapes, bytes) and of the record beside them, in hexadecimal digits.

    safetensors has no checksums: a flipped bit would be another weight, or another setting of the network.
    """
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        digest.update(value.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    digest.update(record.encode())
    return digest.hexdigest()


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    metadata = read_metadata(path)
    with _errors_as_damage(path):
        tensors = load_file(path)
        expected = metadata.get(CHECKSUM)  # files of others, and of fcnlab before it wrote one, have none
        if expected is not None and checksum(tensors, metadata.get(RECORD, "")) != expected:
            raise WeightsError(
                f"{path} is damaged: its weights and its record do not have their checksum. Fetch or save it again."
            )
    return tensors


@contextmanager
def _errors_as_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged or holds more than tensors and plain values, and loading it could run code or"
            f" fill the memory: {first_line(error)}\n"
            "If you trust it, load it in Python yourself and save its state dict with safetensors.torch.save_file."
        ) from error
    except Exception as error:  # damaged files end in a dozen kinds of error, IndexError and struct.error among them
        raise WeightsError(f"{path} is no readable weights file: {first_line(error)}") from error


def _check_file(file: IO[bytes], path: Path, inert: Collection[str]) -> None:
    """Look at the checksums, which torch passes over: a flipped bit would be another weight; and at the pickles."""
    if file.read(4) != b"PK\x03\x04":  # before torch 1.6, files were no archives and had no checksums
        file.seek(0)
        _check_legacy(file, path, inert)
        return
    records = checked_members(file)
    with zipfile.ZipFile(file) as archive:
        damaged = archive.testzip()
        if damaged:
            raise WeightsError(
                f"{path} is damaged: {damaged} in it does not have its checksum. Fetch or save it again."
            )
        for record in records:
            if record.filename.lower().endswith("data.pkl"):  # torch's reader does not tell cases apart
                with archive.open(record) as member:
                    check_pickle(member, inert)


def _check_legacy(file: IO[bytes], path: Path, inert: Collection[str]) -> None:
    """Compare the tensors that the fourth pickle names with those whose numbers follow, which the fifth lists.

    torch leaves a tensor as its memory happens to be where the list leaves it out.
    """
    storages: dict[Any, int] = {}
    keys: Any = None
    for _ in range(LEGACY_PICKLES):
        keys, named = check_pickle(file, inert)
        storages |= named
    begin = file.tell()
    rest = file.seek(0, os.SEEK_END) - begin
    complete = type(keys) is list and len(keys) == len(storages) and all(key in storages for key in keys)
    if not complete or rest < sum(COUNT + size for size in storages.values()):
        raise WeightsError(
            f"{path} is no readable weights file: it holds a tensor without its numbers: it is cut off, or was changed."
            " Fetch or save it again."
        )


def _check_safetensors(file: IO[bytes], path: Path) -> dict[str, Any]:
    """Return the header after a look at it: safetensors reads it as a whole, whatever its size."""
    length = int.from_bytes(file.read(8), "little")
    if length > HEADER:
        raise WeightsError(f"{path} is no readable weights file: header too large, more than {HEADER:,} bytes")
    text = file.read(length)
    if len(text) < length:
        raise WeightsError(f"{path} is cut off: it ends in its header. Fetch or save it again.")
    header = json.loads(text)
    if not isinstance(header, dict) or len(header) > TENSORS:
        raise WeightsError(f"{path} is no readable weights file: more than {TENSORS:,} tensors, or no names of them")
    shapes = [entry.get("shape") for entry in header.values() if isinstance(entry, dict)]
    if any(isinstance(shape, list) and len(shape) > DIMENSIONS for shape in shapes):
        raise WeightsError(f"{path} is no readable weights file: a tensor of more than {DIMENSIONS} dimensions")
    return header


def check_tensors(tensors: StateDict, source: str) -> None:
    """Refuse tensors that are no plain arrays of numbers.

    Raises
    ------
    WeightsError
        A tensor has no numbers (device ``meta``), or fewer than its shape says (expanded).
    """
    odd = [key for key, value in tensors.items() if not _has_its_numbers(value)]
    if odd:
        raise WeightsError(
            f"{source} holds {len(odd)} tensors without their numbers: {first_names(odd)}. Save them dense, as float32."
        )


def _has_its_numbers(value: Tensor) -> bool:
    return bool(
        value.device.type == "cpu"
        and value.untyped_storage().nbytes() >= (value.storage_offset() + value.numel()) * value.element_size()
    )


def load_backbone(
    net: nn.Module,
    weights: str,
    convert: Callable[[StateDict], dict[str, Tensor]] = dict,
    imagenet: str | None = None,
) -> bool:
    """Load ``weights`` (``"none"``, ``"imagenet"`` or a path) into a backbone; return whether there were any.

    ``imagenet`` is the name of torchvision's weights, if torchvision has the model.
    """
    if weights == "none":
        return False
    name = type(net).__name__
    if weights == "imagenet":
        if imagenet is None:
            raise WeightsError(f"{name} has no ImageNet weights to fetch: set model.backbone.weights=none or to a file")
        state = _from_torchvision(imagenet)
    else:
        state = read_tensors(weights)
    load_strictly(net, convert(state), f"weights={weights} for the backbone {name}")
    return True


def _from_torchvision(name: str) -> dict[str, Tensor]:
    """torchvision's weights, from its download cache or its server."""
    from torchvision.models import get_weight

    weights = get_weight(name)
    cached = Path(torch.hub.get_dir(), "checkpoints", weights.url.rpartition("/")[2])
    try:
        with silence_limited():
            return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"could not fetch torchvision's {name}: {first_line(error)}\n"
            f"Offline? Bring {weights.url} to {cached}, or set model.backbone.weights to the file's path, or to none."
        ) from error


@contextmanager
def silence_limited() -> Iterator[None]:
    """Let a read that waits too long for a byte fail, where whoever reads sets no limit: torch's downloads do not."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def load_strictly(net: nn.Module, state: StateDict, what: str) -> None:
    """Load all tensors into a model; tensors that do not fit are an error, see :func:`check_fit`."""
    check_fit(net, state, what)
    net.load_state_dict(dict(state))


def check_fit(net: nn.Module, state: StateDict, what: str) -> None:
    """Check that tensors have the names, shapes and types of a model, which may be on the device ``meta``.

    Raises
    ------
    WeightsError
        A tensor is missing, not in the model, of another shape, or contains integers where the model has floats.
    """
    own = net.state_dict()
    problems = {
        "missing": [key for key in own if key not in state],
        "not in the model": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
        "of another type": [
            f"{key} {state[key].dtype}, not {own[key].dtype}"
            for key in own
            if key in state and own[key].is_floating_point() and not state[key].is_floating_point()
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {problem}: {first_names(keys)}" for problem, keys in problems.items() if keys)
        raise WeightsError(f"{what} do not fit: {found}. They are probably of another architecture.")


def first_names(names: Iterable) -> str:
    """The first of some names, for a message."""
    names = list(names)
    return ", ".join(map(str, names[:3])) + (", …" if len(names) > 3 else "")
