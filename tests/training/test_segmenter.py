"""One step of training and of evaluation: equal whichever way it is computed, and what it takes, counted."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from fcnlab.inference import Flip, GuidedFilter, MultiScale, NoPostprocess, SlidingWindow, WholeImage
from fcnlab.metrics.confusion import ImageConfusions
from fcnlab.models import FCN, CoarseScores, Tiny
from fcnlab.training.losses import CrossEntropy, Dice
from fcnlab.training.segmenter import Segmenter, class_map

CLASSES = ["background", "cat", "dog"]


def segmenter(**settings) -> Segmenter:
    torch.manual_seed(0)
    net = FCN(Tiny(width=4), len(CLASSES))
    for head in net.heads.parameters():
        nn.init.normal_(head)
    return Segmenter(net, CLASSES, **settings)


def batch(size=(70, 91), count=2):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(len(CLASSES), (count, *size), generator=generator, dtype=torch.uint8)
    target[:, 10:20] = 255
    image = torch.randint(256, (count, 3, *size), generator=generator, dtype=torch.uint8)
    return {"image": image, "mask": target, "index": torch.arange(count)}


FAST = {"channels_last": True, "row_blocks": True}


@pytest.mark.parametrize("fast", [FAST, {"channels_last": True}, {"row_blocks": True}], ids=" ".join)
def test_training_step_matches_the_reference(fast):
    found = []
    for settings in ({}, fast):
        module = segmenter(loss=CrossEntropy(), **settings).train()
        loss = module._step(batch(), "train")["loss"]
        loss.backward()
        found.append((loss.detach(), [parameter.grad for parameter in module.net.parameters()]))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_predictions_by_rows_match_full_scores(monkeypatch):
    monkeypatch.setattr("fcnlab.models.upsampling.BLOCK_ON_CPU", 1)
    module, image = segmenter(row_blocks=True).eval(), batch()["image"]
    scores = module._scores(image)
    assert isinstance(scores, CoarseScores)
    full = module(image)
    assert torch.equal(class_map(scores), full.max(1).indices) and torch.equal(
        module.predict_step(batch()), class_map(full)
    )
    assert torch.equal(torch.cat([some for _, some in scores.by_rows()], 2), full)  # bit by bit: ties end alike


def different_nets(count: int) -> list[FCN]:
    """Return networks with different weights."""
    nets = []
    for seed in range(count):
        torch.manual_seed(seed)
        net = FCN(Tiny(width=4), len(CLASSES))
        for head in net.heads.parameters():
            nn.init.normal_(head, std=0.02)
        nets.append(net.eval())
    return nets


@torch.no_grad()
@pytest.mark.parametrize("inference", [WholeImage(), Flip(), MultiScale((0.75, 1.0)), SlidingWindow(48, 32)], ids=repr)
@pytest.mark.parametrize("postprocess", [NoPostprocess(), GuidedFilter(radius=2)], ids=repr)
def test_ensemble_averages_probabilities_and_then_post_processes_them(inference, postprocess):
    """By numpy: the mean of the softmax of each network, which becomes the input of the post-processing."""
    nets, image = different_nets(3), batch(count=1)["image"]
    each = [inference.probabilities(net, image.float() / 255)[0].numpy().astype(np.float64) for net in nets]
    mean = np.mean(each, axis=0).astype(np.float32)
    expected = mean
    if isinstance(postprocess, GuidedFilter):
        expected = postprocess.process(mean, image[0].permute(1, 2, 0).contiguous().numpy())
    module = Segmenter(
        nets[0], CLASSES, row_blocks=True, inference=inference, postprocess=postprocess, ensemble=nets[1:]
    ).eval()
    scores = module._scores(image)
    np.testing.assert_allclose(scores[0].numpy(), expected, atol=1e-5)
    assert torch.equal(module.predict_step({"image": image})[0], scores[0].argmax(0))
    assert np.abs(expected - each[0]).max() > 0.01


@torch.no_grad()
def test_ensemble_of_equal_networks_scores_like_one():
    (net,) = different_nets(1)
    single, double = (Segmenter(net, CLASSES, ensemble=[copy.deepcopy(net)] * more).eval() for more in (0, 1))
    matrices = []
    for module in (single, double):
        module.confusions = ImageConfusions(2, len(CLASSES))
        module._step(batch(), "test")
        matrices.append(module.confusions.compute()[1])
    assert torch.equal(*matrices)


@torch.no_grad()
def test_half_precision_predictions_by_rows_match():
    """As at the end of a training with loss=dice, which sees full scores, and in an evaluation, which does not."""
    found = []
    for settings in ({"loss": Dice(), "row_blocks": True}, {"row_blocks": True}):
        module = segmenter(**settings).eval()
        with torch.autocast("cpu", torch.bfloat16):
            found.append(class_map(module._scores(batch()["image"])))
    assert torch.equal(*found)


@pytest.mark.parametrize("classes", [2, 21, 255, 300])
def test_argmax_is_the_first_of_equal_classes(classes):
    scores = torch.randn(2, classes, 9, 17).mul(2).round()  # many are equal
    assert np.array_equal(class_map(scores).numpy(), scores.numpy().argmax(1))


def test_nan_pixel_has_a_class():
    assert class_map(torch.full((1, 3, 2, 2), torch.nan)).max() < 3


def test_coarse_scores_are_used_only_where_possible():
    image = batch()["image"]
    assert isinstance(segmenter(loss=CrossEntropy(), row_blocks=True).train()._scores(image), CoarseScores)
    for module in (
        segmenter(loss=CrossEntropy()),
        segmenter(loss=Dice(), row_blocks=True),
        segmenter(row_blocks=True, inference=Flip()).eval(),
    ):
        assert module._scores(image).shape == (2, len(CLASSES), 70, 91)


def test_gradients_have_the_memory_format_of_their_parameters():
    """What fused optimisers take for granted."""
    module = segmenter(loss=CrossEntropy(), **FAST).train()
    module._step(batch(), "train")["loss"].backward()
    assert any(parameter.stride() != parameter.contiguous().stride() for parameter in module.net.parameters())
    for name, parameter in module.net.named_parameters():
        assert parameter.grad.stride() == parameter.stride(), name


# --- What a step takes, counted


def peak_allocated(work) -> int:
    """Bytes that torch held at most for tensors, beyond those before, by its own record of each allocation."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def test_peak_memory_is_measured():
    def work():
        first = torch.ones(1000, 250)  # 1 MB
        del first
        second, third = torch.ones(500, 500), torch.ones(500, 1000)
        del second, third

    assert 3e6 <= peak_allocated(work) < 3.1e6


def test_loss_by_rows_never_allocates_full_scores():
    """pytorch-fcn's ops held 1195 MiB for four images of 512x512 and 21 classes (benchmarks/loss_head.py)."""
    from fcnlab.models import FeatureMap, Grid, Upsample
    from fcnlab.models.geometry import IMAGE

    data, grid = torch.randn(4, 21, 64, 64, requires_grad=True), Grid(8, 3.5)
    target = torch.zeros(4, 512, 512, dtype=torch.uint8)
    image = FeatureMap(torch.empty(4, 3, 512, 512, device="meta"), *IMAGE)
    scores, full = CoarseScores(FeatureMap(data, *grid), Upsample(21, grid, IMAGE), image), 4 * 21 * 512**2 * 4

    def train(scores) -> None:
        CrossEntropy()(scores, target.long() if isinstance(scores, torch.Tensor) else target).backward()

    assert peak_allocated(lambda: train(scores)) < 0.6 * full
    assert peak_allocated(lambda: train(scores.full())) > 3 * full
