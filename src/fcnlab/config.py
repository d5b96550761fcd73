"""The config tree: where it lies, its root, and the check of every value before anything is built.

Nothing here imports torch until a config's targets are looked up.
"""

import difflib
import importlib
import inspect
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from fcnlab.errors import UserError, first_line
from fcnlab.foreign import FOREIGN
from fcnlab.ranges import (
    AlikeBits,
    Confidence,
    Count,
    Drawn,
    Meaning,
    NonNegative,
    Percent,
    Resamples,
    Samples,
    Seed,
    Whole,
    fits,
    words_of,
)
from fcnlab.results.settings import Settings, leaves


def shipped(name: str) -> Path:
    """A folder that comes with the package: inside it in a wheel, else beside its sources in the checkout."""
    package = Path(__file__).resolve().parent
    return next(path for path in (package / name, package.parents[1] / name) if path.is_dir())


CONF = shipped("conf")
NOT_FOUND = object()  # by a path: it has a key with a dot in it
RESOLVER = re.compile(r"\$\{\s*[\w.]+\s*:")  # in a value: ${oc.env:HOME}, and not ${data.root}
DIRECTIVES = {  # Hydra's own keys, and what they may be
    "_target_": str,
    "_partial_": bool,
    "_recursive_": bool,
    "_convert_": Literal["none", "partial", "object", "all"],
    "_args_": list,
}


# The first arguments of these components, and some of W&B's, come from fcnlab, which takes them from these settings.
GIVEN_FIRST = {
    "augment": ("data.crop_size",),
    "data.augment": ("data.crop_size",),
    "data.pictures": ("data.root", "data.train_list, data.val_list or data.test_list"),
    "optim": ("model",),
    "schedule": ("trainer.max_steps or trainer.max_epochs",),
}
GIVEN_BY_NAME = {
    "logger.wandb": {
        "folder": "hydra.run.dir",
        "config": "the settings themselves",
        "job_type": "the verb",
        "run_id": "checkpoint=last with hydra.run.dir=FOLDER, which goes on with its W&B run",
    }
}


class ConfigError(UserError):
    """Settings that do not fit what they configure."""


class NotSetHere(ConfigError):
    """A variable of the environment is asked for that this machine does not have."""


def _is_component(value: Any) -> bool:
    return isinstance(value, dict) and "_target_" in value


# OmegaConf checks the types of the roots below, and knows no ranges: check_targets does.
Component = Annotated[Any, Meaning("an option of its group, which names a _target_", _is_component)]
Components = Annotated[
    Any,
    Meaning(
        "its members by name, each with a _target_, or null for none",
        lambda value: isinstance(value, dict) and all(one is None or _is_component(one) for one in value.values()),
    ),
]
Choice = Annotated[Any, Meaning("true, false or auto", lambda value: isinstance(value, bool) or value == "auto")]
Scored = Annotated[str, Meaning("best (by val mIoU) or last (the final weights)", lambda v: v in ("best", "last"))]
Workers = Annotated[Any, Meaning("a whole number of at least 0, or auto", lambda v: v == "auto" or fits(v, Whole))]


@dataclass
class CheckpointingConfig:
    """How often a training saves itself, and which of its checkpoints is scored at its end: "best" or "last"."""

    every_n_minutes: NonNegative = 10.0
    keep_top: Whole = 0
    score: Scored = "best"


@dataclass
class SweepConfig:
    """What makes a run a job of a sweep; launchers set ``folder`` and ``name``.

    ``resume`` is the folder of a sweep to go on with. ``folder`` holds one ``wandb/`` for all jobs, and ``name`` says
    what differs from the others. ``recorded``: its data are named by a record (``from_run``, ``sweep.resume``) and not
    by the user, so that they are only read.
    """

    resume: str | None = None
    folder: str | None = None
    name: str = ""
    recorded: bool = False


@dataclass
class SpeedConfig:
    """Ways to compute the same in less time; ``channels_last`` may be "auto"."""

    bf16: bool = MISSING
    tf32: bool = MISSING
    channels_last: Choice = MISSING
    row_blocks: bool = MISSING
    fused_optimizer: bool = MISSING
    compile: bool = MISSING


