"""Reading a checkpoint back: from the file alone, and without running anything that it names."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

import fcnlab
from fcnlab.callbacks.resume import check_random_states
from fcnlab.callbacks.stopping import check_early_end
from fcnlab.config import ConfigError, check_targets, plain
from fcnlab.data import Pictures
from fcnlab.errors import UserError, first_line
from fcnlab.launching import to_type
from fcnlab.models import FCN
from fcnlab.models.weights import WeightsError, check_fit, check_tensors, load_plainly, load_strictly
from fcnlab.results.selection import OF_A_CHECKPOINT, Facts, is_one
from fcnlab.trust import NETS, check_components

DEEPEST = 20  # levels of a record; a model's config has 3
MOST = 10_000  # values in it; there are 300, many of them the palette's
SCALARS = (bool, int, float, str)
MOST_COUNTED = 2**40  # epochs, batches, steps: 30,000 years of 1 a second


def checkpoint_record(cfg: DictConfig, pictures: Pictures, **facts: Any) -> dict[str, Any]:
    """What goes into every checkpoint of a run, so that it can be used without the run's folder: plain values only.

    ``facts`` are what resuming needs: ``settings``, ``segments``, ``images`` (see :mod:`fcnlab.tasks.segments`).
    """
    return facts | {
        "version": fcnlab.__version__,
        "variant": HydraConfig.get().runtime.choices["model"],
        "model": without_weights(plain(cfg.model)),
        "classes": list(pictures.classes),
        "palette": pictures.palette.tolist(),
    }


def without_weights(model: dict[str, Any]) -> dict[str, Any]:
    """The model's config with nothing to load: the checkpoint's own weights come after."""
    changed = {"weights": "none"} | ({"reset_heads": False} if "reset_heads" in model else {})
    nested = {key: without_weights(value) for key, value in model.items() if isinstance(value, dict)}
    return model | nested | {key: value for key, value in changed.items() if key in model}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of ``fcnlab train``; its record, under "fcnlab", in plain lists and dicts.

    Raises
    ------
    UserError
        No such file; damaged; not written by fcnlab; it holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"checkpoint={path} is no file. A run's checkpoints are RUN/checkpoints/best.ckpt and last.ckpt."
        )
    try:
        checkpoint = load_plainly(path)
    except WeightsError as error:
        last = path.with_name("last.ckpt")
        way_out = f" Its run has another checkpoint: {last}" if path.name != last.name and last.is_file() else ""
        raise UserError(f"checkpoint={error}{'.' * bool(way_out)}{way_out}") from error
    if not isinstance(checkpoint, dict) or not {"fcnlab", "state_dict"} <= set(checkpoint):
        raise UserError(
            f"checkpoint={path} was not written by fcnlab train. For bare weights, use"
            f" {to_type('model.weights', path)}."
        )
    try:
        checked = {"fcnlab": _plain(checkpoint["fcnlab"]), "state_dict": _tensors(checkpoint["state_dict"])}
        _check_record(checked["fcnlab"])
        _check_place(checkpoint)
    except ValueError as error:
        raise UserError(f"checkpoint={path} was not written by fcnlab train, or was changed: {error}") from error
    return dict(dict.items(checkpoint)) | checked


def _plain(record: Any) -> Any:
    """A copy in dicts, lists and scalars, so that what is checked is what is built, whatever else the file made of it.

    Raises
    ------
    ValueError
        Another kind of value; a depth or a number of values that no record has (a few bytes can say a list of itself).
    """
    left = MOST

    def copied(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if depth > DEEPEST or left < 0:
            raise ValueError(f"its record has more than {DEEPEST} levels or {MOST} values")
        if type(value) is dict and all(isinstance(key, SCALARS) for key in value):
            for key in value:
                _check_scalar(key)
            if len({isinstance(key, str) for key in value}) > 1:
                raise ValueError("its record holds a dict whose keys are partly names and partly numbers")
            return {key: copied(child, depth + 1) for key, child in value.items()}
        if type(value) in (list, tuple):
            return [copied(child, depth + 1) for child in value]
        if value is None or isinstance(value, SCALARS):
            _check_scalar(value)
            return value
        raise ValueError(f"its record holds a {type(value).__name__} with what is no plain value")

    return copied(record, 0)


def _check_scalar(value: Any) -> None:
    """Raise a ValueError for what no JSON can hold; a name of a file that is not UTF-8 has its bytes as surrogates."""
    if isinstance(value, str):
        try:
            value.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            raise ValueError("its record holds text that is no Unicode") from None
    if isinstance(value, int) and abs(value) >= 2**64:
        raise ValueError("its record holds a number of more than 64 bits")


def _check_place(checkpoint: dict[str, Any]) -> None:
    """Raise a ValueError unless step and epoch are counts, and "resume" is a dict where there is one."""
    for name in ("global_step", "epoch"):
        _check_count(checkpoint, name, 0, "its")
    if not isinstance(checkpoint.get("resume"), dict | None):
        raise ValueError(f"its resume is a {type(checkpoint['resume']).__name__}")


def _check_count(found: dict[str, Any], name: str, least: int, whose: str, default: int | None = 0) -> None:
    value = dict.get(found, name, default)
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(f"{whose} {name} is no whole number of {least} or more")


def check_resumable(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Look at what a training goes on with, beyond what :func:`read_checkpoint` has looked at.

    What depends on the optimisers of today is compared when these are built (:mod:`fcnlab.callbacks.resume`).

    Raises
    ------
    UserError
        A part is missing or of another type than fcnlab writes, a random state is none, or a tensor is no plain one.
    """
    try:
        _check_parts(checkpoint)
        check_tensors(dict(_tensors_in(checkpoint)), "what it resumes with")
    except ValueError as error:
        raise UserError(f"checkpoint={path} cannot be resumed from: {first_line(error)}") from error


