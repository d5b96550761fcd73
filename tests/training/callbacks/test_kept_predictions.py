"""Which predictions of an evaluation are kept, in the order of the set."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fcnlab.metrics.confusion import ImageConfusions
from fcnlab.models import FCN, Tiny
from fcnlab.runs import prediction_archive
from fcnlab.training.callbacks import KeptPredictions, kept_predictions
from fcnlab.training.segmenter import Segmenter

COUNT = 12
NAMES = tuple(f"image_{place:02}" for place in range(COUNT))


@pytest.fixture
def kept(monkeypatch):
    """Return the names that a callback keeps where image i has i wrong pixels."""
    monkeypatch.setattr(prediction_archive, "WORST", 2)
    monkeypatch.setattr(prediction_archive, "RANDOM", 3)

    def keep(choice: str, limit: int) -> list[str]:
        monkeypatch.setattr(kept_predictions, "LIMIT", limit)
        dataset = SimpleNamespace(names=NAMES, palette=np.zeros((2, 3), np.uint8))
        trainer = SimpleNamespace(test_dataloaders=SimpleNamespace(dataset=SimpleNamespace(dataset=dataset)))
        segmenter = Segmenter(FCN(Tiny(width=4), num_classes=2, levels=[32]), ["background", "cat"])
        segmenter.confusions = ImageConfusions(COUNT, 2)
        callback = KeptPredictions(choice)
        for place in reversed(range(COUNT)):
            prediction = torch.zeros(1, 4, 4, dtype=torch.int64)
            prediction.view(-1)[:place] = 1
            batch = {"image": torch.zeros(1, 3, 4, 4, dtype=torch.uint8), "index": torch.tensor([place])}
            batch["mask"] = torch.zeros(1, 4, 4, dtype=torch.uint8)
            segmenter.confusions.update(prediction, batch["mask"], batch["index"])
            callback.on_test_batch_end(trainer, segmenter, {"prediction": prediction}, batch, place)
        index, matrices = (values.numpy() for values in segmenter.confusions.compute())
        return list(callback.collect(segmenter, NAMES, index, matrices))

    return keep


@pytest.mark.parametrize(("choice", "limit"), [("auto", 10**6), ("all", 1)])
def test_all_images_are_kept_in_the_order_of_the_set(kept, choice, limit):
    assert kept(choice, limit) == list(NAMES)


def test_no_image_is_kept_on_request(kept):
    assert kept("none", 10**6) == []


@pytest.mark.parametrize("limit", [1, 8_000])
def test_above_the_limit_the_worst_and_random_ones_are_kept(kept, limit):
    """This holds wherever in the set the limit is passed."""
    expected = prediction_archive.worst_and_random({name: -place for place, name in enumerate(NAMES)})
    assert kept("auto", limit) == sorted(expected) and {"image_10", "image_11"} <= expected
