"""Choose the device and precision of a run, and check that the machine and the launcher fit them."""

import logging
import os
import warnings

import lightning as L
import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from omegaconf import DictConfig

from fcnlab.config.run_context import RunContext
from fcnlab.cores import visible_cores
from fcnlab.errors import UserError
from fcnlab.sweeps.resources import ALL_DEVICES

# Environment variables in which launchers name the node.
LAUNCHER_RANKS = ("NODE_RANK", "GROUP_RANK", "JSM_NAMESPACE_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")
BY_DEVICE, FASTEST = "auto", "fastest"  # values of trainer.precision that are replaced by one of these


def device_of(cfg: DictConfig) -> torch.device:
    """Return the device that Lightning chooses for a run on one device."""
    hush_lightning()
    trainer = L.Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=cfg.trainer.devices,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    return trainer.strategy.root_device


def check_machine(cfg: DictConfig, context: RunContext) -> None:
    """Check that this machine and the process launcher fit ``trainer=``, and limit the threads to the cores.

    Raises
    ------
    UserError
        Half precision without a GPU, or a number of processes that does not match the settings.
    """
    limit_threads_to_cores()
    if cfg.trainer.precision == "16-mixed" and not uses_gpu(cfg.trainer.accelerator):
        raise UserError(
            "trainer.precision=16-mixed needs a GPU, but this run uses a CPU: set trainer.precision=bf16-mixed or"
            " 32-true"
        )
    _check_fastest(cfg, context.verb)
    _check_srun("SLURM_PROCID")
    started, nodes = _processes_started(), cfg.trainer.get("num_nodes", 1)
    if started is None:
        if nodes != 1 and not any(name in os.environ for name in LAUNCHER_RANKS):
            raise UserError(
                f"trainer.num_nodes={nodes} needs a launcher that starts a process on each machine; without it, this"
                f" process would wait for the others forever. Start it on each machine with torchrun --nnodes={nodes}"
                f" --nproc-per-node={device_count(cfg.trainer)} --rdzv-backend=c10d --rdzv-endpoint=HOST:PORT"
                f" -m fcnlab train ... hydra.run.dir=FOLDER, or with srun --nodes={nodes}"
                f" --ntasks-per-node={device_count(cfg.trainer)}. On one machine, leave trainer.num_nodes out"
            )
        return
    launcher, count = started
    devices = device_count(cfg.trainer)
    if count != devices * nodes:
        per_node = _number_in("LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in os.environ else count
        alternative = "with srun --ntasks=1" if launcher == "Slurm" else "without torchrun: fcnlab starts all processes"
        raise UserError(
            f"{launcher} started {count} processes, but trainer.devices={cfg.trainer.devices} with"
            f" trainer.num_nodes={nodes} needs {devices * nodes}. Set trainer.devices={per_node}"
            f" trainer.num_nodes={max(1, count // per_node)}, or start the run {alternative}"
        )
    _check_srun("SLURM_STEP_ID")  # a batch script has all other variables
    if count > 1 and launcher == "Slurm" and "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise UserError(
            f"Slurm started {count} processes with --ntasks={count}, but Lightning needs the number of processes per"
            f" machine: start the run with srun --nodes={nodes} --ntasks-per-node={devices}"
        )
    if count > 1 and not any(word.startswith("hydra.run.dir=") for word in context.hydra_overrides):
        raise UserError(
            f"{launcher} started {count} processes, and each would create its own run folder: add hydra.run.dir=FOLDER"
        )


def _check_fastest(cfg: DictConfig, verb: str) -> None:
    """Refuse ``trainer.precision=fastest`` in other commands than train and on several devices.

    Raises
    ------
    UserError
        See above.
    """
    trainer = cfg.trainer
    if trainer.precision != FASTEST:
        return
    if verb != "train":
        raise UserError(
            f"trainer.precision={FASTEST} times training steps, and fcnlab {verb} does not train: set"
            " trainer.precision=32-true, bf16-mixed, or auto"
        )
    if device_count(trainer) * trainer.get("num_nodes", 1) > 1:
        raise UserError(
            f"trainer.precision={FASTEST} needs a single device, but trainer.devices={trainer.devices} means several,"
            " which might choose differently: set trainer.precision=32-true, bf16-mixed, or auto"
        )


