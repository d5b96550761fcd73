"""Fully convolutional networks, written once: FCN-32s, 16s and 8s differ in the levels that they score."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from fcnlab.config.ranges import NumClasses, Positive
from fcnlab.models.backbone import Backbone, backbone_name
from fcnlab.models.frozen_norm import freeze_norms, has_statistics
from fcnlab.models.geometry import IMAGE, FeatureMap, add
from fcnlab.models.network import SMALL_IMAGE, Network, rehearse
from fcnlab.models.published import as_ours
from fcnlab.models.upsampling import CoarseScores, Upsample
from fcnlab.models.weights import WeightsError, load_strictly, read_labelled


class FCN(Network):
    """Score some levels of a backbone and fuse them from coarse to fine (Long, Shelhamer & Darrell, CVPR 2015, 4.2).

    Parameters
    ----------
    backbone
        See :mod:`fcnlab.models.backbone`.
    num_classes
        With background, without the ignore index.
    levels
        From coarse to fine: (32,) is FCN-32s, (32, 16) FCN-16s, (32, 16, 8) FCN-8s.
    upsampling
        ``"fixed"``: bilinear everywhere, as in the released networks. ``"learned"``: the steps between levels start as
        bilinear and are learned, the last one stays fixed (CVPR 2015, section 4.3). ``"learned_all"``: the last, too.
    skip_scales
        By level, what its features are multiplied by before they are scored, in place of the backbone's own factor.
        "At once" training of VGG16 wants {16: 0.01, 8: 0.0001}, so that features of all levels are of one magnitude
        (voc-fcn8s-atonce/net.py).
    frozen_norm
        Keep the statistics of the backbone's batch normalisations as its weights bring them
        (:mod:`fcnlab.models.frozen_norm`).
    frozen_until
        The level up to which the backbone's layers stay as they are, or None for no level. Without gradients at the
        finest strides, a step takes less time (docs/explanation/performance.md).
    weights
        A checkpoint of fcnlab to start from, or one of pytorch-fcn's files (:mod:`fcnlab.models.published`); ``"none"``
        for none. The checkpoint may have fewer levels: the missing heads start at zero, as when FCN-16s starts from
        FCN-32s.
    reset_heads
        Take only the backbone from ``weights``, for another set of classes.
    """

    backbone_path = "backbone"
    scores_rows_alone = True

    def __init__(
        self,
        backbone: Backbone,
        num_classes: NumClasses,
        levels: Sequence[int] = (32, 16, 8),
        upsampling: Literal["fixed", "learned", "learned_all"] = "fixed",
        skip_scales: Mapping[int, Positive] | None = None,
        frozen_norm: bool = False,
        frozen_until: int | None = None,
        weights: str = "none",
        reset_heads: bool = False,
    ):
        super().__init__()
        _check(backbone, num_classes, levels, upsampling)
        self.backbone = backbone
        self.num_classes = num_classes
        self.levels = tuple(levels)
        self.skip_scales = dict(skip_scales or {})
        self.heads = nn.ModuleDict(
            {str(level): _head(backbone.levels[level].channels, num_classes) for level in levels}
        )
        grids = [backbone.levels[level].grid for level in levels] + [IMAGE]
        learned = [upsampling != "fixed"] * (len(levels) - 1) + [upsampling == "learned_all"]
        self.upsample = nn.ModuleList(
            Upsample(num_classes, source, target, learn)
            for source, target, learn in zip(grids[:-1], grids[1:], learned, strict=True)
        )
        self.pretrained, self.frozen_until = backbone.pretrained, frozen_until
        if frozen_norm:
            _freeze_norms(backbone)
        if frozen_until is not None:
            _freeze_until(backbone, frozen_until)
        if weights != "none":
            self._start_from(weights, reset_heads)
        elif reset_heads:
            warnings.warn("model.reset_heads=true has no effect without model.weights", stacklevel=2)

    @property
    def channels_last_on_cpu(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        return getattr(self.backbone, "channels_last_on_cpu", False)  # a user's own backbone need not define it

    @property
    def min_size(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.backbone.min_size

    @property
    def title(self) -> str:
        return f"{self._variant} on {backbone_name(self.backbone)}"

    @property
    def description(self) -> str:
        strides = ", ".join(map(str, self.levels))
        return f"{self._variant} (strides {strides}), backbone {backbone_name(self.backbone)}"

    @property
    def _variant(self) -> str:
        return f"{type(self).__name__}-{self.levels[-1]}s"

    @property
    def compiled_part(self) -> nn.Module:
        assert isinstance(self.backbone, nn.Module)
        return self.backbone

    def coarse(self, image: Float[Tensor, "batch 3 rows cols"]) -> CoarseScores:
        """Return the scores before the last upsampling, for what can do with some rows of it at a time."""
        last = self.upsample[-1]
        assert isinstance(last, Upsample)
        return CoarseScores(self.fused(image), last, FeatureMap(image, *IMAGE))

    def fused(self, image: Float[Tensor, "batch 3 rows cols"]) -> FeatureMap:
        """The scores of all levels together, at the finest level's stride."""
        if min(image.shape[2:]) < self.min_size:
            raise ValueError(
                f"an image of {image.shape[2]}x{image.shape[3]} pixels is too small for"
                f" {backbone_name(self.backbone)}: it needs {self.min_size} on each side"
            )
        features = self.backbone(image)
        fused, *skips = (self.score(level, features[level]) for level in self.levels)
        for step, skip in zip(self.upsample, skips, strict=False):  # the last step is the one to the image
            fused = add(step(fused), skip)
        return fused

    def score(self, level: int, features: FeatureMap) -> FeatureMap:
        """A level's own scores, at its own stride."""
        return FeatureMap(self.heads[str(level)](features.data * self._scale(level)), features.stride, features.origin)

    def _scale(self, level: int) -> float:
        return self.skip_scales.get(level, self.backbone.levels[level].scale)

    def _start_from(self, path: str, reset_heads: bool) -> None:
        state, label = read_labelled(path)
        state = {key.removeprefix("net."): value for key, value in state.items()}
        scales = {level: self._scale(level) for level in self.levels}
        steps = [step for step in self.upsample if isinstance(step, Upsample)]
        state = as_ours(state, label, path, backbone=self.backbone, scales=scales, steps=steps, heads=not reset_heads)
        old = {key: value for key, value in state.items() if not (reset_heads and not key.startswith("backbone."))}
        fresh = {key: value for key, value in self.state_dict().items() if key not in old and _may_start_afresh(key)}
        head = next((value for key, value in old.items() if key.startswith("heads.")), None)
        if head is not None and head.ndim and len(head) != self.num_classes:
            raise WeightsError(
                f"model.weights={path} scores {len(head)} classes, the data has {self.num_classes}:"
                " set model.reset_heads=true to keep its backbone only"
            )
        load_strictly(self, old | fresh, f"model.weights={path}")
        self.pretrained = True


