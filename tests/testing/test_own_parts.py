"""Test that fcnlab's own backbones, data sets, losses and inference methods pass the suites that users inherit."""

import functools

import pytest
import torch.nn.functional as F

from fcnlab import data, inference
from fcnlab.metrics.scores import IGNORE_INDEX
from fcnlab.models import VGG16, AlexNet, CaffeNet, GoogLeNet, GoogLeNetBN, ResNet, Tiny
from fcnlab.testing import BackboneContract, DatasetContract, InferenceContract, LossContract
from fcnlab.training import losses

BACKBONES = {
    "tiny-paper": functools.partial(Tiny, "paper", width=2),
    "alexnet": AlexNet,
    "caffenet": CaffeNet,
    "vgg16": VGG16,
    "googlenet": GoogLeNet,
    "googlenet_bn": GoogLeNetBN,
    "resnet50": ResNet,
    "resnet50-stride8": functools.partial(ResNet, output_stride=8),
}
ONCE = ("tiny-paper", "googlenet")  # the others take minutes
LOSSES = {
    "cross_entropy": losses.CrossEntropy,
    "weighted": lambda: losses.CrossEntropy([1.0, 2.0, 0.5, 3.0]),
    "cross_entropy_sum": losses.CrossEntropySum,
    "focal": losses.Focal,
    "ohem": losses.OHEM,
    "dice": losses.Dice,
    "lovasz": losses.Lovasz,
    "sampled": lambda: losses.SampledPixels(losses.CrossEntropy(), cell=2),
    "centre": lambda: losses.CentrePixels(losses.Focal(), cell=1),
}
METHODS = {
    "whole": (inference.WholeImage(), 300),
    "flip": (inference.Flip(), None),
    "multiscale": (inference.MultiScale((0.75, 1.5)), None),
    "sliding": (inference.SlidingWindow(64, 40), 64),
    "shift_and_stitch": (inference.ShiftAndStitch(2), None),
}


class TestTiny(BackboneContract):
    def make(self):
        return Tiny(width=2)

    @pytest.mark.slow
    @pytest.mark.unchecked
    def test_compiled(self, backbone):
        super().test_compiled(backbone)

    @pytest.mark.slow
    @pytest.mark.unchecked
    def test_exported(self, backbone):
        super().test_exported(backbone)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name if name in ONCE else pytest.param(name, marks=pytest.mark.campaign) for name in BACKBONES]
)
class TestBackbones(BackboneContract):
    @pytest.fixture(autouse=True)
    def _named(self, name):
        self.name = name

    def make(self):
        return BACKBONES[self.name]()


@pytest.mark.parametrize("name", LOSSES)
class TestLosses(LossContract):
    @pytest.fixture(autouse=True)
    def _named(self, name):
        self.name = name

    def make(self):
        return LOSSES[self.name]()


class WrongInTraining(losses.CrossEntropy):
    """Counts ignored pixels as class 0, and divides by their number, in training only."""

    def forward(self, scores, target):
        if not self.training:
            return super().forward(scores, target)
        labelled = target != IGNORE_INDEX
        return F.cross_entropy(scores, target.where(labelled, 0), reduction="sum") / labelled.sum()


@pytest.mark.parametrize(
    ("test", "sentence"),
    [
        ("test_ignored_pixels", "The gradient at ignored pixels is not 0"),
        ("test_all_pixels_ignored", "The loss of a batch with ignored pixels alone must be 0, got inf"),
    ],
)
def test_a_loss_that_is_wrong_only_in_training_fails(test, sentence):
    check = getattr(LossContract(), test)
    check(WrongInTraining().eval(), training=False)
    with pytest.raises(pytest.fail.Exception, match=sentence):
        check(WrongInTraining().eval(), training=True)


@pytest.mark.parametrize("name", METHODS)
class TestInference(InferenceContract):
    @pytest.fixture(autouse=True)
    def _named(self, name):
        self.method_of_name, self.whole_up_to = METHODS[name]

    def make(self):
        return self.method_of_name


class TestShapes(DatasetContract):
    @pytest.fixture(autouse=True)
    def _root(self, tmp_path_factory):
        self.root = tmp_path_factory.getbasetemp() / "contract"

    def make(self):
        return data.open_shapes(str(self.root), "val", num_train=2, num_val=3, size=40)
