"""The device that a run computes on, and whether this machine has it."""

import logging
import os
import warnings

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from omegaconf import DictConfig

from fcnlab.config.overrides import plain_overrides
from fcnlab.cores import visible_cores
from fcnlab.errors import UserError
from fcnlab.sweeps.resources import ALL_DEVICES

OF_A_LAUNCHER = ("NODE_RANK", "GROUP_RANK", "JSM_NAMESPACE_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")  # which machine
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
BY_DEVICE, FASTEST = "auto", "fastest"  # what else trainer.precision may be: one of those is decided for it


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


def check_machine(cfg: DictConfig) -> None:
    """Whether this machine, and who started this process, fit ``trainer=``: before any work. Threads fit the cores.

    Raises
    ------
    UserError
        Half precision without a GPU; another number of processes than the settings want.
    """
    keep_to_cores()
    if cfg.trainer.precision == "16-mixed" and not uses_gpu(cfg.trainer.accelerator):
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
    if count > 1 and not any(
        word.startswith("hydra.run.dir=") for word in plain_overrides(HydraConfig.get().overrides.hydra)
    ):
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
    if devices in ALL_DEVICES:
        return torch.cuda.device_count() if uses_gpu(trainer.accelerator) else 1
    if isinstance(devices, str):
        return len(devices.split(",")) if "," in devices else int(devices)
    return devices if isinstance(devices, int) else len(devices)


def cluster() -> list[SLURMEnvironment]:
    """As a task of Slurm's: its ranks, without Lightning's own way to be queued again; sweeps/slurm.py has ours."""
    return [SLURMEnvironment(auto_requeue=False)] if _is_slurms() else []


def _is_slurms() -> bool:
    named = os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")  # Lightning's rule: a user at a terminal
    return "SLURM_NTASKS" in os.environ and named


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


def precision(cfg: DictConfig) -> str:
    """``auto`` is bf16 on a GPU that computes in it, where ``speed.bf16`` lets it, and else single precision.

    ``fastest`` is a clock's, and nobody's before: see :mod:`fcnlab.training.precision`.
    """
    if cfg.trainer.precision != BY_DEVICE:
        return cfg.trainer.precision
    gpu = cfg.speed.bf16 and uses_gpu(cfg.trainer.accelerator)
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def uses_gpu(accelerator: str) -> bool:
    """Whether a run computes on a GPU."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
