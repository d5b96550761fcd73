"""The conformance suite of a backbone."""

import copy
import io
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from fcnlab.models import FCN, FeatureMap, receptive_field
from fcnlab.models.backbone import Backbone, Chain, Level
from fcnlab.models.measured_grids import GridError, MeasuredLevel, measure_grids
from fcnlab.testing.checks import require, require_near

# Rows and columns of images: even and odd, wide and tall; smaller ones than the minimum are enlarged.
SIZES = ((1, 1), (2, 3), (33, 50), (97, 64), (128, 225), (257, 160), (333, 500), (600, 599))
TRIAL = (97, 130)  # rows and columns of an image that is computed
ROUNDING = 1e-3  # relative error between two ways to compute the same in single precision
HALF_PRECISION = 0.1  # relative error in bfloat16
ATTRIBUTES = ("levels", "min_size", "pretrained", "channels_last_on_cpu")


class BackboneContract:
    """Tests of a :class:`~fcnlab.models.backbone.Backbone`: declarations, positions of features, and how it computes.

    Most sizes of images are computed on torch's meta device, which takes no time and no memory, so a large backbone is
    tested in seconds.
    """

    def make(self) -> Backbone:
        """Return a new backbone, with the arguments that you want to test."""
        raise NotImplementedError("return your backbone from make")

    @pytest.fixture
    def backbone(self) -> Iterator[nn.Module]:
        """The backbone, for evaluation; the random state of the caller is kept."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            backbone = self.make()
            require(isinstance(backbone, nn.Module), f"make returns a {type(backbone).__name__}, not an nn.Module.")
            missing = [name for name in ATTRIBUTES if not hasattr(backbone, name)]
            require(not missing, f"The backbone has no attribute {', '.join(missing)}. Set it, as Backbone describes.")
            yield cast(nn.Module, backbone).eval()

    def test_declarations(self, backbone):
        levels = backbone.levels
        require(
            isinstance(levels, dict) and len(levels) > 0 and all(isinstance(each, Level) for each in levels.values()),
            f"levels must be a dict of names (8, 16, 32) and Level(channels, grid), got {levels!r:.200}.",
        )
        require(
            isinstance(backbone.min_size, int) and backbone.min_size >= 1,
            f"min_size must be a number of pixels of at least 1, got {backbone.min_size!r}.",
        )
        for name in ("pretrained", "channels_last_on_cpu"):
            value = getattr(backbone, name)
            require(isinstance(value, bool), f"{name} must be True or False, got {value!r}.")
        for finer, coarser in pairwise(sorted(levels)):
            first, second = levels[finer].grid.stride, levels[coarser].grid.stride
            require(
                second % first == 0,
                f"The stride of level {coarser}, {second}, must be a multiple of that of level {finer}, {first}.",
            )

    def test_feature_maps(self, backbone):
        """Each level has its declared channels, grid and stride, at all sizes."""
        shadow = copy.deepcopy(backbone).to("meta")
        for size in _sizes(backbone):
            features = _features(shadow, torch.empty(2, 3, *size, device="meta"))
            for name, level in backbone.levels.items():
                shape, where = features[name].data.shape, f"Level {name} of an image of {size[0]}x{size[1]} pixels"
                require(
                    len(shape) == 4 and tuple(shape[:2]) == (2, level.channels),
                    f"{where} must have the shape (2, {level.channels}, rows, cols), got {tuple(shape)}. Change the"
                    " channels in levels, or the order of the dimensions.",
                )
                require(
                    features[name].grid == level.grid,
                    f"{where} says {features[name].grid}, but levels declares {level.grid}. Pass the declared grid to"
                    " FeatureMap.",
                )
                wider = _features(
                    shadow, torch.empty(2, 3, *(each + level.grid.stride for each in size), device="meta")
                )
                more = tuple(large - small for large, small in zip(wider[name].data.shape, shape, strict=True))[2:]
                require(
                    more == (1, 1),
                    f"{where} gains {more[0]} rows and {more[1]} columns of cells with {level.grid.stride} more pixels,"
                    " instead of 1: the declared stride is wrong.",
                )

    def test_scores_cover_the_image(self, backbone):
        """An FCN on all levels scores every pixel, at all sizes."""
        shadow = _fcn(backbone).to("meta")
        for rows, cols in _sizes(backbone):
            try:
                shape = tuple(shadow(torch.empty(1, 3, rows, cols, device="meta")).shape)
                problem = f"the scores have the shape {shape}"
            except (AssertionError, RuntimeError, ValueError) as error:
                shape, problem = None, str(error)
            require(
                shape == (1, 2, rows, cols),
                f"An FCN on this backbone does not score all pixels of an image of {rows}x{cols}: {problem}. Pad the"
                " image in the backbone by more pixels, or raise min_size.",
            )

    def test_origins_and_strides(self, backbone):
        """The declared grids are those that the gradients of the network show."""
        measured = self._measured(backbone)
        for name, level in backbone.levels.items():
            for word in ("stride", "origin"):
                declared, found = getattr(level.grid, word), getattr(measured[name].grid, word)
                require(
                    declared == found,
                    f"Level {name} declares {word} {declared:g}, but its cells are at {word} {found:g}: the scores"
                    f" would be shifted against the image. Declare Level(..., Grid({measured[name].grid.stride},"
                    f" {measured[name].grid.origin:g})), or change the padding of a layer.",
                )

    def test_receptive_fields(self, backbone):
        """The receptive fields that a Chain computes from its layers are those that gradients show."""
        if not isinstance(backbone, Chain):
            return
        for name, level in self._measured(backbone).items():
            declared = receptive_field(backbone.chain(name))
            require(
                declared == level.receptive_field,
                f"The layers of level {name} have a receptive field of {declared} pixels, but a cell sees"
                f" {level.receptive_field}: chain({name}) must list each layer between the image and the level.",
            )

    def _measured(self, backbone: nn.Module) -> dict[int, MeasuredLevel]:
        try:
            found = measure_grids(_Tensors(backbone))
        except GridError as error:
            pytest.fail(f"The positions of the features cannot be measured: {error}", pytrace=False)
        require(
            found.frame.remainder is None,
            "The declared grids are wrong for some sizes of images: the origins move with the size, or cells are"
            " missing at the end. Pad images in the backbone to"
            f" {found.frame.step} k + {found.frame.remainder} pixels.",
        )
        return found.levels

    def test_channels_last(self, backbone):
        image = _image(backbone)
        expected = _tensors(backbone, image)
        other = copy.deepcopy(backbone).to(memory_format=torch.channels_last)
        for name, actual in _tensors(other, image.contiguous(memory_format=torch.channels_last)).items():
            require_near(actual, expected[name], ROUNDING, f"Level {name} differs in the memory format channels_last")

    def test_bfloat16_autocast(self, backbone):
        image = _image(backbone)
        expected = _tensors(backbone, image)
        with torch.autocast("cpu", torch.bfloat16):
            actual = _tensors(backbone, image)
        for name, values in actual.items():
            sentence = f"Level {name} differs in half precision, which trainer.precision=auto uses on GPUs"
            require_near(values, expected[name], HALF_PRECISION, sentence)

    def test_compiled(self, backbone):
        """With speed.compile=true the backbone computes the same; the compiler's own code is not generated here."""
        image = _image(backbone)
        expected = _tensors(backbone, image)
        torch.compiler.reset()
        compiled = torch.compile(_Tensors(backbone), backend="aot_eager")
        with torch.no_grad():
            for name, actual in compiled(image).items():
                require_near(actual, expected[name], ROUNDING, f"Level {name} differs after torch.compile")
        torch.compiler.reset()

    def test_exported(self, backbone):
        """torch.export writes it for images of any size."""
        auto, image = torch.export.Dim.AUTO, _image(backbone)[:1]
        other = torch.rand(1, 3, image.shape[2] + 37, image.shape[3] + 6)
        with torch.no_grad():
            exported = torch.export.export(_Tensors(backbone), (image,), dynamic_shapes=({2: auto, 3: auto},))
            for name, actual in exported.module()(other).items():
                sentence = f"Level {name} differs at another image size after torch.export"
                require_near(actual, _tensors(backbone, other)[name], ROUNDING, sentence)

    def test_meta_device(self, backbone):
        """It can be built without memory, as the checks of a checkpoint and of a cost estimate do."""
        with torch.device("meta"):
            parameters = dict(cast(nn.Module, self.make()).named_parameters())
        real = [name for name, value in parameters.items() if not value.is_meta]
        require(not real, f"{', '.join(real[:3])} takes memory on the meta device. Create it without device=.")

    def test_minimum_size(self, backbone):
        least, network = backbone.min_size, _fcn(backbone)
        with torch.no_grad():
            scores = network(torch.rand(1, 3, least, least))
            require(
                bool(scores.isfinite().all()),
                f"An image of {least}x{least} pixels, the declared min_size, gives scores that are not finite.",
            )
            if least > 1:
                with pytest.raises(ValueError, match="too small"):
                    network(torch.rand(1, 3, least, least - 1))

    def test_state_dict(self, backbone):
        """A checkpoint of it rebuilds the same network."""
        file, image = io.BytesIO(), _image(backbone)
        torch.save(backbone.state_dict(), file)
        file.seek(0)
        other = cast(nn.Module, self.make()).eval()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
        other.load_state_dict(torch.load(file, weights_only=True))
        expected = _tensors(backbone, image)
        for name, actual in _tensors(other, image).items():
            require(
                torch.equal(actual, expected[name]),
                f"Level {name} differs after its state dict was loaded into a new backbone: register each tensor that"
                " affects the result as a parameter or buffer.",
            )

    def test_evaluation_is_deterministic(self, backbone):
        """In evaluation the same images give the same features, and no image depends on the others of its batch."""
        image = _image(backbone)
        first, second, alone = (_tensors(backbone, each) for each in (image, image, image[:1]))
        for name, expected in first.items():
            require(
                torch.equal(second[name], expected),
                f"Level {name} differs between two evaluations of the same images: switch random layers off in eval().",
            )
            sentence = f"Level {name} of an image depends on the other images of its batch in evaluation"
            require_near(alone[name], expected[:1], ROUNDING, sentence)

    def test_gradients(self, backbone):
        """A training step reaches every parameter."""
        backbone.train()
        features = _features(backbone, _image(backbone))
        sum((each.data.square().mean() for each in features.values()), torch.zeros(())).backward()
        named = [(name, value.grad) for name, value in backbone.named_parameters() if value.requires_grad]
        unused = [name for name, gradient in named if gradient is None]
        require(not unused, f"No level depends on {', '.join(unused[:3])}. Remove these layers, or use them.")
        wrong = [name for name, gradient in named if gradient is not None and not gradient.isfinite().all()]
        require(not wrong, f"The gradient of {', '.join(wrong[:3])} is not finite.")


