"""Test each function in a training run of Lightning with a model of one weight."""

import inspect
from unittest.mock import Mock

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from fcnlab.library_internals import lightning as internals

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's advice on workers and logging intervals


class Line(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1, bias=False)

    def training_step(self, batch):
        loss = self.layer(batch).mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def trainer_of(folder, *callbacks, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    defaults = {
        "max_epochs": 1,
        "enable_checkpointing": any(isinstance(c, L.pytorch.callbacks.Checkpoint) for c in callbacks),
    }
    return L.Trainer(default_root_dir=folder, callbacks=list(callbacks), **(quiet | defaults | settings))


def loader():
    return DataLoader(torch.ones(4, 1))


def test_logs_this_step_agrees_with_the_written_rows(tmp_path):
    logged = []

    class Recorder(L.Callback):
        def on_train_batch_end(self, trainer, *_):
            logged.append(internals.logs_this_step(trainer))

    logger = L.pytorch.loggers.CSVLogger(tmp_path)
    trainer_of(tmp_path, Recorder(), logger=logger, log_every_n_steps=2).fit(Line(), loader())
    assert logged == [False, True, False, True]
    rows = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    assert len(rows) == 1 + sum(logged)


def test_forgotten_training_batches_are_requested_again(tmp_path):
    loaders = []

    class Counted(Line):
        def train_dataloader(self):
            loaders.append(loader())
            return loaders[-1]

        def configure_optimizers(self):
            assert self.trainer.estimated_stepping_batches == 4 and len(loaders) == 1
            internals.forget_training_batches(self.trainer)
            return super().configure_optimizers()

    trainer_of(tmp_path).fit(Counted())
    assert len(loaders) == 2


def test_no_batch_broadcasts_sigterm_after_share_no_sigterm(tmp_path, monkeypatch):
    """Lightning does so only with several ranks, so this test checks the place in Lightning's source."""
    broadcasts = []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda *_, **__: broadcasts.append(True))
    trainer = trainer_of(tmp_path)
    loop = trainer.fit_loop.epoch_loop
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(type(loop).advance)
    loop._broadcast_sigterm_tensor()
    assert len(broadcasts) == 1
    internals.share_no_sigterm(trainer)
    assert loop._broadcast_sigterm_tensor() is None and len(broadcasts) == 1


def test_is_restoring_is_true_until_everything_is_restored(tmp_path):
    restoring = {}

    class Recorder(L.Callback):
        def on_load_checkpoint(self, trainer, *_):
            restoring["loading"] = internals.is_restoring(trainer)

        def on_train_start(self, trainer, *_):
            restoring["training"] = internals.is_restoring(trainer)

    first = trainer_of(tmp_path, max_steps=2)
    first.fit(Line(), loader())
    first.save_checkpoint(tmp_path / "a.ckpt")
    trainer_of(tmp_path, Recorder(), max_epochs=2).fit(Line(), loader(), ckpt_path=tmp_path / "a.ckpt")
    assert restoring == {"loading": True, "training": False}


def test_only_spawn_strategies_start_processes_themselves(tmp_path):
    assert internals.starts_processes_itself(trainer_of(tmp_path, strategy="ddp_spawn", devices=2))
    assert not internals.starts_processes_itself(trainer_of(tmp_path, strategy="ddp", devices=2))
    assert not internals.starts_processes_itself(trainer_of(tmp_path, devices=1))


def test_synchronises_batch_norm_follows_the_trainer_setting(tmp_path):
    both = (trainer_of(tmp_path, strategy="ddp", devices=2, sync_batchnorm=on) for on in (True, False))
    assert [*map(internals.synchronises_batch_norm, both)] == [True, False]


def test_ema_weights_can_be_updated_and_swapped(tmp_path):
    class Average(internals.AveragedWeights):
        def on_train_batch_end(self, trainer, pl_module, *rest):
            super().on_train_batch_end(trainer, pl_module, *rest)
            assert self.updated_at == trainer.global_step and self.average is not None
            self.updated_at = self.updated_at

        def on_train_epoch_end(self, trainer, pl_module):
            weight, average = pl_module.layer.weight, self.average.module.layer.weight
            was = weight.item(), average.item()
            self.swap(pl_module)
            assert (average.item(), weight.item()) == was and was[0] != was[1]
            self.swap(pl_module)

    callback = Average()
    assert callback.average is None and callback.updated_at == 0
    trainer_of(tmp_path, callback).fit(Line(), loader())
    assert callback.updated_at == 4


def test_a_checkpoint_callback_knows_when_it_is_saving(tmp_path):
    seen = []

    class Recorder(L.Callback):
        def on_save_checkpoint(self, *_):
            seen.append(checkpoint.saving)

    checkpoint = internals.ObservedCheckpoint(tmp_path)
    trainer_of(tmp_path, checkpoint, Recorder()).fit(Line(), loader())
    assert seen == [True] and not checkpoint.saving
    with pytest.raises(OSError):
        checkpoint._save_checkpoint(Mock(save_checkpoint=Mock(side_effect=OSError)), "x")
    assert not checkpoint.saving


def test_lightning_asks_the_timed_progress_bar_before_it_draws(tmp_path):
    asked = []

    class Bar(internals.TimedProgressBar):
        def is_due(self, current, total):
            asked.append((current, total))
            return False

    trainer_of(tmp_path, Bar(), enable_progress_bar=True).fit(Line(), loader())
    assert asked == [(1, 4), (2, 4), (3, 4), (4, 4)]
