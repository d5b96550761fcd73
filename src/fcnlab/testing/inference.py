"""The conformance suite of an inference method."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fcnlab.inference import InferenceMethod, WholeImage
from fcnlab.models import FCN, Tiny
from fcnlab.testing.checks import require, require_near

ROUNDING = 1e-4  # relative error between two ways to compute the same in single precision
NUM_CLASSES = 3
SIZES = ((64, 64), (61, 97), (130, 75))  # rows and columns


class InferenceContract:
    """Tests of an :class:`~fcnlab.inference.InferenceMethod`, on a small network with random weights."""

    whole_up_to: int | None = None
    """Rows and columns up to which the method equals one pass over the whole image, as a window of this size does."""

    def make(self) -> InferenceMethod:
        """Return the inference method."""
        raise NotImplementedError("return your inference method from make")

    @pytest.fixture
    def method(self) -> InferenceMethod:
        method = self.make()
        require(isinstance(method, InferenceMethod), f"make returns a {type(method).__name__}, not an InferenceMethod.")
        return method

    @pytest.fixture
    def network(self) -> Iterator[FCN]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = FCN(Tiny(width=4), NUM_CLASSES).eval().requires_grad_(False)
            for head in network.heads.parameters():
                nn.init.normal_(head, std=0.3)
            yield network

    def _images(self, method: InferenceMethod, network: FCN, batch: int = 2) -> list[Tensor]:
        least = method.minimum_image_size(network)
        sizes = dict.fromkeys((max(rows, least), max(cols, least)) for rows, cols in ((least, least), *SIZES))
        return [torch.rand(batch, 3, *size) for size in sizes]

    def test_minimum_size(self, method, network):
        least = method.minimum_image_size(network)
        require(
            isinstance(least, int) and least >= 1,
            f"minimum_image_size must return a number of pixels of at least 1, got {least!r}.",
        )

    def test_scores(self, method, network):
        """There is a score for each class and pixel, also of small images and of images with odd sides."""
        for image in self._images(method, network):
            given, scores = image.clone(), method(network, image)
            expected = (len(image), NUM_CLASSES, *image.shape[2:])
            require(
                tuple(scores.shape) == expected and bool(scores.isfinite().all()),
                f"The scores of images of shape {tuple(image.shape)} must be finite and of shape {expected}, got"
                f" {tuple(scores.shape)}.",
            )
            require(torch.equal(image, given), "The method changes its input. Compute on a copy.")

    def test_probabilities(self, method, network):
        for image in self._images(method, network):
            probabilities, scores = method.probabilities(network, image), method(network, image)
            require(
                probabilities.dtype == torch.float32 and probabilities.shape == scores.shape,
                f"probabilities must be float32 and of the shape of the scores, got {probabilities.dtype} of shape"
                f" {tuple(probabilities.shape)}.",
            )
            sums = probabilities.sum(1)
            require_near(sums, torch.ones_like(sums), ROUNDING, "The probabilities of a pixel do not add up to 1")
            require(probabilities.min().item() >= 0, f"A probability is {probabilities.min().item():g}, below 0.")
            agreeing = (probabilities.argmax(1) == scores.argmax(1)).float().mean()
            require(
                agreeing.item() > 0.999,  # equal but for rounding
                f"The class with the highest score is that of the highest probability at {100 * agreeing:.1f} % of the"
                " pixels only: both must predict the same.",
            )

    def test_batches(self, method, network):
        """The scores of an image do not depend on the others of its batch."""
        for image in self._images(method, network):
            sentence = "The scores of an image differ in a batch of one"
            require_near(method(network, image[:1]), method(network, image)[:1], ROUNDING, sentence)

    def test_whole_image(self, method, network):
        if self.whole_up_to is None:
            return
        image = torch.rand(1, 3, self.whole_up_to, self.whole_up_to - 1)
        sentence = f"The scores of an image of {self.whole_up_to} pixels differ from those of one pass over the image"
        require_near(method(network, image), WholeImage()(network, image), ROUNDING, sentence)

    def test_name(self, method):
        """Its ``repr``, which every evaluation records, is the same in another process."""
        require(
            repr(method) == repr(self.make()) and " at 0x" not in repr(method),
            f"The repr of the method, {method!r}, must name its settings: make it a dataclass, or define __repr__.",
        )
