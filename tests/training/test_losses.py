"""Losses against plain reference code; void counts in none of them."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fcnlab.metrics.scores import scores as scores_of
from fcnlab.models import CoarseScores, FeatureMap, Grid, Upsample
from fcnlab.models.geometry import IMAGE
from fcnlab.models.upsampling import bilinear_kernel
from fcnlab.training.losses import (
    OHEM,
    CentrePixels,
    CrossEntropy,
    CrossEntropySum,
    Dice,
    Focal,
    Lovasz,
    SampledPixels,
    supports_row_blocks,
)

CLASSES = 4
WEIGHTS = [0.5, 1.0, 3.0, 0.0]
LOSSES = {
    "ce": CrossEntropy(),
    "weighted": CrossEntropy(WEIGHTS),
    "sum": CrossEntropySum(),
    "ohem": OHEM(0.25),
    "focal": Focal(2.0),
    "focal below 1": Focal(0.5),
    "dice": Dice(),
    "lovasz": Lovasz(),
}
EVERY = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())


@pytest.fixture
def batch():
    """Scores and a truth with all classes and some void."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(CLASSES, (2, 5, 6), generator=generator)
    target[:, 1:3, 2:5] = 255
    return 2 * torch.randn(2, CLASSES, 5, 6, generator=generator), target


def pixel_losses(scores, target) -> np.ndarray:
    """-log of the true class's probability at each pixel that is not void."""
    powers = np.exp(scores.double().numpy())
    probability = np.moveaxis(powers / powers.sum(axis=1, keepdims=True), 1, -1)[target.numpy() != 255]
    return -np.log(np.take_along_axis(probability, target[target != 255].numpy()[:, None], 1)[:, 0])


def as_scores(probability) -> torch.Tensor:
    """Scores of one row of pixels, from (pixel, class) probabilities."""
    return torch.as_tensor(probability, dtype=torch.float64).clamp(min=1e-30).log().T[None, :, None]


def test_cross_entropy_is_the_mean_over_pixels(batch):
    assert CrossEntropy()(*batch).item() == pytest.approx(pixel_losses(*batch).mean())


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_cross_entropy_is_torchs_mean(batch, weights):
    tensor = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(*batch, weight=tensor, ignore_index=255, reduction="mean")
    torch.testing.assert_close(CrossEntropy(weights)(*batch), expected)


def test_number_of_class_weights(batch):
    with pytest.raises(ValueError, match=r"loss\.class_weights has 2 values for 4 classes"):
        CrossEntropy([1.0, 2.0])(*batch)


def test_sum_is_averaged_over_images(batch):
    assert CrossEntropySum()(*batch).item() == pytest.approx(pixel_losses(*batch).sum() / 2)


def test_sampling_drops_whole_cells_of_the_sum():
    """Independently: the gradient is that of the whole sum in some cells of 4 x 4, and zero in the others."""
    scores, target = torch.randn(3, CLASSES, 37, 50), torch.randint(CLASSES, (3, 37, 50))
    slopes = []
    for loss in (CrossEntropySum(), SampledPixels(CrossEntropySum(), keep=0.25, cell=4)):
        leaf = scores.clone().requires_grad_()
        loss(leaf, target).backward()
        slopes.append(leaf.grad)
    whole, sampled = slopes
    kept = 0
    for image, top, left in np.ndindex(3, 10, 13):
        cell = (image, slice(None), slice(4 * top, 4 * top + 4), slice(4 * left, 4 * left + 4))
        counts = bool(sampled[cell].any())
        assert torch.equal(sampled[cell], whole[cell] if counts else torch.zeros_like(whole[cell]))
        kept += counts
    assert 60 < kept < 135  # 97.5 +- 4 standard deviations of 390 draws


def test_all_cells_count_in_evaluation_and_at_probability_one(batch):
    loss = SampledPixels(CrossEntropy(), keep=0.5, cell=2)
    assert torch.equal(loss.eval()(*batch), CrossEntropy()(*batch))
    assert torch.equal(SampledPixels(CrossEntropy(), keep=1.0)(*batch), CrossEntropy()(*batch))


@pytest.mark.parametrize("settings", [{"keep": 0}, {"keep": 1.1}, {"cell": 0}])
def test_sampling_settings_are_checked(settings):
    with pytest.raises(ValueError, match=r"loss\.(keep|cell)=") as error:
        SampledPixels(CrossEntropy(), **settings)
    assert str(next(iter(settings.values()))) in str(error.value)


