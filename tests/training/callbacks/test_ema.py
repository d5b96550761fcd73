"""The average of the weights, against the formula in numpy's words."""

from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from fcnlab.training.callbacks import EMA


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def change(net: Net, number: int) -> None:
    """Every number of the net, as a step would."""
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for value in net.state_dict().values():
            if value.is_floating_point():
                value.add_(torch.randn(value.shape, generator=generator))
            else:
                value.add_(1)


def state(net: Net) -> dict[str, np.ndarray]:
    return {key: value.numpy().copy() for key, value in net.state_dict().items()}


def train(callback: EMA, net: Net, steps: range) -> None:
    for step in steps:
        change(net, step)
        callback.on_train_batch_end(SimpleNamespace(global_step=step), net, None, None, 0)


@pytest.mark.parametrize("decay", [0.0, 0.4, 0.999])
def test_the_average_is_the_formulas_bit_for_bit(decay):
    net, callback = Net(), EMA(decay)
    callback.setup(SimpleNamespace(), net, "fit")
    expected = None
    for step in range(1, 21):
        train(callback, net, range(step, step + 1))
        now, seen = state(net), step - 1
        keep = np.float32(1 - min(decay, (1 + seen) / (10 + seen)))
        expected = (
            now
            if expected is None
            else {
                key: expected[key] + keep * (now[key] - expected[key]) if now[key].dtype == np.float32 else now[key]
                for key in now
            }
        )
        expected = now if keep == 1 else expected
    found = callback.average.module.state_dict()
    assert found.keys() == expected.keys() and callback.average.n_averaged == 20
    for key, value in found.items():
        np.testing.assert_array_equal(value.numpy(), expected[key])


def test_a_step_is_counted_once_however_many_batches_it_has():
    net, callback = Net(), EMA()
    callback.setup(SimpleNamespace(), net, "fit")
    for step in (0, 0, 1, 1, 1, 2):
        callback.on_train_batch_end(SimpleNamespace(global_step=step), net, None, None, 0)
    assert callback.average.n_averaged == 2


def test_ema_weights_continue_from_their_checkpoint():
    straight, net = Net(), Net()
    net.load_state_dict(straight.state_dict())
    whole, first, second = EMA(), EMA(), EMA()
    for callback, start in ((whole, straight), (first, net)):
        callback.setup(SimpleNamespace(), start, "fit")
    train(whole, straight, range(1, 9))
    train(first, net, range(1, 5))
    checkpoint = {"state_dict": {key: value.clone() for key, value in net.state_dict().items()}}
    first.on_save_checkpoint(SimpleNamespace(), net, checkpoint)
    resumed = Net()
    second.setup(SimpleNamespace(), resumed, "fit")
    second.on_load_checkpoint(SimpleNamespace(), resumed, checkpoint)
    second.load_state_dict(first.state_dict())
    train(second, resumed, range(5, 9))
    one, other = (callback.average.state_dict() for callback in (whole, second))
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_is_a_share(decay):
    with pytest.raises(ValueError, match=rf"callbacks\.ema\.decay={decay} must be at least 0"):
        EMA(decay)
