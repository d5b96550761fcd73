"""The bar's loss."""

from unittest.mock import Mock

import lightning as L
import pytest
import torch

from fcnlab.callbacks import Progress


def test_the_loss_is_read_when_the_bar_is_drawn():
    trainer = Mock(spec=L.Trainer, accumulate_grad_batches=4, loggers=[], progress_bar_metrics={"miou": 0.25})
    bar, drawn = Progress(refresh_rate=10), []
    bar._trainer = trainer
    bar.train_progress_bar = Mock(total=25, n=0, set_postfix=drawn.append)
    assert bar.get_metrics(trainer, None) == {"miou": 0.25}
    for batch in range(25):
        outputs = {"loss": torch.tensor(float(batch)) / 4}  # as Lightning accumulates
        bar.on_train_batch_end(trainer, None, outputs, None, batch)
    assert [shown["train/loss"] for shown in drawn] == pytest.approx([9, 19, 24])
    assert all(shown["miou"] == 0.25 for shown in drawn)
