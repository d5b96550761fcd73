"""Invalid settings are refused before any work, and before a W&B run is opened."""

from pathlib import Path

import pytest
import torch

from fcnlab.config.run_context import RunContext
from fcnlab.training import hardware

CONTEXT = RunContext("train", Path("outputs"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trainer.precision=fp16"], "trainer.precision must be auto, 32-true"),
        (["trainer.precision=bf16-true"], "32-true, bf16-mixed"),
        (["trainer.precision=16-true"], "32-true, bf16-mixed"),
        (["trainer.precision=64-true"], "32-true, bf16-mixed"),
        (["trainer.precision=16-mixed"], "trainer.precision=16-mixed needs a GPU"),
        (["trainer.devices=gpu"], "trainer.devices must be "),
        (["trainer.devices=[0,1]"], "trainer: `devices` selected with `CPUAccelerator` should be an int > 0"),
        (["trainer.max_steps=0"], "trainer.max_steps must be "),
        (["trainer.max_steps=-1"], "trainer.max_steps=-1 sets no limit, and the schedule needs one"),
        (
            ["+trainer.overfit_batches=2"],
            "trainer.overfit_batches must be 0, got 2: each epoch would draw other images",
        ),
        (["+trainer.max_time=x", "trainer.max_steps=2"], "trainer: `Timer(duration='x')` is not a valid duration"),
        (["optim.lr=-1"], "optim.lr must be a number of at least 0, got -1."),
        (["optim=sgd", "optim.nesterov=true", "optim.momentum=0"], "Nesterov momentum requires a momentum"),
        (["data.crop_size=0"], "data.crop_size must be a number of pixels from 1"),
        (["seed=-1"], "seed must be a whole number from 0 to 2^32 - 1, got -1."),
        (["seed=4294967296"], "seed must be a whole number from 0 to 2^32 - 1, got 4294967296."),
        (["model.num_classes=5"], "model.num_classes=5, but the data have 21 classes"),
        (["+loss.class_weights=[1,2]"], "loss.class_weights has 2 values for 21 classes"),
        ([f"+loss.class_weights={[0.0] * 21}"], "not all 0"),
        ([f"+loss.class_weights={[-1.0] * 21}"], "of at least 0"),
        ([f"+loss.class_weights=[nan,{','.join('1' * 20)}]"], "loss.class_weights.0 must be a finite number, got nan."),
        (["data.batch_size=1", "data.crop_size=32"], "images of 32x32 pixels (data.crop_size=32): a norm"),
        (
            ["data.batch_size=1", "data.dataset.size=32", "augment=none"],
            "pixels (augment=none, ",
        ),
        (["loss=centre", "loss.cell=65"], "loss.cell=65 is larger than the crop of 64x64"),
        (
            ["checkpointing.score=bset"],
            "checkpointing.score must be best (by val mIoU) or last (the final weights), got 'bset'.",
        ),
        (["callbacks.best.enabled=false"], "the run keeps no best checkpoint to score. Add checkpointing.score=last"),
        (["callbacks.best.monitor=val/miuo"], "Did you mean 'val/miou'?"),
        (["callbacks.ema.enabled=no"], "callbacks.ema.enabled must be true or false, got 'no'."),
        (["+modle=fcn8s"], "Unknown key modle. Did you mean model?"),
        (["++modle=fcn8s"], "Did you mean model?"),
        (["+checkpointing.keep_tpo=3"], "Did you mean checkpointing.keep_top?"),
        (["speed.channels_last=often"], "speed.channels_last must be true, false or auto, got 'often'."),
        (["+callbacks.mine.x=1"], "each with a _target_"),
        (["++trainer.limit_test_batches=0.001"], "trainer.limit_test_batches=0.001 leaves none of"),
        (["++trainer.limit_val_batches=0.001"], "trainer.limit_val_batches=0.001 leaves none of"),
        (["++trainer.limit_train_batches=0.001"], "leaves 0 of"),
        (
            ["data.batch_size=1", "trainer.accumulate_grad_batches=2", "++trainer.limit_train_batches=3"],
            "a multiple of",
        ),
        (
            ["trainer.accumulate_grad_batches=1000000"],
            "accumulated 1000000 times, is larger than the 24 training images",
        ),
        (["callbacks=none"], "the run keeps no best checkpoint to score. Add checkpointing.score=last"),
        (["callbacks.best=null"], "the run keeps no best checkpoint to score. Add checkpointing.score=last"),
        (["loss=null"], "loss=null: null is not an option. Choose from: centre, cross_entropy"),
        (["model/backbone=null"], "model/backbone=null: null is not an option. Choose from: alexnet"),
        (["data.dataset.size=1"], "data.dataset.size must be pixels from 2"),
        (["+augment.crop_size=32"], "augment.crop_size is set by fcnlab. Remove it, and set data.crop_size"),
        (["+optim.net=3"], "optim.net is set by fcnlab"),
        (["+schedule.total_steps=9"], "schedule.total_steps is set by fcnlab. Remove it, and set trainer.max_st"),
        (["+data.dataset.split=val"], "data.dataset.split is set by fcnlab. Remove it, and set data.train_list"),
        (["+logger.wandb.folder=x"], "logger.wandb.folder is set by fcnlab. Remove it, and set hydra.run.dir"),
        (["+trainer.min_steps=30"], "trainer.min_steps=30 is more than max_steps=20"),
        (["+callbacks.best.every_n_train_steps=3"], "best.every_n_train_steps=3 would keep weights under the score"),
        (["+callbacks.best.every_n_train_steps=0"], "best.every_n_train_steps=0 would keep weights under the score"),
        (
            ["+callbacks.best.train_time_interval={_target_: datetime.timedelta, seconds: 1}"],
            "best.train_time_interval=",
        ),
        (["+callbacks.best.save_on_train_epoch_end=true"], "best.save_on_train_epoch_end=True would keep weights"),
        (["+callbacks.best.every_n_epochs=2"], "best.every_n_epochs=2 would skip validations"),
        (
            ["+callbacks.best.save_top_k=3"],
            "callbacks.best.save_top_k=3 with filename=best would give all checkpoints one name",
        ),
        (["+callbacks.best.save_last=true"], "callbacks.best.save_last must be false, got True: callbacks.last keeps"),
        (["+callbacks.best.save_weights_only=true"], "the EMA weights would be lost"),
        (
            ["callbacks.early_stopping.enabled=true", "+callbacks.early_stopping.check_on_train_epoch_end=true"],
            "patience counts validations",
        ),
        (["trainer.num_nodes=2"], "trainer.num_nodes=2 needs a launcher that starts a process on each machine"),
        (["trainer.num_nodes=2"], "--nnodes=2 --nproc-per-node=1"),
    ],
    ids=lambda value: value[-1][:50] if isinstance(value, list) else "",
)
def test_invalid_settings_are_refused_before_a_wandb_run(train_code, capsys, tmp_path, words, message):
    assert train_code("logger=wandb", "logger.wandb.mode=offline", *words) == 1
    output = capsys.readouterr().err
    assert message in output and "Traceback" not in output
    assert not (tmp_path / "run" / "wandb").exists()