@dataclass
class TrainConfig:
    """The root of ``fcnlab train``."""

    model: Component = MISSING
    data: Component = MISSING
    augment: Component = MISSING
    optim: Component = MISSING
    schedule: Component = MISSING
    loss: Component = MISSING
    trainer: Component = MISSING
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    logger: Components = MISSING
    callbacks: Components = MISSING
    checkpointing: CheckpointingConfig = field(default_factory=CheckpointingConfig)
    stages: list[str] = field(default_factory=list)  # experiments, each of which starts from the one before
    needs: dict[str, str] = field(default_factory=dict)  # settings that an experiment cannot give, and what they are
    published: dict[str, Percent] | None = None  # scores of the paper, which fcnlab compare shows beside ours
    seed: Seed = 1
    checkpoint: str | None = None
    from_run: str | None = None
    sweep: SweepConfig = field(default_factory=SweepConfig)


@dataclass
class EvalConfig:
    """The root of ``fcnlab eval``."""

    checkpoint: str | None = None
    model: Component | None = None
    data: Component | None = None
    augment: Component = MISSING
    trainer: Component = MISSING
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    inference: Component = MISSING
    postprocess: Component = MISSING
    logger: Components = MISSING
    pictures: Drawn = 8
    passport: bool = False
    published: dict[str, Percent] | None = None
    needs: dict[str, str] = field(default_factory=dict)
    seed: Seed = 1
    trust: list[str] = field(default_factory=list)
    sweep: SweepConfig = field(default_factory=SweepConfig)


@dataclass
class PredictConfig:
    """The root of ``fcnlab predict``."""

    checkpoint: str = MISSING
    input: str | None = None
    output: str | None = None
    data: Component | None = None
    augment: Component = MISSING
    submission: str | None = None
    overwrite: bool = False
    competition: str = "comp6"
    trainer: Component = MISSING
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    inference: Component = MISSING
    postprocess: Component = MISSING
    num_workers: Workers = "auto"
    seed: Seed = 1
    trust: list[str] = field(default_factory=list)


@dataclass
class DoctorConfig:
    """The root of ``fcnlab doctor``."""

    data: Component = MISSING
    augment: Component = MISSING
    samples: Samples = 12
    alike_bits: AlikeBits = 4
    seed: Seed = 1


@dataclass
class CompareConfig:
    """The root of ``fcnlab compare``."""

    runs: list[str] = MISSING
    baseline: str | None = None
    resamples: Resamples | None = None
    confidence: Confidence = 0.95
    split_by: list[str] = field(default_factory=list)
    merge_over: list[str] = field(default_factory=list)


@dataclass
class BenchConfig:
    """The root of ``fcnlab bench``."""

    claims: list[str] | None = None
    threads: Count | None = None
    device: str = "auto"


def register_schemas() -> None:
    """Make known to Hydra the roots, by the names that the primary configs use, and what files of conf/ compute by."""
    store = ConfigStore.instance()
    roots = {
        "train": TrainConfig,
        "eval": EvalConfig,
        "predict": PredictConfig,
        "doctor": DoctorConfig,
        "compare": CompareConfig,
        "bench": BenchConfig,
    }
    for name, schema in roots.items():
        store.store(name=f"{name}_schema", node=schema)
    OmegaConf.register_new_resolver("count_classes", _count_classes, replace=True)


def _count_classes(classes: Any, root: str) -> int:
    """``${count_classes:...}`` in a data set's file: how many classes it lists, or the file has that it names."""
    from fcnlab.data.folder import count_classes

    return count_classes(classes, root)


def register_launchers() -> None:
    """Let ``hydra/launcher=basic`` and ``hydra/sweeper=basic`` be ours, which do not what Hydra's do wrong; in this
    process alone.

    ``slots`` is a file of conf/, but one named as a config of Hydra's own would be merged with that. What its official
    plugins have stored under the names of ours is dropped, where they are installed, too.
    """
    Plugins.instance()  # which makes Hydra's known, and must not do so behind ours
    launcher = {"_target_": "hydra_plugins.fcnlab_slots.InProcessLauncher"}
    sweeper = {"_target_": "hydra_plugins.fcnlab_search.GridSweeper", "max_batch_size": None, "params": None}
    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="basic", node=launcher, provider="fcnlab")
    store.store(group="hydra/sweeper", name="basic", node=sweeper, provider="fcnlab")
    for group, name in (("launcher", "submitit_slurm"), ("sweeper", "optuna")):
        store.repo["hydra"][group].pop(f"{name}.yaml", None)


def plain(node: Any) -> dict[str, Any]:
    """A config node as plain values, its interpolations resolved: what objects and checkpoints may hold."""
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def looked_up(cfg: DictConfig) -> Settings:
    """What resolvers find for a config's settings (in the environment, say), here and now, by dotted path.

    Settings that cannot be computed here are left out.
    """
    found: Settings = {}
    for path, text in leaves(OmegaConf.to_container(cfg, resolve=False)).items():
        if RESOLVER.search(str(text)):
            with suppress(OmegaConfBaseException):
                value = OmegaConf.select(cfg, path, default=NOT_FOUND)
                value = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
                found |= {} if value is NOT_FOUND else leaves(value, path)
    return found