@pytest.mark.parametrize(("cell", "rows", "cols"), [(1, [2], [2]), (3, [1, 2, 3], [1, 2, 3]), (2, [1, 2], [2, 3])])
def test_only_the_centre_of_a_crop_counts(cell, rows, cols):
    scores, target = torch.randn(3, CLASSES, 5, 5 + (cell == 2)), torch.randint(CLASSES, (3, 5, 5 + (cell == 2)))
    expected = F.cross_entropy(scores[:, :, rows][..., cols], target[:, rows][..., cols])
    torch.testing.assert_close(CentrePixels(CrossEntropy(), cell)(scores, target), expected)
    assert torch.equal(CentrePixels(CrossEntropy(), cell).eval()(scores, target), CrossEntropy()(scores, target))


def test_centre_cell_must_fit_into_the_crop(batch):
    with pytest.raises(ValueError, match=r"loss\.cell=6 is larger than the crop of 5x6 pixels"):
        CentrePixels(CrossEntropy(), 6)(*batch)


def test_ohem_of_all_pixels_is_cross_entropy(batch):
    torch.testing.assert_close(OHEM(1.0)(*batch), CrossEntropy()(*batch))


@pytest.mark.parametrize(("fraction", "kept"), [(0.25, 12), (0.5, 24), (1e-9, 1)])
def test_ohem_keeps_the_largest_losses(batch, fraction, kept):
    pixels = np.sort(pixel_losses(*batch))
    assert len(pixels) == 48
    assert OHEM(fraction)(*batch).item() == pytest.approx(pixels[-kept:].mean())


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1])
def test_ohem_fraction_is_checked(fraction):
    with pytest.raises(ValueError, match=rf"loss\.fraction={fraction} must be above 0"):
        OHEM(fraction)


@pytest.mark.parametrize("gamma", [0.5, 1, 2])
def test_focal_weights_by_probability(batch, gamma):
    pixels = pixel_losses(*batch)
    assert Focal(gamma)(*batch).item() == pytest.approx(((1 - np.exp(-pixels)) ** gamma * pixels).mean(), rel=1e-5)


def test_focal_without_gamma_is_cross_entropy(batch):
    torch.testing.assert_close(Focal(0)(*batch), CrossEntropy()(*batch))


def test_dice_by_hand():
    """Two pixels, one of each of two classes; a third class is in the prediction alone and has no share."""
    scores, target = as_scores([[0.75, 0.25, 0], [0.5, 0.4, 0.1]]), torch.tensor([[[0, 1]]])
    first, second = 2 * 0.75 / (1.25 + 1), 2 * 0.4 / (0.65 + 1)
    assert Dice()(scores, target).item() == pytest.approx(1 - (first + second) / 2)


def test_lovasz_of_certain_predictions_is_one_minus_iou():
    target, prediction = [0, 0, 1, 1, 2, 255], [0, 1, 1, 1, 0, 2]
    found = Lovasz()(as_scores(np.eye(3)[prediction]), torch.tensor([[target]]))
    assert found.item() == pytest.approx(1 - (1 / 3 + 2 / 3 + 0) / 3)


@pytest.mark.parametrize("present", [(0,), (1, 3), (0, 1, 2, 3)])
def test_lovasz_averages_over_the_classes_in_the_target(present):
    rng = np.random.default_rng(1)
    target, prediction = rng.choice(present, 40), rng.integers(0, CLASSES, 40)
    matrix = np.zeros((CLASSES, CLASSES), int)
    np.add.at(matrix, (target, prediction), 1)
    found = Lovasz()(as_scores(np.eye(CLASSES)[prediction]), torch.tensor(target)[None, None])
    assert found.item() == pytest.approx(1 - scores_of(matrix).iou[list(present)].mean())


def test_lovasz_extends_iou():
    """Between the corners it is positively homogeneous and convex in the errors, as any Lovász extension is of a
    submodular loss (Berman et al., section 2); the errors are linear in the probabilities."""
    rng = np.random.default_rng(2)
    target = rng.integers(0, 3, 30)
    right = np.eye(3)[target]
    one, other = (rng.dirichlet([0.5] * 3, 30) for _ in range(2))

    def loss(probability):
        return Lovasz()(as_scores(probability), torch.tensor(target)[None, None]).item()

    assert loss(right) == pytest.approx(0, abs=1e-9)
    assert loss(0.7 * right + 0.3 * one) == pytest.approx(0.3 * loss(one))
    assert loss((one + other) / 2) < (loss(one) + loss(other)) / 2