def _freeze_norms(backbone: Backbone) -> None:
    assert isinstance(backbone, nn.Module)
    rows, cols = _small_size(backbone)
    values = torch.linspace(0, 1, 3 * rows * cols, device=next(backbone.parameters()).device)
    image = values.view(1, rows, cols, 3).permute(0, 3, 1, 2)  # every pixel differs, since features are compared
    if not freeze_norms(backbone, image):
        name = backbone_name(backbone)
        warnings.warn(f"model.frozen_norm=true has no effect: {name} has no batch normalisation", stacklevel=3)


def _freeze_until(backbone: Backbone, level: int) -> None:
    """Freeze the parameters that the features of a level depend on."""
    assert isinstance(backbone, nn.Module)
    if level not in backbone.levels:
        raise ValueError(f"frozen_until={level}: choose one of {sorted(backbone.levels)} or null")
    if any(map(has_statistics, backbone.modules())):
        raise ValueError(
            f"frozen_until={level} needs frozen_norm=true: batch normalisations of the frozen layers would still change"
        )

    def gradients(shadow: nn.Module, image: Tensor) -> set[str]:
        shadow(image)[level].data.sum().backward()
        return {name for name, parameter in shadow.named_parameters() if parameter.grad is not None}

    for name in rehearse(backbone, _small_size(backbone), gradients):
        backbone.get_parameter(name).requires_grad_(False)


def _small_size(backbone: Backbone) -> tuple[int, int]:
    side = max(backbone.min_size, SMALL_IMAGE)
    return side, side


def _may_start_afresh(key: str) -> bool:
    return key.startswith(("heads.", "upsample."))


def _head(channels: int, num_classes: int) -> nn.Conv2d:
    """A score layer; it starts at zero, since a random start gave nothing (CVPR 2015, section 4.3)."""
    head = nn.Conv2d(channels, num_classes, 1)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head


def _check(backbone: Backbone, num_classes: int, levels: Sequence[int], upsampling: str) -> None:
    name, offered = backbone_name(backbone), sorted(backbone.levels, reverse=True)
    if not levels or list(levels) != sorted(set(levels), reverse=True) or not set(levels) <= set(offered):
        raise ValueError(f"levels={list(levels)}: choose some of {offered}, which {name} offers, from coarse to fine")
    if num_classes < 2:
        raise ValueError(f"num_classes={num_classes}: at least 2, background included")
    if upsampling not in ("fixed", "learned", "learned_all"):
        raise ValueError(f"upsampling={upsampling!r}: choose 'fixed', 'learned' or 'learned_all'")
    if upsampling == "learned" and len({backbone.levels[level].grid.stride for level in levels}) == 1:
        what = "a single level" if len(levels) == 1 else "levels of one stride"
        warnings.warn(
            f"model.upsampling=learned has no effect with {what}: the last upsampling stays fixed", stacklevel=3
        )