class _Tensors(nn.Module):
    """The features of a backbone as tensors."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        return {name: features.data for name, features in self.backbone(image).items()}


def _tensors(backbone: nn.Module, image: Tensor) -> dict[int, Tensor]:
    with torch.no_grad():
        return {name: features.data for name, features in _features(backbone, image).items()}


def _features(backbone: nn.Module, image: Tensor) -> Mapping[int, FeatureMap]:
    features, levels = backbone(image), cast(Backbone, backbone).levels
    kinds = sorted({type(each).__name__ for each in features.values()})
    require(
        features.keys() == levels.keys() and kinds == ["FeatureMap"],
        f"The backbone must return a FeatureMap for each of the levels {sorted(levels)}, got {', '.join(kinds)} for"
        f" {sorted(features)}.",
    )
    return features


def _fcn(backbone: nn.Module) -> FCN:
    """Return a network on all levels of the backbone, whose scores are not all zero."""
    copied = cast(Backbone, copy.deepcopy(backbone))
    network = FCN(copied, num_classes=2, levels=sorted(copied.levels, reverse=True)).eval()
    for head in network.heads.parameters():
        nn.init.normal_(head, std=0.01)
    return network


def _sizes(backbone: nn.Module) -> list[tuple[int, int]]:
    least = int(cast(Backbone, backbone).min_size)
    return list(dict.fromkeys((max(rows, least), max(cols, least)) for rows, cols in SIZES))


def _image(backbone: nn.Module) -> Tensor:
    """Return two random images of at least the minimum size."""
    return torch.rand(2, 3, *(max(length, int(cast(Backbone, backbone).min_size)) for length in TRIAL))
