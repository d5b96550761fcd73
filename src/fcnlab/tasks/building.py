"""From the config to a Trainer, its loggers and its callbacks."""

import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from fcnlab.callbacks import (
    EarlyEnd,
    EndWithValidation,
    ExactResume,
    Interruption,
    MetricsFile,
    Selection,
    StopOnNaN,
    TimeLeft,
    TopCheckpoints,
    WholeFiles,
)
from fcnlab.callbacks.wandb import in_nobodys_way
from fcnlab.config import plain
from fcnlab.cores import visible_cores
from fcnlab.data import DataModule
from fcnlab.errors import UserError, first_line
from fcnlab.inference import InferenceMethod, Postprocess
from fcnlab.launching import as_typed, typed
from fcnlab.launching.places import ALL
from fcnlab.models import FCN
from fcnlab.results.record import ID
from fcnlab.signals import Interrupted, StopSignals
from fcnlab.trust import DATA

log = logging.getLogger("fcnlab")
OF_A_LAUNCHER = ("NODE_RANK", "GROUP_RANK", "JSM_NAMESPACE_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")  # which machine
REFUSALS = (ValueError, TypeError, MisconfigurationException, ImportError, OSError)  # of settings, packages and places
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
BY_DEVICE, FASTEST = "auto", "fastest"  # what else trainer.precision may be: one of those is decided for it
TAGGED = ("model", "backbone", "data", "experiment")  # groups whose options are W&B's tags


def run_folder() -> Path:
    """Where this run leaves its files."""
    return Path(HydraConfig.get().runtime.output_dir)


@rank_zero_only
def say(message: str) -> None:
    """Tell the user, once whatever the number of processes."""
    log.info(message)


@rank_zero_only
def warn(message: str) -> None:
    """Warn the user, once whatever the number of processes."""
    log.warning("Warning: %s", message)


def given(key: str) -> bool:
    """Whether a setting was typed."""
    return any(word.lstrip("+").startswith(f"{key}=") for word in as_typed(HydraConfig.get().overrides.task))


def open_data(node: DictConfig, named_by_record: bool) -> DataModule:
    """The data of a config; what only a record names is only read, and keeps its cache in this run's folder."""
    if not named_by_record or node._target_ not in DATA[""]:
        return instantiate(node, _convert_="all")
    return instantiate(node, _convert_="all", read_only=True, cache_dir=str(run_folder() / "cache"))


def choices() -> dict[str, str]:
    """Which option of each group was chosen."""
    return {group: str(option) for group, option in HydraConfig.get().runtime.choices.items()}


def options() -> dict[str, str]:
    """The options of fcnlab's own groups by the group's last word: what runs are told apart by."""
    chosen = {group.rpartition("/")[2]: option for group, option in choices().items() if not group.startswith("hydra/")}
    return {group: option for group, option in chosen.items() if option != "None"}


def build_trainer(cfg: DictConfig, loggers: list[Logger] | bool, callbacks: list[Callback]) -> L.Trainer:
    """Lightning's Trainer; what fcnlab promises of a run is set here, everything else is the config's.

    ``val_check_interval`` counts optimiser steps; Lightning counts batches.
    """
    settings = plain(cfg.trainer)
    settings["precision"] = precision(cfg)
    allow_tf32(cfg.speed.tf32)
    if settings["sync_batchnorm"] and not on_gpu(settings["accelerator"]):
        settings["sync_batchnorm"] = False
        warn("trainer.sync_batchnorm=true has no effect on a CPU: torch synchronises batch statistics on GPUs only")
    settings["val_check_interval"] *= settings["accumulate_grad_batches"]
    settings["check_val_every_n_epoch"] = None
    if not shows_progress(cfg):
        settings.setdefault("enable_progress_bar", False)  # or Lightning brings its own
    _hush_lightning()
    return built(
        settings,
        "trainer",
        logger=loggers,
        callbacks=callbacks,
        plugins=[WholeFiles(), *cluster()],
        use_distributed_sampler=False,  # Lightning's would evaluate some pictures twice
        default_root_dir=str(run_folder()),
    )


