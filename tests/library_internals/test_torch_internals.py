import pickle
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from fcnlab.library_internals import torch as internals


def test_kernels_over_many_tensors_do_what_loops_do():
    ones, others = ([torch.randn(2, 3), torch.randn(5)] for _ in range(2))
    expected = [one - other for one, other in zip(ones, others, strict=True)]
    found = internals.subtract_each(ones, others)
    assert all(map(torch.equal, found, expected))
    internals.multiply_each(found, 0.5)
    internals.multiply_each(found, torch.tensor(3.0))
    assert all(map(torch.equal, found, [each * 0.5 * 3 for each in expected]))
    before = [each.clone() for each in found]
    internals.add_to_each(found, others)
    assert all(torch.equal(new, old + other) for new, old, other in zip(found, before, others, strict=True))


def test_kinds_of_layers_hold_those_of_each_dimension():
    for count in (1, 2, 3):
        assert isinstance(getattr(nn, f"BatchNorm{count}d")(1), internals.BATCH_NORMS)
        assert isinstance(getattr(nn, f"InstanceNorm{count}d")(1), internals.INSTANCE_NORMS)
        assert isinstance(getattr(nn, f"Dropout{count}d")(), internals.DROPOUTS)
    assert isinstance(nn.Dropout(), internals.DROPOUTS) and isinstance(nn.SyncBatchNorm(1), internals.BATCH_NORMS)
    assert not isinstance(nn.GroupNorm(1, 1), (internals.BATCH_NORMS, internals.INSTANCE_NORMS, internals.DROPOUTS))


def test_a_mode_sees_every_operation_and_its_tensors():
    seen = []

    class Mode(internals.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            internals.each_tensor(seen.append, (args, {"more": [kwargs]}))
            return func(*args, **(kwargs or {}))

    one, other = torch.ones(2), torch.ones(2)
    with Mode():
        torch.add(one, other)
    assert [id(each) for each in seen] == [id(one), id(other)]


def test_lightning_clips_before_a_fused_step_that_leaves_the_scaling():
    from lightning.pytorch.plugins import MixedPrecision

    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, fused=True)
    precision = MixedPrecision("16-mixed", "cpu", scaler=Mock())
    with pytest.raises(RuntimeError, match="clipping"):
        precision.clip_gradients(optimizer, 1.0)
    internals.leave_scaling_to_the_scaler(optimizer)
    precision.clip_gradients(optimizer, 1.0)


def test_error_of_worker_is_raised_by_its_reader():
    try:
        raise ValueError("one image")
    except ValueError:
        sent = pickle.loads(pickle.dumps(internals.error_of_worker()))
    with pytest.raises(ValueError, match=r"(?s)in a worker.*one image"):
        sent.reraise()


@pytest.mark.parametrize(("name", "size"), [("FloatStorage", 4), ("HalfStorage", 2), ("UntypedStorage", 1)])
def test_storage_item_bytes(name, size):
    assert internals.storage_item_bytes(name) == size


def test_tell_rates():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    internals.tell_rates(schedule, [0.25])
    assert schedule.get_last_lr() == [0.25]
