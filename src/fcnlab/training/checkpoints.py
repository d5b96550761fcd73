"""Read a checkpoint from its file alone, without running any code that it names."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from torch.overrides import TorchFunctionMode

from fcnlab.config.components import to_plain
from fcnlab.config.overrides import shell_override
from fcnlab.config.trust import check_components, model_components, trusted_packages, without_fetching
from fcnlab.config.validation import ConfigError, validate_config
from fcnlab.data import SegmentationDataset
from fcnlab.errors import UserError, first_line
from fcnlab.models import Network
from fcnlab.models.weights import (
    WeightsError,
    check_fit,
    check_tensors,
    is_safetensors,
    load_strictly,
    load_without_code,
)
from fcnlab.runs.selection import CHECKPOINT_TYPES, Facts, is_valid_selection
from fcnlab.tracking.downloads import CheckpointFile, checkpoint_file
from fcnlab.training.callbacks.resume import check_random_states
from fcnlab.training.callbacks.stopping import check_stopping_states
from fcnlab.training.weights_file import read_weights_file
from fcnlab.version import __version__

MAX_DEPTH = 20  # levels of a record; a model's config has 3
MAX_VALUES = 10_000  # values of a record; a usual one has 300, most of them the palette's
SCALARS = (bool, int, float, str)
MAX_COUNT = 2**40  # epochs, batches or steps: 30,000 years at one per second


def checkpoint_record(cfg: DictConfig, variant: str, dataset: SegmentationDataset, **facts: Any) -> dict[str, Any]:
    """Return the record that is saved in every checkpoint, so that it can be used without the run's folder.

    It contains plain values only. ``variant`` is the option of ``model=``. ``facts`` are needed to resume:
    ``settings``, ``segments``, ``images`` (see :mod:`fcnlab.training.segments`).
    """
    return facts | {
        "version": __version__,
        "variant": variant,
        "model": without_weights(to_plain(cfg.model)),
        "classes": list(dataset.classes),
        "palette": dataset.palette.tolist(),
    }


def without_weights(model: dict[str, Any]) -> dict[str, Any]:
    """Return the model's config without pretrained weights: the checkpoint's weights are loaded later."""
    changed = {"weights": "none"} | ({"reset_heads": False} if "reset_heads" in model else {})
    nested = {key: without_weights(value) for key, value in model.items() if isinstance(value, dict)}
    return model | nested | {key: value for key, value in changed.items() if key in model}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint of ``fcnlab train``, with its record in plain lists and dicts as "fcnlab".

    A ``.safetensors`` file of ``fcnlab export`` has the record and the weights, but no state to resume.

    Raises
    ------
    UserError
        The file does not exist, is damaged, was not written by fcnlab, or contains more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        own = [path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
        found = " or ".join(str(each) for each in own if each.is_file())  # the folder of a run was given
        hint = f"Did you mean {found}?" if found else "A run's are RUN/checkpoints/best.ckpt and last.ckpt."
        raise UserError(f"checkpoint={path} is not a file. {hint}")
    try:
        checkpoint = read_weights_file(path) if is_safetensors(path) else load_without_code(path)
    except WeightsError as error:
        last = path.with_name("last.ckpt")
        hint = f" The run has another checkpoint: {last}" if path.name != last.name and last.is_file() else ""
        raise UserError(f"checkpoint={error}{'.' * bool(hint)}{hint}") from error
    if not isinstance(checkpoint, dict) or not {"fcnlab", "state_dict"} <= set(checkpoint):
        raise UserError(
            f"checkpoint={path} was not written by fcnlab train. To start from weights alone, use"
            f" {shell_override('model.weights', path)}."
        )
    try:
        checked = {"fcnlab": _plain(checkpoint["fcnlab"]), "state_dict": _tensors(checkpoint["state_dict"])}
        _check_record(checked["fcnlab"])
        _check_progress(checkpoint)
    except ValueError as error:
        raise UserError(f"checkpoint={path} was not written by fcnlab train, or was changed: {error}") from error
    return dict(dict.items(checkpoint)) | checked


def _plain(record: Any) -> Any:
    """Return a copy in dicts, lists and scalars, so that the checked values are the values that are used.

    Raises
    ------
    ValueError
        The record contains another type, or is too deep or too large (a few bytes can encode a list inside itself).
    """
    remaining = MAX_VALUES

    def copied(value: Any, depth: int) -> Any:
        nonlocal remaining
        remaining -= 1
        if depth > MAX_DEPTH or remaining < 0:
            raise ValueError(f"its record has more than {MAX_DEPTH} levels or {MAX_VALUES} values")
        if type(value) is dict and all(isinstance(key, SCALARS) for key in value):
            for key in value:
                _check_scalar(key)
            if len({isinstance(key, str) for key in value}) > 1:
                raise ValueError("its record contains a dict with both names and numbers as keys")
            return {key: copied(child, depth + 1) for key, child in value.items()}
        if type(value) in (list, tuple):
            return [copied(child, depth + 1) for child in value]
        if value is None or isinstance(value, SCALARS):
            _check_scalar(value)
            return value
        raise ValueError(f"its record contains a {type(value).__name__}, which is not a plain value")

    return copied(record, 0)


def _check_scalar(value: Any) -> None:
    """Raise a ValueError for values that JSON cannot store; surrogates are allowed, for file names not in UTF-8."""
    if isinstance(value, str):
        try:
            value.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            raise ValueError("its record contains text that is not valid Unicode") from None
    if isinstance(value, int) and abs(value) >= 2**64:
        raise ValueError("its record contains a number of more than 64 bits")


def _check_progress(checkpoint: dict[str, Any]) -> None:
    """Raise a ValueError unless step and epoch are counts, and "resume" is a dict or missing."""
    for name in ("global_step", "epoch"):
        _check_count(checkpoint, name, 0)
    if not isinstance(checkpoint.get("resume"), dict | None):
        raise ValueError(f"its resume is a {type(checkpoint['resume']).__name__}, not a dict")


def _check_count(counts: dict[str, Any], name: str, minimum: int, prefix: str = "", default: int | None = 0) -> None:
    value = dict.get(counts, name, default)
    if type(value) is not int or not minimum <= value < 2**63:
        raise ValueError(f"its {prefix}{name} is not an integer of at least {minimum}")


def check_resumable(checkpoint: dict[str, Any], path: str | Path) -> None:
    """Check the state to resume from, beyond what :func:`read_checkpoint` checks.

    The optimisers' states are checked when the optimisers are built (:mod:`fcnlab.training.callbacks.resume`).

    Raises
    ------
    UserError
        A part is missing or has another type than fcnlab writes, a random state is invalid, or a tensor is not plain.
    """
    try:
        _check_parts(checkpoint)
        check_tensors(dict(_tensors_in(checkpoint)), "its state")
    except ValueError as error:
        raise UserError(f"checkpoint={path} cannot be resumed: {first_line(error)}") from error


def _check_parts(checkpoint: dict[str, Any]) -> None:
    resume = checkpoint["resume"]
    for name in ("settings", "segments", "images"):
        if not checkpoint["fcnlab"].get(name):
            raise ValueError(f"its record has no {name}")
    for name, minimum in {"rows": 0, "images": 1, "accumulate": 1, "validated": 0}.items():
        _check_count(resume, name, minimum, "resume.", None)
    if type(resume.get("stopped_early")) is not bool:
        raise ValueError("its resume.stopped_early is neither true nor false")
    check_random_states(resume.get("random"))
    for name in ("optimizer_states", "lr_schedulers"):
        states = checkpoint.get(name)
        if not isinstance(states, list) or not states or not all(isinstance(state, dict) for state in states):
            raise ValueError(f"its {name} is not a list of dicts")
    for state in checkpoint["lr_schedulers"]:
        for name in ("last_epoch", "_step_count"):
            _check_count(state, name, 0, "lr_schedulers.")
        methods = [key for key in state if callable(getattr(LRScheduler, str(key), None))]
        if methods:  # torch would overwrite the method
            raise ValueError(f"its lr_schedulers contain a value for {methods[0]}, which is a method")
    for name in ("loops", "callbacks"):
        if not isinstance(checkpoint.get(name), dict):
            raise ValueError(f"its {name} entry is not a dict")
    _check_counts(checkpoint["loops"])
    check_stopping_states(checkpoint["callbacks"])
    _check_agreement(checkpoint)


def _check_agreement(checkpoint: dict[str, Any]) -> None:
    """Raise a ValueError unless all counts of steps, epochs and batches agree.

    fcnlab reports ``global_step`` as the step at which a run resumes; Lightning's loops decide where it does.
    """
    resume, record, steps = checkpoint["resume"], checkpoint["fcnlab"], checkpoint.get("global_step", 0)
    try:
        loop = checkpoint["loops"]["fit_loop"]
        optimised = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
        epoch = loop["epoch_progress"]["current"]["processed"]
        batches, in_epoch = (loop["epoch_loop.batch_progress"][name]["completed"] for name in ("total", "current"))
    except (KeyError, TypeError) as error:
        raise ValueError("its loops are not those of a training run") from error
    counts = [("loops", optimised)]
    counts += [("lr_schedulers", schedule.get("last_epoch")) for schedule in checkpoint["lr_schedulers"]]
    counts += [("selection", record["selection"]["step"])] if "selection" in record else []
    for name, value in counts:
        if value != steps:
            raise ValueError(f"its global_step is {steps}, but the step of its {name} is {value}")
    if checkpoint.get("epoch", 0) != epoch or epoch > steps:
        raise ValueError(f"its epoch is {checkpoint.get('epoch', 0)}, but that of its loops is {epoch} at step {steps}")
    latest = max([resume["validated"], *(segment["from_step"] for segment in record["segments"])])
    if latest > steps:
        raise ValueError(f"its global_step is {steps}, but it contains facts of step {latest}")
    images = record["images"].get("train", {}).get("count", MAX_COUNT)
    fits = resume["images"] * max(in_epoch, resume["accumulate"]) <= images
    if not fits or not steps <= batches < (steps + 1) * resume["accumulate"]:
        raise ValueError(
            f"its batch counts ({in_epoch} in this epoch, {batches} in total) do not match its {steps} steps"
        )


def _check_counts(loops: Any, depth: int = 0) -> None:
    """Raise a ValueError unless Lightning's counts of epochs, batches and steps are plausible."""
    if depth > MAX_DEPTH:
        raise ValueError(f"its loops have more than {MAX_DEPTH} levels")
    if isinstance(loops, dict):
        for value in dict.values(loops):
            _check_counts(value, depth + 1)
    elif isinstance(loops, int) and not 0 <= loops <= MAX_COUNT:
        raise ValueError(f"its loops contain a count that is negative or above {MAX_COUNT}")