def _check_parts(checkpoint: dict[str, Any]) -> None:
    kept = checkpoint["resume"]
    for name, least in {"rows": 0, "pictures": 1, "accumulate": 1, "validated": 0}.items():
        _check_count(kept, name, least, "its resume's", None)
    if type(kept.get("stopped_early")) is not bool:
        raise ValueError("its resume's stopped_early is neither true nor false")
    check_random_states(kept.get("random"))
    for name in ("optimizer_states", "lr_schedulers"):
        states = checkpoint.get(name)
        if not isinstance(states, list) or not states or not all(isinstance(state, dict) for state in states):
            raise ValueError(f"its {name} are no list of dicts")
    for state in checkpoint["lr_schedulers"]:
        for name in ("last_epoch", "_step_count"):
            _check_count(state, name, 0, "its lr_schedulers'")
        methods = [key for key in state if callable(getattr(LRScheduler, str(key), None))]
        if methods:  # torch would put a value in its place
            raise ValueError(f"its lr_schedulers hold a value for {methods[0]}, which is a method")
    for name in ("loops", "callbacks"):
        if not isinstance(checkpoint.get(name), dict):
            raise ValueError(f"its {name} are no dict")
    _check_counts(checkpoint["loops"])
    check_early_end(checkpoint["callbacks"])
    _check_agreement(checkpoint)


def _check_agreement(checkpoint: dict[str, Any]) -> None:
    """Raise a ValueError unless all that counts steps, epochs and batches tells of the same moment.

    ``global_step`` decides at which step a run says that it resumes, the loops where it does.
    """
    kept, record, steps = checkpoint["resume"], checkpoint["fcnlab"], checkpoint.get("global_step", 0)
    try:
        loop = checkpoint["loops"]["fit_loop"]
        optimised = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
        epoch = loop["epoch_progress"]["current"]["processed"]
        batches, in_epoch = (loop["epoch_loop.batch_progress"][name]["completed"] for name in ("total", "current"))
    except (KeyError, TypeError) as error:
        raise ValueError("its loops are none of a training") from error
    counted = [("its loops say", optimised)]
    counted += [("its lr_schedulers say", one.get("last_epoch")) for one in checkpoint["lr_schedulers"]]
    counted += [("its selection says", record["selection"]["step"])] if "selection" in record else []
    for whose, value in counted:
        if value != steps:
            raise ValueError(f"its global_step is {steps}, and {whose} {value}")
    if checkpoint.get("epoch", 0) != epoch or epoch > steps:
        raise ValueError(f"its epoch is {checkpoint.get('epoch', 0)}, and its loops say {epoch} of {steps} steps")
    latest = max([kept["validated"], *(one["from_step"] for one in record.get("segments", ()))])
    if latest > steps:
        raise ValueError(f"its global_step is {steps}, and it tells of step {latest}")
    images = record.get("images", {}).get("train", {}).get("count", MOST_COUNTED)
    fits = kept["pictures"] * max(in_epoch, kept["accumulate"]) <= images
    if not fits or not steps <= batches < (steps + 1) * kept["accumulate"]:
        raise ValueError(
            f"its counts of batches ({in_epoch} in this epoch, {batches} in all) are not those of {steps} steps"
        )


def _check_counts(loops: Any, depth: int = 0) -> None:
    """Lightning's counts of epochs, batches and steps."""
    if depth > DEEPEST:
        raise ValueError(f"its loops have more than {DEEPEST} levels")
    if isinstance(loops, dict):
        for value in dict.values(loops):
            _check_counts(value, depth + 1)
    elif isinstance(loops, int) and not 0 <= loops <= MOST_COUNTED:
        raise ValueError("its loops hold a count below 0 or beyond all")


