import pickle
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from fcnlab.library_internals import torch as internals


def test_foreach_kernels_equal_loops():
    ones, others = ([torch.randn(2, 3), torch.randn(5)] for _ in range(2))
    expected = [first - second for first, second in zip(ones, others, strict=True)]
    result = internals.subtract_each(ones, others)
    assert all(map(torch.equal, result, expected))
    internals.multiply_each(result, 0.5)
    internals.multiply_each(result, torch.tensor(3.0))
    assert all(map(torch.equal, result, [each * 0.5 * 3 for each in expected]))
    before = [each.clone() for each in result]
    internals.add_to_each(result, others)
    assert all(torch.equal(new, old + second) for new, old, second in zip(result, before, others, strict=True))


def test_layer_groups_contain_layers_of_every_dimension():
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

    first, second = torch.ones(2), torch.ones(2)
    with Mode():
        torch.add(first, second)
    assert [id(each) for each in seen] == [id(first), id(second)]


def test_lightning_clips_before_a_fused_step_without_scaling():
    from lightning.pytorch.plugins import MixedPrecision

    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1, fused=True)
    precision = MixedPrecision("16-mixed", "cpu", scaler=Mock())
    with pytest.raises(RuntimeError, match="clipping"):
        precision.clip_gradients(optimizer, 1.0)
    internals.leave_scaling_to_the_scaler(optimizer)
    precision.clip_gradients(optimizer, 1.0)


def test_a_worker_error_is_raised_by_its_reader():
    try:
        raise ValueError("one image")
    except ValueError:
        sent = pickle.loads(pickle.dumps(internals.error_of_worker()))
    with pytest.raises(ValueError, match=r"(?s)in a worker.*one image"):
        sent.reraise()


@pytest.mark.parametrize(("name", "size"), [("FloatStorage", 4), ("HalfStorage", 2), ("UntypedStorage", 1)])
def test_storage_item_bytes_follow_the_storage_type(name, size):
    assert internals.storage_item_bytes(name) == size


def test_set_last_rates_sets_the_last_learning_rates():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    internals.set_last_rates(schedule, [0.25])
    assert schedule.get_last_lr() == [0.25]