@EVERY
def test_ignored_pixels_do_not_count(batch, loss):
    scores, target = batch
    ignore_index = (target == 255)[:, None]
    changed = torch.where(ignore_index, -3 * scores + 1, scores).requires_grad_()
    found = loss(changed, target)
    torch.testing.assert_close(found, loss(scores, target))
    found.backward()
    assert (changed.grad[ignore_index.expand_as(scores)] == 0).all() and changed.grad.abs().sum() > 0


@EVERY
def test_loss_of_ignored_pixels_is_zero(batch, loss):
    scores = batch[0].requires_grad_()
    found = loss(scores, torch.full_like(batch[1], 255))
    found.backward()
    assert found.shape == () and found.item() == 0 and (scores.grad == 0).all()


@EVERY
def test_certain_predictions_have_a_finite_loss_and_gradient(loss):
    """Probabilities that round to 0 and 1, as they do late in training: both right and wrong."""
    scores = torch.zeros(1, CLASSES, 2, 2)
    scores[:, 1] = 200
    scores.requires_grad_()
    found = loss(scores, torch.tensor([[[1, 1], [1, 2]]]))
    found.backward()
    assert found.isfinite() and scores.grad.isfinite().all()


@EVERY
def test_gradient_step_reduces_the_loss(batch, loss):
    scores = batch[0].requires_grad_()
    before = loss(scores, batch[1])
    (slope,) = torch.autograd.grad(before, scores)
    assert loss(scores - 1e-3 * slope / slope.norm(), batch[1]) < before


# --- Straight from coarse scores


def coarse_batch(kind=torch.float64):
    """Scores at stride 8 of two images of 30 x 37, and their truth with some void, in bytes as it travels."""
    generator = torch.Generator().manual_seed(0)
    data = 2 * torch.randn(2, CLASSES, 5, 6, generator=generator, dtype=kind)
    target = torch.randint(CLASSES, (2, 30, 37), generator=generator, dtype=torch.uint8)
    target[:, 7:20, 10:30] = 255
    return data.requires_grad_(), target


def coarse_scores(data) -> CoarseScores:
    grid = Grid(8, 3.5)
    image = FeatureMap(torch.empty(2, 3, 30, 37), *IMAGE)
    return CoarseScores(FeatureMap(data, *grid), Upsample(CLASSES, grid, IMAGE), image)


BY_ROWS = ["ce", "weighted", "sum", "focal", "focal below 1"]


@pytest.mark.parametrize("name", BY_ROWS)
@pytest.mark.parametrize("sampled", [False, True])
def test_loss_and_gradient_from_coarse_scores_are_the_same(name, sampled, monkeypatch):
    """Independently: torch's own transposed convolution and derivatives, over all rows at once."""
    monkeypatch.setattr("fcnlab.models.upsampling.BLOCK_ON_CPU", 1)
    loss = (SampledPixels(LOSSES[name], keep=0.5, cell=4) if sampled else LOSSES[name]).double()
    assert supports_row_blocks(loss)
    data, target = coarse_batch()
    kernel = bilinear_kernel(8, 16).double().expand(CLASSES, 1, -1, -1)
    full = F.conv_transpose2d(data, kernel, stride=8, groups=CLASSES)[:, :, 4:34, 4:41]
    found = []
    for scores, labels in ((coarse_scores(data), target), (full, target.long())):
        torch.manual_seed(1)  # the same cells are sampled
        value = loss(scores, labels)
        found.append((value.detach(), *torch.autograd.grad(5 * value, data)))
    torch.testing.assert_close(*found)
    assert found[0][1].any()


def test_loss_of_ignored_pixels_from_coarse_scores_is_zero():
    data, target = coarse_batch()
    for name in BY_ROWS:
        loss = LOSSES[name].double()(coarse_scores(data), torch.full_like(target, 255))
        (slopes,) = torch.autograd.grad(loss, data)
        assert loss == 0 and not slopes.any()


def test_losses_over_all_pixels_need_full_scores():
    assert not any(supports_row_blocks(LOSSES[name]) for name in ("ohem", "dice", "lovasz"))
    assert (
        not supports_row_blocks(SampledPixels(Dice()))
        and not supports_row_blocks(CentrePixels(CrossEntropy()))
        and not supports_row_blocks(None)
    )
