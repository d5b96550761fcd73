"""Reading weights: files that hold tensors and nothing else, renamed and reshaped by pure functions."""

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fcnlab.errors import UserError

StateDict = Mapping[str, Tensor]
WRAPPERS = ("state_dict", "model_state_dict")  # Lightning's and pytorch-fcn's training checkpoints


class WeightsError(UserError):
    """A weights file that is missing, cannot be read safely, or belongs to another net."""


def fc_to_conv(layer: StateDict, kernel: int) -> dict[str, Tensor]:
    """A linear layer over a (channels, kernel, kernel) block as the convolution that it is (CVPR 2015, section 3.1)."""
    return {
        key: value.view(len(value), -1, kernel, kernel) if value.ndim == 2 else value for key, value in layer.items()
    }


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` file or a PyTorch file, read without running any code from it.

    Raises
    ------
    WeightsError
        No such file; not a weights file; a file that holds more than tensors and plain Python values.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weights file at {path}: check the path (relative paths start at {Path.cwd()})")
    state = _read(path)
    for wrapper in WRAPPERS:
        if isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    tensors = {key: value for key, value in state.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(f"{path} holds no tensors; its keys: {_few(state)}")
    return tensors


def _read(path: Path) -> dict:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged or holds more than tensors, and loading it could run code: {_first_line(error)}\n"
            "If you trust it, load it in Python yourself and save its state dict with safetensors.torch.save_file."
        ) from error
    except Exception as error:  # damaged files end in a dozen kinds of error, IndexError and struct.error among them
        raise WeightsError(f"{path} is no readable weights file: {_first_line(error)}") from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path} holds a {type(state).__name__}, not a state dict")
    return state


def load_backbone(
    net: nn.Module,
    weights: str,
    convert: Callable[[StateDict], dict[str, Tensor]] = dict,
    imagenet: str | None = None,
) -> bool:
    """Load what ``weights`` names, ``"none"``, ``"imagenet"`` or a path, into a backbone; say whether anything was.

    ``imagenet`` is the name of torchvision's weights, for nets that it offers.
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
        return dict(weights.get_state_dict(progress=True, check_hash=True))
    except (OSError, RuntimeError) as error:
        raise WeightsError(
            f"could not fetch torchvision's {name}: {_first_line(error)}\n"
            f"Offline? Bring {weights.url} to {cached}, or set model.backbone.weights to the file's path, or to none."
        ) from error


def load_strictly(net: nn.Module, state: StateDict, what: str) -> None:
    """Load every tensor, or say what does not fit.

    Raises
    ------
    WeightsError
        A tensor is missing, left over, or of another shape.
    """
    own = net.state_dict()
    problems = {
        "missing": [key for key in own if key not in state],
        "not in the net": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {tuple(state[key].shape)}, not {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    if any(problems.values()):
        found = "; ".join(f"{len(keys)} {problem}: {_few(keys)}" for problem, keys in problems.items() if keys)
        raise WeightsError(f"{what} do not fit: {found}. They are probably of another architecture.")
    net.load_state_dict(dict(state))


def _few(names) -> str:
    names = list(names)
    return ", ".join(map(str, names[:3])) + (", …" if len(names) > 3 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
