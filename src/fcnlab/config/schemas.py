"""Root schemas of all commands: which settings exist."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from omegaconf import MISSING

from fcnlab.config.components import is_component
from fcnlab.config.ranges import (
    MOST_PIXELS,
    AlikeBits,
    Confidence,
    Count,
    Drawn,
    Meaning,
    Names,
    NonNegative,
    Percent,
    Points,
    Port,
    Resamples,
    Samples,
    Seed,
    Whole,
    is_valid,
)
from fcnlab.verbs import ACTIONS

# OmegaConf checks the types of the roots below but no ranges; validate_config checks those.
Component = Annotated[Any, Meaning("an option of its config group, with a _target_", is_component)]
Components = Annotated[
    Any,
    Meaning(
        "its members by name, each with a _target_, or null for none",
        lambda value: (
            isinstance(value, dict) and all(member is None or is_component(member) for member in value.values())
        ),
    ),
]
Choice = Annotated[Any, Meaning("true, false or auto", lambda value: isinstance(value, bool) or value == "auto")]
Scored = Annotated[str, Meaning("best (by val mIoU) or last (the final weights)", lambda v: v in ("best", "last"))]
Checkpoints = Annotated[
    Any,
    Meaning(
        "the path of a checkpoint, or a list of paths for an ensemble",
        lambda value: (
            isinstance(value, str | None)
            or (isinstance(value, list) and bool(value) and all(isinstance(path, str) for path in value))
        ),
    ),
]
ExportedCheckpoint = Annotated[
    str, Meaning("the path of one checkpoint of fcnlab train: ensembles are not exported", lambda value: True)
]
DescribedCheckpoint = Annotated[
    str, Meaning("the path of one checkpoint of fcnlab train: a card describes one network", lambda value: True)
]
Kept = Annotated[
    str,
    Meaning("auto (all, or the worst and a random 50), all or none", lambda v: v in ("auto", "all", "none")),
]
Workers = Annotated[Any, Meaning("a whole number of at least 0, or auto", lambda v: v == "auto" or is_valid(v, Whole))]
GroupNames = Annotated[
    Any,
    Meaning(
        'names of groups such as {fcn8s: "FCN-8s"}, or a YAML file with them',
        lambda value: isinstance(value, str) or is_group_names(value),
    ),
]


Action = Annotated[
    str,
    Meaning(f"one of {', '.join(ACTIONS['wandb'])}, the word after fcnlab wandb", lambda v: v in ACTIONS["wandb"]),
]
Mode = Annotated[str, Meaning("auto, online or offline", lambda v: v in ("auto", "online", "offline"))]
FigureWidth = Annotated[str, Meaning("column (3.25 inches) or text (6.875 inches)", lambda v: v in ("column", "text"))]
FewImages = Annotated[int, Meaning("1 to 20", lambda value: 1 <= value <= 20)]


ExportFormat = Annotated[
    str,
    Meaning("onnx, torch_export or safetensors", lambda value: value in ("onnx", "torch_export", "safetensors")),
]
ImageSize = Annotated[
    str,
    Meaning(
        f"ROWSxCOLS such as 375x500, each from 1 to {MOST_PIXELS}",
        lambda value: (
            re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", value, re.ASCII) is not None
            and max(map(int, value.split("x"))) <= MOST_PIXELS
        ),
    ),
]


def is_group_names(value: object) -> bool:
    """Return whether a value maps settings or values of groups to names."""
    return isinstance(value, dict) and all(isinstance(name, str) and name.strip() for name in value.values())


@dataclass
class CheckpointingConfig:
    """How often a run saves checkpoints, and which of them is evaluated at its end: "best" or "last"."""

    every_n_minutes: NonNegative = 10.0
    keep_top: Whole = 0
    score: Scored = "best"


@dataclass
class EvaluationConfig:
    """What an evaluation keeps besides its scores: the predictions in ``predictions.zip``."""

    keep_predictions: Kept = "auto"


@dataclass
class SweepConfig:
    """Settings of a job in a sweep; launchers set ``folder`` and ``name``.

    ``resume`` is the folder of a sweep to resume, ``extend`` of one to train with more seeds, ``confirm`` of one whose
    ``best`` settings a new sweep trains. With these, fcnlab sets ``added_seeds`` and ``combinations``: the new seeds,
    and the overrides of each of the best settings. ``folder`` holds one ``wandb/`` for all jobs, and ``name`` lists the
    settings that differ between jobs. ``recorded`` means that a record (``from_run``, ``sweep.resume``) names the data,
    and not the user, so that they are opened read-only.
    """

    resume: str | None = None  # the folder of a sweep to resume, with -m
    extend: str | None = None  # the folder of a sweep to train with the new seeds of seed=4,5, with -m
    confirm: str | None = None  # the folder of a sweep or search whose best settings are trained again, with -m
    best: Count = 3  # with confirm: number of settings
    folder: str | None = None  # set by launchers: the folder of the sweep
    name: str = ""  # set by launchers: the settings that differ between jobs
    added_seeds: str | None = None  # set by fcnlab with extend: the typed seeds
    combinations: list[list[str]] = field(default_factory=list)  # set by fcnlab with confirm: overrides of each setting
    recorded: bool = False  # set by fcnlab where from_run or sweep.resume names the data


@dataclass
class SpeedConfig:
    """Faster ways to compute the same result; ``channels_last`` may be "auto"."""

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
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    stages: list[str] = field(default_factory=list)  # experiments, each starting from the weights of the one before
    # Settings that an experiment requires from the user, with descriptions.
    needs: dict[str, str] = field(default_factory=dict)
    published: dict[str, Percent] | None = None  # the paper's scores, which fcnlab compare shows next to the run's
    seed: Seed = 1
    checkpoint: str | None = None
    from_run: str | None = None
    sweep: SweepConfig = field(default_factory=SweepConfig)


@dataclass
class EvalConfig:
    """The root of ``fcnlab eval``."""

    checkpoint: Checkpoints = None
    model: Component | None = None
    data: Component | None = None
    augment: Component = MISSING
    trainer: Component = MISSING
    speed: SpeedConfig = field(default_factory=SpeedConfig)
    inference: Component = MISSING
    postprocess: Component = MISSING
    logger: Components = MISSING
    num_images: Drawn = 8
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    conventions: bool = False
    published: dict[str, Percent] | None = None
    needs: dict[str, str] = field(default_factory=dict)
    seed: Seed = 1
    trust: list[str] = field(default_factory=list)
    sweep: SweepConfig = field(default_factory=SweepConfig)


@dataclass
class PredictConfig:
    """The root of ``fcnlab predict``."""

    checkpoint: Checkpoints = MISSING
    input: str | None = None  # images to segment: a file, a folder or a glob
    output: str | None = None  # the folder for labels/ and overlays/
    data: Component | None = None
    augment: Component = MISSING
    submission: str | None = None  # the .tar.gz file to write for VOC's server, in place of output
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

    runs: list[str] = MISSING  # folders that contain runs, also in subfolders
    baseline: str | None = None
    resamples: Resamples | None = None
    confidence: Confidence = 0.95
    equivalence: Points | None = None
    plan: bool = False
    split_by: list[str] = field(default_factory=list)
    merge_over: list[str] = field(default_factory=list)
    names: GroupNames | None = None
    export: str | None = None  # a folder for tables and figures
    worst: Whole = 0


@dataclass
class WatchConfig:
    """The root of ``fcnlab watch``."""

    runs: list[str] = field(default_factory=lambda: ["outputs"])  # folders that contain runs, also in subfolders
    terminal: bool = False
    port: Port = 0
    open: bool = False


@dataclass
class FigureConfig:
    """The root of ``fcnlab figure``."""

    runs: list[str] = MISSING  # folders that contain runs, in the order of the columns
    images: Names = field(default_factory=list)  # of images
    num_images: FewImages = 4
    names: GroupNames | None = None
    width: FigureWidth = "text"
    output: str | None = None
    overwrite: bool = False


@dataclass
class ExportConfig:
    """The root of ``fcnlab export``."""

    checkpoint: ExportedCheckpoint = MISSING
    format: ExportFormat = MISSING
    output: str | None = None
    static: ImageSize | None = None
    scores: bool = False
    license: str | None = None
    overwrite: bool = False
    trust: list[str] = field(default_factory=list)


@dataclass
class CardConfig:
    """The root of ``fcnlab card``."""

    checkpoint: DescribedCheckpoint = MISSING
    evaluations: Names = field(default_factory=list)  # folders of fcnlab eval with scores of this checkpoint
    name: str | None = None
    license: str | None = None
    datasets: Names = field(default_factory=list)
    resamples: Resamples = 10_000
    confidence: Confidence = 0.95
    output: str | None = None
    overwrite: bool = False
    trust: list[str] = field(default_factory=list)


@dataclass
class BenchConfig:
    """The root of ``fcnlab bench``."""

    benchmarks: list[str] | None = None
    threads: Count | None = None
    device: str = "auto"


@dataclass
class WandbConfig:
    """The root of ``fcnlab wandb``; ``title`` and the settings after it are those of workspace and report."""

    action: Action = MISSING  # the word after fcnlab wandb
    runs: list[str] = MISSING  # folders that contain runs, also in subfolders
    project: str = "fcnlab"
    entity: str | None = None
    mode: Mode = "auto"
    overwrite: bool = False
    title: str | None = None
    baseline: str | None = None
    resamples: Resamples | None = None
    confidence: Confidence = 0.95
    equivalence: Points | None = None
    split_by: list[str] = field(default_factory=list)
    merge_over: list[str] = field(default_factory=list)
    names: GroupNames | None = None


@dataclass
class NewConfig:
    """The root of ``fcnlab new``."""

    folder: str = MISSING  # the word after fcnlab new
