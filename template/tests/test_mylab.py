"""The conformance suites of fcnlab on the parts of this package."""

import fcnlab
import pytest
import torch
from fcnlab.testing import BackboneContract, DatasetContract, LossContract

from mylab.backbone import Strided
from mylab.dataset import open_discs
from mylab.loss import Smoothed
from mylab.metric import mean_dice


class TestStrided(BackboneContract):
    def make(self):
        return Strided(width=4)


class TestSmoothed(LossContract):
    def make(self):
        return Smoothed(smoothing=0.2)


class TestDiscs(DatasetContract):
    @pytest.fixture(autouse=True)
    def _root(self, tmp_path):
        self.root = str(tmp_path)

    def make(self):
        return open_discs(self.root, "val", count=5)


def test_mean_dice():
    """Class 0: 2 * 6 / (8 + 7); class 1: 2 * 1 / (2 + 3); class 2 does not occur."""
    matrix = torch.tensor([[6, 2, 0], [1, 1, 0], [0, 0, 0]])
    assert mean_dice(matrix).item() == pytest.approx((12 / 15 + 2 / 5) / 2)


def test_experiment():
    """Its settings are valid, and name the parts of this package."""
    cfg = fcnlab.compose(["experiment=mylab/first"])
    parts = (cfg.model.backbone, cfg.loss, cfg.data.dataset, cfg.callbacks.mean_dice)
    assert all(part._target_.startswith("mylab.") for part in parts)
