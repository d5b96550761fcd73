"""The config tree: where it lies, its root, and the check of every value before anything is built.

Nothing here imports torch until a config's targets are looked up.
"""

import difflib
import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from fcnlab.errors import UserError, first_line


def shipped(name: str) -> Path:
    """A folder that comes with the package: inside it in a wheel, else beside its sources in the checkout."""
    package = Path(__file__).resolve().parent
    return next(path for path in (package / name, package.parents[1] / name) if path.is_dir())


CONF = shipped("conf")
DIRECTIVES = {  # Hydra's own keys, and what they may be
    "_target_": str,
    "_partial_": bool,
    "_recursive_": bool,
    "_convert_": Literal["none", "partial", "object", "all"],
    "_args_": list,
}


class ConfigError(UserError):
    """Settings that do not fit what they configure."""


@dataclass
class CheckpointingConfig:
    """How often a training saves itself."""

    every_n_minutes: float = 10.0
    keep_top: int = 0


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
    channels_last: Any = MISSING
    row_blocks: bool = MISSING
    fused_optimizer: bool = MISSING
    compile: bool = MISSING


@dataclass
class TrainConfig:
    """The root of ``fcnlab train``."""

    model: Any = MISSING
    data: Any = MISSING
    augment: Any = MISSING
    optim: Any = MISSING
    schedule: Any = MISSING
    loss: Any = MISSING
    trainer: Any = MISSING
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    logger: Any = MISSING
    callbacks: Any = MISSING
    checkpointing: CheckpointingConfig = field(default_factory=CheckpointingConfig)
    stages: list[str] = field(default_factory=list)  # experiments, each of which starts from the one before
    needs: dict[str, str] = field(default_factory=dict)  # settings that an experiment cannot give, and what they are
    published: dict[str, float] | None = None  # scores of the paper, in percent, which fcnlab compare shows beside ours
    seed: int = 1
    checkpoint: str | None = None
    from_run: str | None = None
    sweep: SweepConfig = field(default_factory=SweepConfig)


@dataclass
class EvalConfig:
    """The root of ``fcnlab eval``."""

    checkpoint: str | None = None
    model: Any = None
    data: Any = None
    augment: Any = MISSING
    trainer: Any = MISSING
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    refine: Any = MISSING
    logger: Any = MISSING
    pictures: int = 8
    passport: bool = False
    published: dict[str, float] | None = None
    needs: dict[str, str] = field(default_factory=dict)
    seed: int = 1
    trust: list[str] = field(default_factory=list)
    sweep: SweepConfig = field(default_factory=SweepConfig)


@dataclass
class PredictConfig:
    """The root of ``fcnlab predict``."""

    checkpoint: str = MISSING
    input: str | None = None
    output: str | None = None
    data: Any = None
    augment: Any = MISSING
    submission: str | None = None
    competition: str = "comp6"
    trainer: Any = MISSING
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    refine: Any = MISSING
    num_workers: Any = "auto"
    seed: int = 1
    trust: list[str] = field(default_factory=list)


@dataclass
class DoctorConfig:
    """The root of ``fcnlab doctor``."""

    data: Any = MISSING
    augment: Any = MISSING
    samples: int = 12
    alike_bits: int = 4
    seed: int = 1


@dataclass
class CompareConfig:
    """The root of ``fcnlab compare``."""

    runs: list[str] = MISSING
    baseline: str | None = None
    resamples: int | None = None
    confidence: float = 0.95