@pytest.mark.parametrize(
    "verb",
    [
        ["eval", "checkpoint=x"],
        ["predict", "checkpoint=x"],
        ["doctor"],
        ["compare", "runs=x"],
        ["figure", "runs=x"],
        ["export", "checkpoint=x", "format=onnx"],
        ["card", "checkpoint=x"],
        ["bench"],
    ],
)
def test_unknown_key_is_refused_by_every_command(fcnlab, capsys, verb):
    assert fcnlab(*verb, "+confidnce=0.9") == 1
    hint = "Did you mean confidence?" if verb[0] in ("compare", "card") else "Available: "
    assert f"Unknown key confidnce. {hint}" in capsys.readouterr().err


def test_key_used_by_an_interpolation_is_accepted(train):
    train("+narrow=4", "model.backbone.width=${narrow}", "trainer.max_steps=1")


def test_num_nodes_is_set_without_a_plus(train):
    train("trainer.num_nodes=1", "trainer.max_steps=1")


STARTED = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
SLURM = {"SLURM_NTASKS": "2", "SLURM_JOB_NAME": "mine", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "message"), [(STARTED, "torchrun started 2 processes"), (SLURM, "Slurm started 2 processes")]
)
def test_wrong_number_of_processes_is_refused(train_code, capsys, tmp_path, monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert train_code() == 1
    output = capsys.readouterr().err
    assert message in output and "Set trainer.devices=2 trainer.num_nodes=1" in output
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"SLURM_NTASKS": "2"}, "SLURM_NTASKS=2 is set in the environment, but srun did not start this process"),
        (SLURM | {"SLURM_NTASKS_PER_NODE": "2"}, "SLURM_STEP_ID is not set"),
        (SLURM | {"SLURM_STEP_ID": "0"}, "start the run with srun --nodes=1 --ntasks-per-node=2"),
    ],
)
def test_incomplete_slurm_environment_is_refused(train_code, capsys, tmp_path, monkeypatch, environment, message):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert train_code("trainer.devices=2") == 1
    output = capsys.readouterr().err
    assert message in output and "Traceback" not in output
    assert not (tmp_path / "run" / "run.json").exists()


def test_node_rank_is_accepted(composed, monkeypatch):
    """As Lightning does it: one process per node, with NODE_RANK in its environment."""
    cfg = composed("trainer.num_nodes=2", "trainer.accelerator=cpu")
    monkeypatch.setenv("NODE_RANK", "1")
    hardware.check_machine(cfg, CONTEXT)


def test_single_slurm_task_is_accepted(composed, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "1")
    hardware.check_machine(composed("trainer.accelerator=cpu"), CONTEXT)


@pytest.mark.parametrize(
    ("devices", "count"), [(2, 2), ("2", 2), ("0,1", 2), ([0, 3, 5], 3), ("auto", 1), (-1, 1), ("-1", 1)]
)
def test_devices_are_counted_like_in_lightning(composed, devices, count):
    cfg = composed("trainer.accelerator=cpu")
    cfg.trainer.devices = devices
    assert hardware.device_count(cfg.trainer) == count and not torch.cuda.is_available()


def test_a_refused_logger_creates_no_run(train_code, tmp_path):
    bad = "+logger.mine={_target_:lightning.pytorch.loggers.CSVLogger}"  # it needs save_dir
    assert train_code("logger=wandb", "logger.wandb.mode=offline", bad) == 1
    assert not list(Path(tmp_path).glob("run/wandb/*"))