def device_of(cfg: DictConfig) -> torch.device:
    """The device that a run on one device computes on, by Lightning's own choice."""
    _hush_lightning()
    trainer = L.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=cfg.trainer.devices,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return trainer.strategy.root_device


def built(settings: dict[str, Any], path: str, **further: Any) -> Any:
    """What a config describes; what its class refuses is the user's mistake, in the class's own words."""
    try:
        return instantiate(settings, **further, _convert_="all")
    except InstantiationException as error:
        refused = error.__cause__
        if isinstance(refused, REFUSALS):
            raise UserError(f"{path}: {first_line(refused)}") from error
        raise


def check_machine(cfg: DictConfig) -> None:
    """Whether this machine, and who started this process, fit ``trainer=``: before any work. Threads fit the cores.

    Raises
    ------
    UserError
        Half precision without a GPU; another number of processes than the settings want.
    """
    keep_to_cores()
    if cfg.trainer.precision == "16-mixed" and not on_gpu(cfg.trainer.accelerator):
        raise UserError(
            "trainer.precision=16-mixed needs a GPU, and this is a CPU: set trainer.precision=bf16-mixed or 32-true"
        )
    _check_fastest(cfg)
    _check_srun("SLURM_PROCID")
    started, nodes = _processes_started(), cfg.trainer.get("num_nodes", 1)
    if started is None:
        if nodes != 1 and not any(name in os.environ for name in OF_A_LAUNCHER):
            raise UserError(
                f"trainer.num_nodes={nodes} needs a process on each machine, and nothing says which one this is: it"
                f" would wait for the others for ever. Start it on each by torchrun --nnodes={nodes}"
                f" --nproc-per-node={_device_count(cfg.trainer)} --rdzv-backend=c10d --rdzv-endpoint=HOST:PORT"
                f" -m fcnlab train ... hydra.run.dir=FOLDER, or by srun --nodes={nodes}"
                f" --ntasks-per-node={_device_count(cfg.trainer)}; on one machine leave trainer.num_nodes out"
            )
        return
    who, count = started
    devices = _device_count(cfg.trainer)
    if count != devices * nodes:
        per_node = _number_in("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else count
        alone = "srun --ntasks=1" if who == "Slurm" else "no torchrun: fcnlab starts the others itself"
        raise UserError(
            f"{who} started {count} processes, and trainer.devices={cfg.trainer.devices} with trainer.num_nodes={nodes}"
            f" is for {devices * nodes}: each would run alone, or wait for others. Set trainer.devices={per_node}"
            f" trainer.num_nodes={max(1, count // per_node)}, or start it by {alone}"
        )
    _check_srun("SLURM_STEP_ID")  # a batch script has all others
    if count > 1 and who == "Slurm" and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError(
            f"Slurm started {count} processes by --ntasks={count}, and Lightning needs to know how many are on each"
            f" machine: start it by srun --nodes={nodes} --ntasks-per-node={devices}"
        )
    if count > 1 and not any(word.startswith("hydra.run.dir=") for word in as_typed(HydraConfig.get().overrides.hydra)):
        raise UserError(
            f"{who} started {count} processes, and each would have a folder of its own: add hydra.run.dir=FOLDER"
        )


def _check_fastest(cfg: DictConfig) -> None:
    """Refuse ``trainer.precision=fastest`` where no step is timed, or where each process would decide by its own.

    Raises
    ------
    UserError
        See above.
    """
    trainer = cfg.trainer
    if trainer.precision != FASTEST:
        return
    verb = HydraConfig.get().job.config_name
    if verb != "train":
        raise UserError(
            f"trainer.precision={FASTEST} times the steps of a training, and fcnlab {verb} has none: set"
            " trainer.precision=32-true, bf16-mixed, or auto"
        )
    if _device_count(trainer) * trainer.get("num_nodes", 1) > 1:
        raise UserError(
            f"trainer.precision={FASTEST} is for one device, and trainer.devices={trainer.devices} are several, which"
            " might decide differently: set trainer.precision=32-true, bf16-mixed, or auto"
        )


def _check_srun(variable: str) -> None:
    """Refuse several tasks of Slurm's that no srun has started: ``variable`` is one that it sets in each.

    Raises
    ------
    UserError
        See above: the run would end in an error of Lightning's, or wait for the others for ever.
    """
    if _is_slurms() and _number_in("SLURM_NTASKS") > 1 and variable not in os.environ:
        raise UserError(
            f"SLURM_NTASKS={os.environ['SLURM_NTASKS']} is in the environment, and no srun has started this process"
            f" (there is no {variable}): start it by srun --ntasks-per-node=N fcnlab train ..., or without the words of"
            " Slurm's job: env -u SLURM_NTASKS fcnlab train ..."
        )


def keep_to_cores() -> None:
    """Start no more threads than there are cores: torch knows of no quota. ``OMP_NUM_THREADS`` goes before."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > visible_cores():
        torch.set_num_threads(visible_cores())


def _processes_started() -> tuple[str, int] | None:
    """Who started how many processes of this run; None where it is alone, or starts the others itself."""
    if _is_slurms():
        return "Slurm", _number_in("SLURM_NTASKS")
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ:  # torchrun's; Lightning sets no RANK
        return "torchrun", _number_in("WORLD_SIZE")
    return None


def _number_in(variable: str) -> int:
    """How many processes a launcher says in the environment that there are."""
    value = os.environ[variable]
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise UserError(f"{variable}={value} in the environment is no number of processes: unset it")
    return int(value)


def _device_count(trainer: DictConfig) -> int:
    """How many devices ``trainer.devices`` means on each node."""
    devices = trainer.devices
    if devices in ALL:
        return torch.cuda.device_count() if on_gpu(trainer.accelerator) else 1
    if isinstance(devices, str):
        return len(devices.split(",")) if "," in devices else int(devices)
    return devices if isinstance(devices, int) else len(devices)


def cluster() -> list[SLURMEnvironment]:
    """As a task of Slurm's: its ranks, without Lightning's own way to be queued again; launching/slurm.py has ours."""
    return [SLURMEnvironment(auto_requeue=False)] if _is_slurms() else []


def _is_slurms() -> bool:
    named = os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")  # Lightning's rule: a user at a terminal
    return "SLURM_NTASKS" in os.environ and named


def shows_progress(cfg: DictConfig) -> bool:
    """Bars are for terminals: in the log of a job they would bury what was said."""
    enabled = "callbacks" not in cfg or (cfg.callbacks.get("progress") or {}).get("enabled", True)
    return enabled and sys.stdout.isatty()


def members(node: DictConfig) -> dict[str, DictConfig]:
    """The callbacks or loggers of a config by name; one that is null is none."""
    return {str(name): member for name, member in node.items() if member is not None}


# What Lightning warns of without a reason here.
NOISE = (
    r".*treespec, LeafSpec.*is deprecated",  # its own use of torch
    r".*smaller than the logging interval",  # steps are counted through epochs
    r".*Checkpoint directory .* exists and is not empty",  # on resuming that is how it should be
    r".*does not have many workers",  # data.num_workers is the user's choice
    r".*It is recommended to use `self.log.*sync_dist=True",  # scores are made from what all ranks counted
    r".*module\(s\) in eval mode at the start of training",  # norms of a backbone that rests
    r".*your dataloader is not resumable",  # it is: DataModule finds its place again
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",  # what changes is said before
    r"The checkpoint was not created with WeightAveraging",
    r"The dirpath has changed from",  # where_to_start says what that means
    r"`broadcast_buffers` is deprecated",  # its successor is not in all versions of torch that are taken
    r"The `srun` command is available on your system but is not used",  # one process is what was asked for
)


def _hush_lightning() -> None:
    """Keep its warnings, once (its own handlers repeat Hydra's), but for those without a reason."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # a report that was asked for
    for message in NOISE:
        warnings.filterwarnings("ignore", message)


def allow_tf32(allowed: bool) -> None:
    """Let a GPU round the factors of single-precision products to 10 bits; torch lets convolutions do so by default."""
    torch.set_float32_matmul_precision("high" if allowed else "highest")
    torch.backends.cudnn.allow_tf32 = allowed


def build_inference(cfg: DictConfig) -> tuple[InferenceMethod, Postprocess]:
    """How scores are computed, and what works on their probabilities.

    Raises
    ------
    UserError
        A class is of the wrong kind; a package that the post-processing step needs is missing.
    """
    inference, postprocess = (instantiate(cfg[group], _convert_="all") for group in ("inference", "postprocess"))
    for group, component, base in (
        ("inference", inference, InferenceMethod),
        ("postprocess", postprocess, Postprocess),
    ):
        if not isinstance(component, base):
            raise UserError(
                f"{group}._target_={cfg[group]._target_} is not a subclass of fcnlab.inference.{base.__name__}: give"
                f" {group}=NAME, or derive your class from it"
            )
    postprocess.check_installed()
    return inference, postprocess


def evaluation_speed(cfg: DictConfig, net: FCN) -> dict[str, Any]:
    """What of ``speed=`` the Segmenter takes to evaluate: as in training, so that equal weights give equal scores."""
    return speed_of_net(cfg, net)


def speed_of_net(cfg: DictConfig, net: FCN) -> dict[str, Any]:
    """The memory format, by device and backbone, and whether scores are taken by rows."""
    wanted = cfg.speed.channels_last
    if wanted == "auto":  # a user's own backbone need not say
        wanted = on_gpu(cfg.trainer.accelerator) or getattr(net.backbone, "channels_last_on_cpu", False)
    return {"channels_last": wanted, "row_blocks": cfg.speed.row_blocks}


def training_speed(cfg: DictConfig, net: FCN) -> dict[str, Any]:
    """What of ``speed=`` the Segmenter takes to train.

    Raises
    ------
    UserError
        Nothing is there to compile with.
    """
    if cfg.speed.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))):
        raise UserError("speed.compile=true needs a C++ compiler, and finds none: install g++, or leave it out")
    return speed_of_net(cfg, net) | {"compiled": cfg.speed.compile}