def _check_srun(variable: str) -> None:
    """Refuse several Slurm tasks that were not started with srun: ``variable`` is one that srun sets in each task.

    Raises
    ------
    UserError
        See above. The run would end in an error of Lightning's, or wait for the other tasks forever.
    """
    if _is_slurms() and _number_in("SLURM_NTASKS") > 1 and variable not in os.environ:
        raise UserError(
            f"SLURM_NTASKS={os.environ['SLURM_NTASKS']} is set in the environment, but srun did not start this process"
            f" ({variable} is not set): start it with srun --ntasks-per-node=N fcnlab train ..., or without Slurm's"
            " variable: env -u SLURM_NTASKS fcnlab train ..."
        )


def limit_threads_to_cores() -> None:
    """Limit torch's threads to the available cores, since torch ignores CPU quotas; ``OMP_NUM_THREADS`` wins."""
    if "OMP_NUM_THREADS" not in os.environ and torch.get_num_threads() > visible_cores():
        torch.set_num_threads(visible_cores())


def _processes_started() -> tuple[str, int] | None:
    """Return the launcher and its number of processes; None for a single process or one that starts the others."""
    if _is_slurms():
        return "Slurm", _number_in("SLURM_NTASKS")
    if "WORLD_SIZE" in os.environ and "RANK" in os.environ:  # torchrun's; Lightning sets no RANK
        return "torchrun", _number_in("WORLD_SIZE")
    return None


def _number_in(variable: str) -> int:
    """Return the number of processes that a launcher has set in the environment."""
    value = os.environ[variable]
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise UserError(f"{variable}={value} in the environment is not a valid number of processes: unset it")
    return int(value)


def device_count(trainer: DictConfig) -> int:
    """Return the number of devices that ``trainer.devices`` means on each node."""
    devices = trainer.devices
    if devices in ALL_DEVICES:
        return torch.cuda.device_count() if uses_gpu(trainer.accelerator) else 1
    if isinstance(devices, str):
        return len(devices.split(",")) if "," in devices else int(devices)
    return devices if isinstance(devices, int) else len(devices)


def cluster() -> list[SLURMEnvironment]:
    """Return Slurm's ranks, without Lightning's automatic requeue: sweeps/slurm.py requeues jobs."""
    return [SLURMEnvironment(auto_requeue=False)] if _is_slurms() else []


def _is_slurms() -> bool:
    named = os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")  # Lightning's rule: a user at a terminal
    return "SLURM_NTASKS" in os.environ and named


# Warnings of Lightning's that do not apply to fcnlab.
IRRELEVANT_WARNINGS = (
    r".*treespec, LeafSpec.*is deprecated",  # its own use of torch
    r".*smaller than the logging interval",  # steps are counted across epochs
    r".*Checkpoint directory .* exists and is not empty",  # as it must be on resume
    r".*does not have many workers",  # data.num_workers is the user's choice
    r".*It is recommended to use `self.log.*sync_dist=True",  # scores are computed from the counts of all ranks
    r".*module\(s\) in eval mode at the start of training",  # normalisation layers of a frozen backbone
    r".*your dataloader is not resumable",  # it is: DataModule resumes at the right batch
    r"Be aware that when using `ckpt_path`, callbacks used to create the checkpoint",  # changes are reported before
    r"The checkpoint was not created with WeightAveraging",
    r"The dirpath has changed from",  # find_resume_point reports what that means
    r"`broadcast_buffers` is deprecated",  # its successor is missing in older supported versions of torch
    r"The `srun` command is available on your system but is not used",  # a single process is intended
)


def hush_lightning() -> None:
    """Show Lightning's warnings once (its handlers duplicate Hydra's), without the irrelevant ones."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # the user enabled the profiler
    for message in IRRELEVANT_WARNINGS:
        warnings.filterwarnings("ignore", message)


def precision(cfg: DictConfig) -> str:
    """Return the precision: ``auto`` means bf16 on a GPU that supports it if ``speed.bf16`` is set, else 32-true.

    ``fastest`` is returned as it is, since it is decided by timing: see :mod:`fcnlab.training.precision`.
    """
    if cfg.trainer.precision != BY_DEVICE:
        return cfg.trainer.precision
    gpu = cfg.speed.bf16 and uses_gpu(cfg.trainer.accelerator)
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"


def uses_gpu(accelerator: str) -> bool:
    """Return whether a run computes on a GPU."""
    return accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