@dataclass
class BenchConfig:
    """The root of ``fcnlab bench``."""

    claims: list[str] | None = None
    threads: int | None = None
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
    """Let ``hydra/launcher=basic`` be ours, which refuses what Hydra's does wrong; in this process alone.

    ``slots`` is a file of conf/, but one named as a config of Hydra's own would be merged with that. What its official
    plugins have stored under the names of ours is dropped, where they are installed, too.
    """
    Plugins.instance()  # which makes Hydra's known, and must not do so behind ours
    node = {"_target_": "hydra_plugins.fcnlab_slots.InProcessLauncher"}
    store = ConfigStore.instance()
    store.store(group="hydra/launcher", name="basic", node=node, provider="fcnlab")
    for group, name in (("launcher", "submitit_slurm"), ("sweeper", "optuna")):
        store.repo["hydra"][group].pop(f"{name}.yaml", None)


def plain(node: Any) -> dict[str, Any]:
    """A config node as plain values, its interpolations resolved: what objects and checkpoints may hold."""
    values = OmegaConf.to_container(node, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def check_targets(cfg: DictConfig, supplied: Mapping[str, set[str]] | None = None) -> None:
    """Bind every component's settings to its signature, and report all that does not fit at once.

    ``supplied`` names, by path, the arguments that code adds when it builds the component.

    Raises
    ------
    ConfigError
        A value that must be given is not; a target cannot be imported; a key is no argument of its target, with the
        nearest that is; a required argument is missing; a value is not what fcnlab's own annotation says.
    """
    problems = [
        f"{path} is not set: give it as {path}=VALUE"
        for path in sorted(_missing(OmegaConf.to_container(cfg, resolve=False)))
    ]
    if not problems:
        for path, node in components(_resolved(cfg)):
            problems += _misfits(path, node, (supplied or {}).get(path, set()))
    if problems:
        raise ConfigError("the configuration cannot work:\n" + "\n".join(f"  {problem}" for problem in problems))


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
        raise ConfigError(f"{error.full_key} cannot be computed: {what}") from error


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


def _misfits(path: str, node: dict[str, Any], supplied: set[str]) -> list[str]:
    try:
        target = locate(node["_target_"])
    except (ImportError, AttributeError, ValueError) as error:
        return [f"{path}._target_={node['_target_']} cannot be imported: {error}"]
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # some builtins have none: Hydra will tell
        return []
    names = {name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD}
    anything = len(names) < len(parameters)
    ours = {"enabled"} if path.startswith("callbacks.") else set()  # read by tasks, not by the callback
    given = {key: value for key, value in node.items() if key not in DIRECTIVES.keys() | ours}
    problems = [
        _wrong_value(path, key, node[key], wanted)
        for key, wanted in DIRECTIVES.items()
        if key in node and not _fits(node[key], wanted)
    ]
    problems += [_unknown(path, key, names, node) for key in given if key not in names and not anything]
    if not node.get("_partial_"):
        problems += [
            f"{path}.{name} is not set, and {_name(target)} needs it"
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            and name not in given
            and name not in supplied
        ]
    if (target.__module__ or "").startswith("fcnlab."):  # other packages' annotations are not always meant
        problems += [
            _wrong_value(path, key, value, parameters[key].annotation)
            for key, value in given.items()
            if key in names and not _fits(value, parameters[key].annotation)
        ]
    return problems


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


def _unknown(path: str, key: str, names: set[str], node: Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(str(key), names, n=1)
    hint = f"did you mean {path}.{near[0]}?" if near else f"there are {', '.join(sorted(names - {'self'}))}"
    return f"{path}.{key} is no setting of {node['_target_']}: {hint}"


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a plain value is what an annotation says; what is itself a component is checked by itself."""
    from beartype import BeartypeConf
    from beartype.door import is_bearable

    if annotation is inspect.Parameter.empty or _holds_component(value):
        return True
    return is_bearable(value, annotation, conf=BeartypeConf(is_pep484_tower=True))


def _holds_component(value: Any) -> bool:
    return next(components(value), None) is not None


def _wrong_value(path: str, key: str, value: Any, annotation: Any) -> str:
    wanted = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
    wanted = wanted or str(annotation).replace("typing.", "").replace("collections.abc.", "")
    return f"{path}.{key}={value!r} is no {wanted}"