def precision(cfg: DictConfig) -> str:
    """``auto`` is bf16 on a GPU that computes in it, where ``speed.bf16`` lets it, and else single precision.

    ``fastest`` is a clock's, and nobody's before: see :mod:`fcnlab.tasks.precision`.
    """
    if cfg.trainer.precision != BY_DEVICE:
        return cfg.trainer.precision
    gpu = cfg.speed.bf16 and on_gpu(cfg.trainer.accelerator)
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def on_gpu(accelerator: str) -> bool:
    """Whether a run computes on a GPU."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def training_callbacks(cfg: DictConfig, curves: MetricsFile, signals: StopSignals) -> list[Callback]:
    """The configured callbacks, between those that every training has; the order matters.

    What sets ``should_stop`` (EndWithValidation, early stopping) comes before what records it, and restored random
    states before an interruption that saves them. Lightning puts those that save behind all others.
    """
    return [
        EndWithValidation(),
        TimeLeft(),
        StopOnNaN(cfg.trainer.log_every_n_steps),
        *configured_callbacks(cfg),
        EarlyEnd(),
        ExactResume(curves, cfg.data.batch_size),
        Selection(curves),
        Interruption(signals),
    ]


def check_scored(cfg: DictConfig) -> None:
    """Refuse to score a checkpoint that the run will not keep.

    Raises
    ------
    UserError
        ``checkpointing.score`` is "best", and no callback keeps a best checkpoint.
    """
    if cfg.checkpointing.score == "best" and not any(map(_keeps_best, members(cfg.callbacks).values())):
        raise UserError(
            "checkpointing.score=best: without callbacks.best the run keeps no best checkpoint to score; add"
            " checkpointing.score=last, or leave out what switches it off (callbacks.best.enabled=false,"
            " callbacks=none)"
        )


def _keeps_best(node: DictConfig) -> bool:
    """Whether a configured callback keeps the checkpoint that was best by something."""
    kind = get_object(node["_target_"])
    if not (node.get("enabled", True) and isinstance(kind, type) and issubclass(kind, ModelCheckpoint)):
        return False
    return node.keep > 0 if kind is TopCheckpoints else node.get("monitor") is not None


def check_places(cfg: DictConfig) -> None:
    """Refuse callbacks that write beside the run, whose lock and record are its folder's alone.

    Raises
    ------
    UserError
        A callback's ``dirpath`` or ``folder``, or a ``filename`` in it, is not below the run's folder.
    """
    whole = run_folder().resolve()
    for name, node in members(cfg.callbacks).items():
        for key in ("dirpath", "folder"):
            place = node.get(key)
            if not place or not node.get("enabled", True):
                continue
            for part, path in ((key, Path(place)), ("filename", Path(place, node.get("filename") or ""))):
                if not path.resolve().is_relative_to(whole):
                    raise UserError(
                        f"callbacks.{name}.{part}={node[part]} is not below the run's folder, {whole}: it could replace"
                        " another run's files. Leave it out, and name the run's folder by hydra.run.dir=FOLDER"
                    )


def configured_callbacks(cfg: DictConfig) -> list[Callback]:
    """The callbacks that are not disabled by ``enabled: false``."""
    callbacks = []
    for name, node in members(cfg.callbacks).items():
        settings = plain(node)
        if settings.pop("enabled", True) and (name != "progress" or shows_progress(cfg)):
            callbacks.append(built(settings, f"callbacks.{name}"))
    return callbacks


@contextmanager
def open_loggers(cfg: DictConfig, facts: Mapping[str, Any] | None = None) -> Iterator[list[Logger]]:
    """The configured loggers; W&B's run ends with the status and the exit code that the process will have.

    ``facts`` are those of the run's record: ``wandb`` is the id of the W&B run to resume, ``segments`` goes into its
    config.
    """
    loggers = _opened(cfg)
    if "wandb" in members(cfg.logger):  # last: what another one refuses leaves no run there
        loggers.append(_open_wandb(cfg, facts or {}))
    status, code = "failed", 1
    try:
        yield loggers
        status, code = "finished", 0
    except Interrupted as stop:
        status, code = "interrupted", 128 + stop.signal
        raise
    finally:
        for logger in loggers:
            if isinstance(logger, WandbLogger):
                _finish(logger, status, code)


@rank_zero_only
def _finish(logger: WandbLogger, status: str, code: int) -> None:
    with in_nobodys_way("facts"):
        logger.experiment.summary["status"] = status
        logger.experiment.finish(exit_code=code)


def wandb_id(loggers: list[Logger]) -> str | None:
    """The id of this run in W&B, if it has one."""
    return next((logger.experiment.id for logger in loggers if isinstance(logger, WandbLogger)), None)


def _opened(cfg: DictConfig) -> list[Logger]:
    """The loggers but W&B's, each of which has begun: what it refuses at its first call is the user's mistake, too.

    Raises
    ------
    UserError
        A logger refuses its settings, or would write where a run or another logger does.
    """
    loggers: dict[str, Logger] = {
        name: built(cfg.logger[name], f"logger.{name}") for name in members(cfg.logger) if name != "wandb"
    }
    places: dict[tuple[type, Path], str] = {}
    for name, logger in loggers.items():  # all of them before the first makes its files
        if place := _asked_of(name, logger, "log_dir"):
            _check_place(name, logger, Path(place).resolve(), places)
    for name, logger in loggers.items():
        _asked_of(name, logger, "experiment")  # with which Lightning's loggers make their files
    return list(loggers.values())


def _asked_of(name: str, logger: Logger, what: str) -> Any:
    """A property of a logger; None where it has none. What it refuses is the user's mistake."""
    try:
        return getattr(logger, what, None)
    except REFUSALS as error:
        raise UserError(f"logger.{name}: {first_line(error)}") from error


