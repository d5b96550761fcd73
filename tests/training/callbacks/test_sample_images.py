"""The images that are shown are the same at every validation, whichever of them are evaluated together."""

from types import SimpleNamespace

import pytest
import torch

from fcnlab.training.callbacks import SampleImages


def shown(batches: list[list[int]], count: int, limit: int | None = None) -> list[int]:
    """The indices that a callback keeps of an evaluation."""
    loader = SimpleNamespace(batch_sampler=batches)
    evaluated = batches[:limit]
    trainer = SimpleNamespace(val_dataloaders=loader, num_val_batches=[len(evaluated)])
    callback = SampleImages("unused", count)
    callback.on_validation_epoch_start(trainer, None)
    for number, batch in enumerate(evaluated):
        outputs = {"prediction": torch.zeros(len(batch), 2, 2)}
        callback.on_validation_batch_end(trainer, None, outputs, {"index": torch.tensor(batch)}, number)
    return sorted(index for index, _ in callback._shown)


ONE_BY_ONE = [[index] for index in range(9)]
TOGETHER = [[0, 3, 4], [1, 2], [5, 7, 8], [6]]


@pytest.mark.parametrize(("count", "expected"), [(0, []), (1, [0]), (3, [0, 4, 8]), (16, list(range(9)))])
def test_they_are_spread_over_the_set(count, expected):
    assert shown(ONE_BY_ONE, count) == shown(TOGETHER, count) == expected


def test_of_several_processes_the_first_shows_of_its_share():
    assert shown([[0], [2], [4], [6], [8]], 3) == shown([[0, 4], [2, 8], [6]], 3) == [0, 4, 8]


def test_where_fewer_batches_are_evaluated_they_are_of_those():
    assert shown(ONE_BY_ONE, 2, limit=3) == [0, 2] and shown(TOGETHER, 2, limit=1) == [0, 4]