def _tensors_in(checkpoint: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor by its place; a value that is in itself is seen once."""
    seen, left = set(), [("", checkpoint)]
    while left:
        place, value = left.pop()
        if isinstance(value, Tensor):
            yield place, value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            children = dict.items(value) if isinstance(value, dict) else enumerate(value)
            left += [(f"{place}.{key}" if place else str(key), child) for key, child in children]


def _check_record(record: Any) -> None:
    """Raise a ValueError unless it is what :func:`checkpoint_record` makes."""
    wanted = {"model": dict, "classes": list, "palette": list}
    for name, kind in wanted.items():
        if not isinstance(record, dict) or not isinstance(record.get(name), kind):
            raise ValueError(f"its record has no {name}")
    for name, kind in {"settings": dict, "images": dict, "segments": list, "trained": dict}.items():  # older have none
        if not isinstance(record.get(name, kind()), kind):
            raise ValueError(f"its {name} are a {type(record[name]).__name__}")
    if not all(isinstance(name, str) and _is_utf8(name) for name in record["classes"]):
        raise ValueError("its classes are no names")
    _check_copied(record)
    if "selection" in record:
        facts = record["selection"]
        if not is_one(facts, OF_A_CHECKPOINT) or not all(_is_count(facts[name]) for name in ("among", "step")):
            raise ValueError("its selection is none of fcnlab's")
    try:
        colours = np.array(record["palette"], np.uint8)
    except (ValueError, TypeError, OverflowError):
        colours = np.empty(0)
    if colours.shape != (len(record["classes"]), 3):
        raise ValueError("its palette is not RGB in 0..255 for each class")


def _check_copied(record: dict[str, Any]) -> None:
    """Raise a ValueError unless what a run's record takes from a checkpoint is what fcnlab writes there."""
    if not all(isinstance(key, str) for key in record.get("settings", {})):
        raise ValueError("its settings have a key that is no name")
    if not _are_segments(record.get("segments", [])):
        raise ValueError("its segments are none of fcnlab's")
    images = record.get("images", {}).values()
    if not all(
        isinstance(one, dict) and _is_count(one.get("count")) and isinstance(one.get("names"), str) for one in images
    ):
        raise ValueError("its images are none of fcnlab's")
    trained = record.get("trained", {})
    sources, files = trained.get("sources", []), trained.get("files", {})
    if not isinstance(sources, list) or not all(
        isinstance(one, dict) and _has_texts(one.get("source")) for one in sources
    ):
        raise ValueError("its trained.sources are none of fcnlab's")
    if not isinstance(files, dict) or not all(map(_has_texts, files.values())):
        raise ValueError("its trained.files are none of fcnlab's")


def _are_segments(found: list[Any]) -> bool:
    """Whether each has its first step, not before the one before it, when it started, and old and new values."""
    if not all(isinstance(one, dict) and _is_count(one.get("from_step")) for one in found):
        return False
    steps = [one["from_step"] for one in found]
    return steps == sorted(steps) and all(
        isinstance(one.get("started"), str)
        and isinstance(one.get("changed"), dict)
        and all(isinstance(path, str) for path in one["changed"])
        and all(isinstance(change, list) and len(change) == 2 for change in one["changed"].values())
        for one in found
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MOST_COUNTED


def _has_texts(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(value, str | None) for value in found.values())


def _is_utf8(text: str) -> bool:
    return text == text.encode(errors="ignore").decode()


def _tensors(state: Any) -> dict[str, Tensor]:
    """The state dict; a ValueError unless it holds plain tensors by name."""
    if not isinstance(state, dict):
        raise ValueError(f"its state_dict is a {type(state).__name__}")
    tensors = dict(dict.items(state))  # a file can give an OrderedDict an `items` of its own
    odd = [key for key, value in tensors.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if odd:
        raise ValueError(f"its state_dict holds what is no tensor by name, such as {odd[0]!r:.80}")
    check_tensors(tensors, "its state_dict")
    return tensors


def selection_of(checkpoint: dict[str, Any]) -> Facts | None:
    """How a checkpoint was selected (:mod:`fcnlab.results.selection`); None where it is too old to say."""
    found = checkpoint["fcnlab"].get("selection")
    return found and {**found, "stopped_early": bool((checkpoint.get("resume") or {}).get("stopped_early"))}


def rebuild_net(checkpoint: dict[str, Any], source: str, trust: Sequence[str]) -> FCN:
    """The net of a checkpoint, with its weights.

    Raises
    ------
    UserError
        Its config names anything but a net of fcnlab's and what the trusted packages define, or builds no net; config,
        classes and weights do not fit.
    """
    model = checkpoint["fcnlab"]["model"]
    check_components(model, NETS, trust, source)
    model = without_weights(model)
    try:
        check_targets(OmegaConf.create({"model": model}))
    except ConfigError as error:  # of a setting that the user has not typed
        raise UserError(f"the model of {source} cannot be built: {error}") from error
    state = {
        key.removeprefix("net."): value for key, value in checkpoint["state_dict"].items() if key.startswith("net.")
    }
    if not trust:  # whose code may want real numbers
        with torch.device("meta"):  # the file's word for the sizes: compared before it takes any memory
            check_fit(_built(model, source), state, source)
    net = _built(model, source)
    classes = checkpoint["fcnlab"]["classes"]
    if net.num_classes != len(classes):
        raise UserError(f"{source} names {len(classes)} classes, and its net scores {net.num_classes}. It is refused.")
    load_strictly(net, state, source)
    return net


def _built(model: dict[str, Any], source: str) -> FCN:
    try:
        net = instantiate(model, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"the model of {source} cannot be built: {error}") from error
    if not isinstance(net, FCN):
        raise UserError(f"the model of {source} is a {type(net).__name__}, no FCN. It is refused.")
    return net