def check_targets(cfg: DictConfig) -> None:
    """Bind every component's settings to its signature, check every value, and report all that does not fit at once.

    Raises
    ------
    ConfigError
        A value that must be given is not; a key that nothing reads, with the nearest that is read; a number that is
        not finite; a target cannot be imported; a required argument is missing; a value is not what fcnlab's own
        annotation says, of components, of roots, or of others' classes (:mod:`fcnlab.foreign`).
    """
    raw = OmegaConf.to_container(cfg, resolve=False)
    problems = [f"{path} is not set: give it as {path}=VALUE" for path in sorted(_missing(raw))]
    if not problems:
        values = _resolved(cfg)
        problems += [f"{path}={number}: give a finite number" for path, number in _without_end(values)]
        root = OmegaConf.get_type(cfg)
        if is_dataclass(root):
            problems += _root_misfits(values, root, list(strings(raw)))
        for path, node in components(values):
            problems += _misfits(path, node)
    if problems:
        raise ConfigError("the configuration cannot work:\n" + "\n".join(f"  {problem}" for problem in problems))


def _without_end(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """Numbers that are nan or infinite, with their paths: no setting means them."""
    if isinstance(value, (dict, list, tuple)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in pairs:
            yield from _without_end(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, value


def _root_misfits(values: Mapping[str, Any], root: type, texts: Sequence[str], path: str = "") -> list[str]:
    """What a root of the config, or a part of it that has a schema, lacks the meaning for.

    ``+key=value`` adds any key to a root. One that an interpolation in ``texts`` reads has a use.
    """
    hints, problems = get_type_hints(root, include_extras=True), []
    for key, value in values.items():
        if key not in hints:
            if path or not any(re.search(rf"\$\{{.*\b{re.escape(key)}\b", text) for text in texts):
                problems.append(unknown_key(path, key, set(hints), "that anything reads"))
        elif is_dataclass(hints[key]) and isinstance(value, dict):
            problems += _root_misfits(value, hints[key], texts, f"{path}{key}.")
        elif not fits(value, hints[key]):
            problems.append(_wrong_value(f"{path}{key}", value, hints[key]))
    return problems


def _missing(value: Any, path: str = "") -> Iterator[str]:
    """The paths of "???". (OmegaConf's own search resolves interpolations, and fails at one that leads to a "???".)"""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from _missing(child, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for place, child in enumerate(value):
            yield from _missing(child, f"{path}[{place}]")
    elif value == MISSING:
        yield path


def _resolved(cfg: DictConfig) -> dict[str, Any]:
    try:
        return plain(cfg)
    except InterpolationResolutionError as error:  # of a key that is not there, or of count_classes
        what = first_line(error).rpartition("while resolving interpolation: ")[2]
        kind = NotSetHere if what.startswith("Environment variable ") else ConfigError
        raise kind(f"{error.full_key} cannot be computed: {what}") from error


def check_needs(cfg: DictConfig, words: Sequence[str]) -> None:
    """Refuse an experiment without the settings that it cannot give by itself, such as the path of a file.

    (A value of ``???`` would do nothing there: composing never replaces a value by it.)

    Raises
    ------
    ConfigError
        Some of ``cfg.needs`` is not among the words that were typed.
    """
    typed = {word.partition("=")[0].lstrip("+") for word in words}
    missing = [f"  {key}=VALUE: {what}" for key, what in cfg.needs.items() if key not in typed]
    if missing:
        raise ConfigError("the experiment needs to be given\n" + "\n".join(missing))


def components(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node that names a target, with its path; the deeper ones first."""
    if isinstance(value, dict):
        for key, child in value.items():
            yield from components(child, f"{path}.{key}" if path else str(key))
        if "_target_" in value:
            yield path, value
    elif isinstance(value, (list, tuple)):  # Hydra builds what is in a tuple, too
        for place, child in enumerate(value):
            yield from components(child, f"{path}[{place}]")


def _misfits(path: str, node: dict[str, Any]) -> list[str]:
    try:
        target = locate(node["_target_"])
    except (ImportError, AttributeError, ValueError) as error:
        return [f"{path}._target_={node['_target_']} cannot be imported: {error}"]
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # some builtins have none: Hydra will tell
        return []
    switch = {"enabled": bool} if path.startswith("callbacks.") else {}  # read by tasks, not by the callback
    given = {key: value for key, value in node.items() if key not in DIRECTIVES.keys() | switch}
    annotations = {**DIRECTIVES, **switch, **_annotations(target, parameters)}
    names = {name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}
    anything = len(names) < len(parameters)
    unknown = [key for key in given if key not in names and not anything]
    ours = _given_by_fcnlab(path, parameters) if node.get("_partial_") else {}
    return [
        *(f"{path}.{key} is given by fcnlab: leave it out, and set {ours[key]}" for key in given if key in ours),
        *(
            _wrong_value(f"{path}.{key}", value, annotations[key])
            for key, value in node.items()
            if key in annotations.keys() - ours and not _holds_component(value) and not fits(value, annotations[key])
        ),
        *(unknown_key(f"{path}.", key, names, f"of {node['_target_']}") for key in unknown),
        *(f"{path}.{name} is not set, and {_name(target)} needs it" for name in _lacking(node, parameters)),
        *(f"{path}.{conflict}" for conflict in _conflicts(target, given)),
    ]


def _given_by_fcnlab(path: str, parameters: Mapping[str, inspect.Parameter]) -> dict[str, str]:
    """The arguments of a component that no config can give, and which settings they come from."""
    return dict(zip(parameters, GIVEN_FIRST.get(path, ()), strict=False)) | GIVEN_BY_NAME.get(path, {})


def _annotations(target: Callable, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """fcnlab's own annotations, of its classes and functions, and of others'; theirs are not always meant, but switches
    are: a text there, such as "no", would count as true."""
    if (target.__module__ or "").startswith("fcnlab."):
        return {name: parameter.annotation for name, parameter in parameters.items()}
    foreign = FOREIGN.get(_name(target))
    ours = get_type_hints(foreign.settings, include_extras=True) if foreign else {}
    return {name: hint for name, hint in _hints(target, parameters).items() if _is_switch(hint)} | ours


def _hints(target: Callable, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """What each argument should be; a truth value where nothing but a default says so."""
    try:
        hints = get_type_hints(target.__init__ if isinstance(target, type) else target)
    except (NameError, TypeError, AttributeError):  # names that only a type checker imports
        hints = {}
    return {name: hints.get(name, type(parameter.default)) for name, parameter in parameters.items()}


def _is_switch(hint: Any) -> bool:
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return bool in kinds and all(
        kind in (bool, type(None)) or get_origin(kind) in (Literal, Union, types.UnionType) for kind in kinds
    )


def _conflicts(target: Callable, given: Mapping[str, Any]) -> list[str]:
    foreign = FOREIGN.get(_name(target))
    return list(foreign.conflicts(given)) if foreign else []


def _lacking(node: Mapping[str, Any], parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """The arguments that a component needs and is not given; of a part of one, code may give them."""
    if node.get("_partial_"):
        return []
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = (one.name for one in parameters.values() if one.default is one.empty and one.kind in kinds)
    return [name for name in needed if name not in node]


def locate(name: Any) -> Callable:
    """The class or function of a dotted name.

    Raises
    ------
    ImportError, AttributeError, ValueError
        There is none.
    """
    module, _, attribute = name.rpartition(".") if isinstance(name, str) else ("", "", "")
    if not module or module.startswith("."):
        raise ValueError(f"{name!r} is no dotted name")
    target = getattr(importlib.import_module(module), attribute)
    if not callable(target):
        raise ValueError(f"it is a {type(target).__name__}, no class or function")
    return target


def _name(target: Callable) -> str:
    return f"{target.__module__}.{getattr(target, '__qualname__', target)}"


def unknown_key(path: str, key: str, names: set[str], whose: str) -> str:
    near = difflib.get_close_matches(str(key), names, n=1)
    hint = f"did you mean {path}{near[0]}?" if near else f"there are {', '.join(sorted(names - {'self'}))}"
    return f"{path}{key} is no setting {whose}: {hint}"


def strings(value: Any) -> Iterator[str]:
    """Every text in a tree, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from strings(key)
            yield from strings(child)
    elif isinstance(value, (list, tuple)):
        for child in value:
            yield from strings(child)


def _holds_component(value: Any) -> bool:
    return next(components(value), None) is not None


def _wrong_value(path: str, value: Any, annotation: Any) -> str:
    if words := words_of(annotation):
        return f"{path}={value!r}: give {words}"
    wanted = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
    wanted = wanted or str(annotation).replace("typing.", "").replace("collections.abc.", "")
    return f"{path}={value!r} is no {wanted}"