def _check_place(name: str, logger: Logger, place: Path, places: dict[tuple[type, Path], str]) -> None:
    """Refuse a logger that would replace a run's curves or mix its files with another's; ``places`` are taken."""
    if isinstance(logger, CSVLogger) and (place == run_folder().resolve() or (place / "run.json").exists()):
        raise UserError(
            f"logger.{name} writes into {place}, a run's own folder, and would replace its metrics.csv: name a folder"
            f" of its own by logger.{name}.save_dir, logger.{name}.name or logger.{name}.version"
        )
    other = places.setdefault((type(logger), place), name)
    if other != name:
        raise UserError(
            f"logger.{name} writes into {place}, as logger.{other} does, and they would mix their files: set another"
            f" logger.{name}.name, or leave one of them out"
        )
    if not place.is_relative_to(run_folder().resolve()) and place.is_dir() and any(place.iterdir()):
        warn(
            f"logger.{name} writes into {place}, outside of the run's folder, where files are already: curves of"
            f" several runs may be shown as one. Set another logger.{name}.version, or leave logger.{name}.save_dir out"
        )


def _open_wandb(cfg: DictConfig, facts: Mapping[str, Any]) -> WandbLogger:
    settings, sweep = cfg.logger.wandb, Path(cfg.sweep.folder).resolve() if cfg.sweep.folder else None
    run_id, other = facts.get("wandb"), os.environ.get("WANDB_RUN_ID")
    if not run_id and other is not None and not ID.fullmatch(other):
        raise UserError(
            f"WANDB_RUN_ID={other} in the environment is no id that a record can hold: give 1 to 100 letters, digits, -"
            " and _, or unset it"
        )
    if run_id and other not in (None, run_id):
        warn(f"WANDB_RUN_ID={other} in the environment: no effect, since this run's record has the W&B run {run_id}")
    logger = instantiate(settings, _convert_="all")(
        folder=sweep or run_folder(),  # one wandb/ for a whole sweep
        config=plain(cfg) | {"options": options()} | {key: facts[key] for key in ("segments",) if key in facts},
        name=settings.name or cfg.sweep.name or os.environ.get("WANDB_NAME") or _run_name(cfg),
        group=settings.group
        or os.environ.get("WANDB_RUN_GROUP")
        or (f"{sweep.parent.name}/{sweep.name}" if sweep else None),
        project=settings.project
        if given("logger.wandb.project")
        else os.environ.get("WANDB_PROJECT", settings.project),
        job_type=HydraConfig.get().job.config_name,
        tags=list(dict.fromkeys([*settings.tags, *(options().get(group) for group in TAGGED if group in options())])),
        run_id=run_id,
    )
    _say_where(logger)
    return logger


@rank_zero_only
def _say_where(logger: WandbLogger) -> None:
    if logger.experiment.offline:
        say(f"W&B: this run is offline; later: {typed(['wandb', 'sync', str(Path(logger.experiment.dir).parent)])}")


def _run_name(cfg: DictConfig) -> str:
    chosen = choices()
    parts = [chosen.get(group) for group in ("model", "model/backbone", "data")]
    return "-".join([part for part in parts if part] + [f"s{cfg.seed}"])