def _tensors_in(checkpoint: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor with its path; a value that contains itself is visited once."""
    seen, remaining = set(), [("", checkpoint)]
    while remaining:
        path, value = remaining.pop()
        if isinstance(value, Tensor):
            yield path, value
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            children = dict.items(value) if isinstance(value, dict) else enumerate(value)
            remaining += [(f"{path}.{key}" if path else str(key), child) for key, child in children]


def _check_record(record: Any) -> None:
    """Raise a ValueError unless the record has the form that :func:`checkpoint_record` writes."""
    required = {"model": dict, "classes": list, "palette": list}
    for name, kind in required.items():
        if not isinstance(record, dict) or not isinstance(record.get(name), kind):
            raise ValueError(f"its record has no valid {name}")
    for name, kind in {"settings": dict, "images": dict, "segments": list, "trained": dict}.items():  # to resume
        if not isinstance(record.get(name, kind()), kind):
            raise ValueError(f"its {name} entry is a {type(record[name]).__name__}")
    if not all(isinstance(name, str) and _is_utf8(name) for name in record["classes"]):
        raise ValueError("its classes are not valid names")
    _check_copied(record)
    if "selection" in record:
        facts = record["selection"]
        if not is_valid_selection(facts, CHECKPOINT_TYPES) or not all(
            _is_count(facts[name]) for name in ("among", "step")
        ):
            raise ValueError("its selection is invalid")
    try:
        colours = np.array(record["palette"], np.uint8)
    except (ValueError, TypeError, OverflowError):
        colours = np.empty(0)
    if colours.shape != (len(record["classes"]), 3):
        raise ValueError("its palette is not RGB in 0..255 for each class")


def _check_copied(record: dict[str, Any]) -> None:
    """Raise a ValueError unless the facts that a run's record copies from a checkpoint have the form fcnlab writes."""
    if not all(isinstance(key, str) for key in record.get("settings", {})):
        raise ValueError("its settings have a key that is not a string")
    if not _are_segments(record.get("segments", [])):
        raise ValueError("its segments are invalid")
    if not all(map(_is_image_list, record.get("images", {}).values())):
        raise ValueError("its images entry is invalid")
    trained = record.get("trained", {})
    sources, files = trained.get("sources", []), trained.get("files", {})
    if not isinstance(sources, list) or not all(
        isinstance(source, dict) and _has_texts(source.get("source")) for source in sources
    ):
        raise ValueError("its trained.sources are invalid")
    if not isinstance(files, dict) or not all(map(_has_texts, files.values())):
        raise ValueError("its trained.files are invalid")


def _is_image_list(facts: Any) -> bool:
    return isinstance(facts, dict) and _is_count(facts.get("count")) and isinstance(facts.get("names"), str)


def _are_segments(segments: list[Any]) -> bool:
    """Return whether each segment has a first step (in ascending order), a start time, and old and new values."""
    if not all(isinstance(segment, dict) and _is_count(segment.get("from_step")) for segment in segments):
        return False
    steps = [segment["from_step"] for segment in segments]
    return steps == sorted(steps) and all(
        isinstance(segment.get("started"), str)
        and isinstance(segment.get("changed"), dict)
        and all(isinstance(path, str) for path in segment["changed"])
        and all(isinstance(change, list) and len(change) == 2 for change in segment["changed"].values())
        for segment in segments
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_COUNT


def _has_texts(facts: Any) -> bool:
    return isinstance(facts, dict) and all(isinstance(value, str | None) for value in facts.values())


def _is_utf8(text: str) -> bool:
    return text == text.encode(errors="ignore").decode()


def _tensors(state: Any) -> dict[str, Tensor]:
    """Return the state dict; raise a ValueError unless it contains plain tensors by name."""
    if not isinstance(state, dict):
        raise ValueError(f"its state_dict is a {type(state).__name__}")
    tensors = dict(dict.items(state))  # a file can define its own `items` for an OrderedDict
    invalid = [key for key, value in tensors.items() if not isinstance(key, str) or not isinstance(value, Tensor)]
    if invalid:
        raise ValueError(f"its state_dict contains more than named tensors, such as {invalid[0]!r:.80}")
    check_tensors(tensors, "its state_dict")
    return tensors


def selection_of(checkpoint: dict[str, Any]) -> Facts | None:
    """Return how a checkpoint was selected (:mod:`fcnlab.runs.selection`); None where it is not recorded."""
    selection = checkpoint["fcnlab"].get("selection")
    if selection is None:
        return None
    stopped = (checkpoint.get("resume") or selection).get("stopped_early")  # of a weights file, in the selection
    return {**selection, "stopped_early": bool(stopped)}


def rebuild_model(
    checkpoint: dict[str, Any], source: str, trust: Sequence[str], folders: Sequence[Path] = ()
) -> Network:
    """Build the model of a checkpoint and load its weights.

    ``trust`` are packages, and ``folders`` config folders, that the user has typed.

    Raises
    ------
    UserError
        The config names a component that is neither fcnlab's nor in a trusted package, and that no config file of a
        plugin or of ``folders`` names (:mod:`fcnlab.config.trust`); or it does not build a model; or
        config, classes and weights do not match.
    """
    model = checkpoint["fcnlab"]["model"]
    check_components(model, model_components(folders), trust, source)
    model = without_fetching(without_weights(model))
    try:
        validate_config(OmegaConf.create({"model": model}))
    except ConfigError as error:  # the user did not set this value
        raise UserError(f"the model of {source} cannot be built: {error}") from error
    state = {
        key.removeprefix("net."): value for key, value in checkpoint["state_dict"].items() if key.startswith("net.")
    }
    if not trusted_packages(model):  # the code of other packages may need real tensors
        with without_memory():  # compare the sizes that the file claims
            check_fit(_built(model, source), state, source)
    net = _built(model, source)
    classes = checkpoint["fcnlab"]["classes"]
    if net.num_classes != len(classes):
        raise UserError(f"{source} names {len(classes)} classes, but its model predicts {net.num_classes}.")
    load_strictly(net, state, source)
    return net


@contextmanager
def without_memory() -> Iterator[None]:
    """Build networks on the device meta, except for lists of numbers that they read, as smp's MiT encoders do."""
    with torch.device("meta"), _ListsOnCpu():
        yield


class _ListsOnCpu(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.linspace:
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


class TrainedNet(NamedTuple):
    """The network of a checkpoint, and the checkpoint without its tensors."""

    file: CheckpointFile
    net: Network
    checkpoint: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def classes(self) -> list[str]:
        return self.checkpoint["fcnlab"]["classes"]


def read_nets(
    checkpoint: str | Path | Sequence[str | Path], trust: Sequence[str], folders: Sequence[Path] = ()
) -> list[TrainedNet]:
    """Return the networks of one or more checkpoints, which have the same classes.

    ``trust`` and ``folders`` are those of :func:`rebuild_model`.

    Raises
    ------
    UserError
        As :func:`read_checkpoint` and :func:`rebuild_model`; or the classes differ.
    """
    nets: list[TrainedNet] = []
    for file in checkpoint_files(checkpoint):
        path = file.path
        content = read_checkpoint(path)
        net = rebuild_model(content, f"checkpoint={path}", trust, folders)
        kept = {key: content[key] for key in ("fcnlab", "resume", "global_step") if key in content}
        nets.append(TrainedNet(file, net, kept))
        if nets[-1].classes != nets[0].classes:
            raise UserError(
                f"checkpoint={path} has {len(nets[-1].classes)} classes ({', '.join(nets[-1].classes[:4])}, …), but"
                f" {nets[0].path} has {len(nets[0].classes)} ({', '.join(nets[0].classes[:4])}, …): the networks of an"
                " ensemble must have the same classes in the same order"
            )
    return nets


def checkpoint_files(checkpoint: str | Path | Sequence[str | Path]) -> list[CheckpointFile]:
    """Return the files of ``checkpoint=PATH`` or ``checkpoint=[PATH,PATH]``; ``wandb:`` addresses are downloaded.

    Raises
    ------
    UserError
        The list is empty, or contains a file twice, which would count twice in the average; or as
        :func:`~fcnlab.tracking.downloads.checkpoint_file`.
    """
    files = [checkpoint_file(path) for path in ([checkpoint] if isinstance(checkpoint, str | Path) else checkpoint)]
    paths = [file.path for file in files]
    twice = [path for place, path in enumerate(paths) if path.resolve() in [each.resolve() for each in paths[:place]]]
    if twice:
        raise UserError(f"checkpoint= lists {twice[0]} twice, so it would count twice in the average: list it once")
    if not paths:
        raise UserError("checkpoint=[] lists no file: set checkpoint=PATH, or checkpoint=[PATH,PATH] for an ensemble")
    return files


def _built(model: dict[str, Any], source: str) -> Network:
    try:
        net = instantiate(model, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"the model of {source} cannot be built: {error}") from error
    if not isinstance(net, Network):
        raise UserError(f"the model of {source} is a {type(net).__name__}, which is no network of fcnlab.")
    return net
