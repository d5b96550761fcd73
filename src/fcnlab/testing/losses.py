"""The conformance suite of a loss."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fcnlab.metrics.scores import IGNORE_INDEX
from fcnlab.models import CoarseScores, FeatureMap, Grid, Upsample
from fcnlab.models.geometry import IMAGE
from fcnlab.testing.checks import require, require_near
from fcnlab.training.losses import PixelLoss, is_sum_over_pixels, mean_from, sum_and_count, supports_row_blocks

ROUNDING = 1e-4  # relative error between two ways to compute the same in single precision
FLAT = 1e-6  # a gradient that counts as zero


class LossContract:
    """Tests of a loss: ``loss(scores, target)``, with scores (batch, classes, rows, cols) and class ids as target."""

    num_classes: int = 4
    """The number of classes of the scores."""

    def make(self) -> nn.Module:
        """Return a new loss."""
        raise NotImplementedError("return your loss from make")

    @pytest.fixture
    def loss(self) -> Iterator[nn.Module]:
        """The loss in evaluation mode: a random selection of pixels is made in training only."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            loss = self.make()
            require(isinstance(loss, nn.Module), f"make returns a {type(loss).__name__}, not an nn.Module.")
            yield loss.eval()

    def _batch(self, rows: int = 6, cols: int = 5) -> tuple[Tensor, Tensor]:
        """Return random scores of two images and a target of which about a quarter is ignored."""
        scores = torch.randn(2, self.num_classes, rows, cols)
        target = torch.randint(self.num_classes, (2, rows, cols))
        return scores, target.where(torch.rand(target.shape) > 0.25, IGNORE_INDEX)

    def test_value(self, loss):
        value = loss(*self._batch())
        require(
            isinstance(value, Tensor) and value.shape == () and bool(value.isfinite()),
            f"The loss must return a finite scalar, got {value!r:.200}. Take the mean over pixels.",
        )

    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_ignored_pixels(self, loss, training):
        """Ignored pixels change neither the loss nor its gradient, also where training selects pixels at random."""
        loss.train(training)
        scores, target = self._batch()
        scores.requires_grad_()
        ignored = (target == IGNORE_INDEX)[:, None].expand_as(scores)
        state = torch.get_rng_state()  # of the selection, which is repeated below
        value = copy.deepcopy(loss)(scores, target)  # training may change the loss
        (gradient,) = torch.autograd.grad(value, scores)
        require(
            gradient[ignored].abs().max().item() <= FLAT,
            f"The gradient at ignored pixels is not 0: leave out the pixels whose target is {IGNORE_INDEX}.",
        )
        other_scores = torch.where(ignored, 5 * torch.randn_like(scores), scores)
        torch.set_rng_state(state)
        changed = loss(other_scores, target)
        sentence = (
            f"Other scores at ignored pixels change the loss: leave out the pixels whose target is {IGNORE_INDEX}"
        )
        require_near(changed, value, ROUNDING, sentence)

    @pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
    def test_all_pixels_ignored(self, loss, training):
        loss.train(training)
        scores, target = self._batch()
        scores.requires_grad_()
        value = loss(scores, torch.full_like(target, IGNORE_INDEX))
        require(
            value.item() == 0,
            f"The loss of a batch with ignored pixels alone must be 0, got {value.item()}: a mean over no pixels is"
            " nan. Divide by at least a small number.",
        )
        if value.requires_grad:
            value.backward()
            require(
                scores.grad is None or not scores.grad.any(),
                "The gradient of a batch with ignored pixels alone must be 0.",
            )

    def test_gradient(self, loss):
        """The gradient is that of finite differences, and a step against it lowers the loss."""
        scores, target = self._batch(3, 4)
        exact, points = loss.double(), scores.double().requires_grad_()
        try:
            torch.autograd.gradcheck(exact, (points, target), eps=1e-6, atol=1e-5, rtol=1e-3)
        except RuntimeError as error:
            pytest.fail(f"The gradient differs from finite differences: {error}", pytrace=False)
        value = exact(points, target)
        (gradient,) = torch.autograd.grad(value, points)
        require(bool(gradient.any()), "The gradient is 0 everywhere, so the loss trains nothing.")
        step = 1e-3 / gradient.norm().item()
        require(
            exact(points - step * gradient, target).item() < value.item(),
            "A small step against the gradient does not lower the loss.",
        )

    def test_correct_scores_are_better(self, loss):
        _, target = self._batch()
        one_hot = nn.functional.one_hot(target.where(target != IGNORE_INDEX, 0), self.num_classes).movedim(-1, 1)
        right, wrong = (loss(factor * one_hot.float(), target).item() for factor in (10, -10))
        require(
            right < wrong, f"Correct scores have a loss of {right:g}, wrong ones {wrong:g}: it must be the smaller."
        )

    def test_parts_of_a_step(self, loss):
        """Sums and counts of parts give the loss of one batch, as accumulated batches and several devices need."""
        scores, target = self._batch()
        target[1, :3] = IGNORE_INDEX  # parts with different numbers of pixels
        total, count = sum_and_count(loss, scores, target)
        expected = loss(scores, target)
        require_near(mean_from(total, count), expected, ROUNDING, "total / count is not the loss")
        if is_sum_over_pixels(loss):
            parts = [sum_and_count(loss, scores[[image]], target[[image]]) for image in (0, 1)]
            merged = mean_from(parts[0][0] + parts[1][0], parts[0][1] + parts[1][1])
            sentence = "The sums and counts of two parts do not give the loss of both: count must not depend on scores"
            require_near(merged, expected, ROUNDING, sentence)

    def test_blocks_of_rows(self, loss):
        """A PixelLoss is the sum of its rows, and coarse scores give the same value and gradient."""
        scores, target = self._batch()
        if isinstance(loss, PixelLoss):
            blocks = [loss.total(scores[:, :, rows], target[:, rows]) for rows in (slice(0, 2), slice(2, None))]
            sentence = "The totals of blocks of rows do not add up to the total: total must be a sum over pixels"
            require_near(blocks[0] + blocks[1], loss.total(scores, target), ROUNDING, sentence)
        if not supports_row_blocks(loss):
            return
        image = torch.rand(2, 3, 16, 13)
        target = torch.randint(self.num_classes, (2, 16, 13))
        upsample = Upsample(self.num_classes, Grid(4, 1.5), IMAGE)
        values = torch.randn(2, self.num_classes, 5, 5).requires_grad_()
        coarse = CoarseScores(FeatureMap(values, 4, -2.5), upsample, FeatureMap(image, *IMAGE))
        by_rows, whole = loss(coarse, target.to(torch.uint8)), loss(coarse.full(), target)
        require_near(
            by_rows, whole, ROUNDING, "The loss of coarse scores differs from that of the scores of all pixels"
        )
        actual, expected = (torch.autograd.grad(each, values)[0] for each in (by_rows, whole))
        require_near(
            actual, expected, ROUNDING, "The gradient of coarse scores differs from that of the scores of all pixels"
        )
