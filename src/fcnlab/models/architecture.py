"""Networks of other libraries, or of the user's own, as models: U-Net, DeepLab, and whatever else scores pixels."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from fcnlab.config.ranges import Meaning, NumClasses, Pixels, Positive
from fcnlab.errors import UserError, first_line
from fcnlab.models.backbone import IMAGENET_MEAN, IMAGENET_STD, InputConvention
from fcnlab.models.geometry import IMAGE, FeatureMap, crop
from fcnlab.models.network import Network, rehearse
from fcnlab.models.upsampling import CoarseScores, Upsample
from fcnlab.models.weights import StateDict, WeightsError, load_strictly, read_tensors, silence_limited

Channels = Annotated[Sequence[float], Meaning("three numbers, for red, green and blue", lambda value: len(value) == 3)]
Deviations = Annotated[
    Sequence[Positive], Meaning("three numbers above 0, for red, green and blue", lambda value: len(value) == 3)
]
TRIAL = (65, 97)  # rows and columns of an image with which no multiple of a power of two agrees
OUT = "out"  # torchvision's networks return a dict, with the scores under this key and those of a further loss


class Architecture(Network):
    """Any network from normalised images to scores of their size, trained and scored as an FCN is.

    Images are normalised, padded at the right and at the bottom to a size that the network takes (with the mean
    colour), and scores are cropped back. Where the network returns a dict, the scores are those under "out", as
    torchvision's networks have them; no loss is computed on "aux", so an auxiliary classifier is not trained. Nothing
    is resized: scores must have the size of the image.

    Parameters
    ----------
    network
        Builds the network: a class or function with its arguments (``_partial_: true`` in YAML), such as
        ``functools.partial(segmentation_models_pytorch.Unet, encoder_name="resnet18", encoder_weights=None)``.
    num_classes
        With background, without the ignore index.
    mean, std
        The network takes (image - mean) / std of RGB in 0..1; by default ImageNet's.
    size_multiple
        Both sides of an image are padded to multiples of this number of pixels.
    min_size
        Pixels: the shorter side of the smallest image that the network takes.
    backbone
        Name of the network's submodule that starts from pretrained weights, such as ``"encoder"``. ``optim`` has a
        learning rate for it, which can be 0.
    named_weights
        By name for ``weights``, the arguments of the network with which its library fetches trained weights.
    weights
        ``"none"``; a name of ``named_weights``; or the path of a checkpoint of fcnlab, or of a file of the network's
        own tensors.
    reset_heads
        Take only the backbone from a file, for another set of classes.
    title
        A name of the network for readers; empty: that of its class.

    Raises
    ------
    UserError
        The network cannot be built or processes no image, its scores have another size or number of classes, or its
        weights cannot be fetched or do not fit.
    """

    def __init__(
        self,
        network: Callable[..., nn.Module],
        num_classes: NumClasses,
        mean: Channels = IMAGENET_MEAN,
        std: Deviations = IMAGENET_STD,
        size_multiple: Pixels = 1,
        min_size: Pixels = 1,
        backbone: str | None = None,
        named_weights: Mapping[str, Mapping[str, Any]] | None = None,
        weights: str = "none",
        reset_heads: bool = False,
        title: str = "",
    ):
        super().__init__()
        self.num_classes = num_classes
        self.size_multiple, self.min_size = size_multiple, min_size
        self.normalize = InputConvention(mean, std)
        fetched = dict(named_weights or {})
        if "none" in fetched:
            raise UserError("model.named_weights must not name weights 'none', which stands for no weights")
        self.network = _built(network, weights, fetched)
        self._title = title
        self._as_is = Upsample(num_classes, IMAGE, IMAGE)
        self.backbone_path = _backbone_path(self.network, backbone)
        if reset_heads and (weights == "none" or weights in fetched):
            raise UserError(
                "model.reset_heads=true loads only the backbone from a file, and model.weights="
                f"{weights} names no file: set model.weights=PATH, or leave reset_heads out"
            )
        if reset_heads and not self.backbone_path:
            raise UserError(
                "model.reset_heads=true loads only the backbone, and the network names none: set model.backbone to the"
                " name of a submodule, or leave reset_heads out"
            )
        if weights != "none" and weights not in fetched:
            self._start_from(weights, reset_heads, list(fetched))
        self.pretrained = weights != "none" and bool(self.backbone_path)
        self._check()

    @property
    def title(self) -> str:
        return self._title or type(self.network).__name__

    @property
    def description(self) -> str:
        kind = type(self.network)
        return f"{self.title} ({kind.__name__} of {kind.__module__.partition('.')[0]})"

    @property
    def compiled_part(self) -> nn.Module:
        return self.network

    def coarse(self, image: Float[Tensor, "batch 3 rows cols"]) -> CoarseScores:
        """Return the scores of every pixel: no upsampling is left to be done.

        Raises
        ------
        UserError
            They have another size than the image, or another number of classes.
        """
        rows, cols = image.shape[2:]
        padded = F.pad(self.normalize(image), (0, -cols % self.size_multiple, 0, -rows % self.size_multiple))
        scores = self._checked(self.network(padded), padded.shape)
        return CoarseScores(FeatureMap(crop(scores, 0, rows, cols), *IMAGE), self._as_is, FeatureMap(image, *IMAGE))

    def _checked(self, result: Any, shape: torch.Size) -> Tensor:
        """Return the tensor of scores in what the network returns for images of a shape."""
        scores = result[OUT] if isinstance(result, Mapping) and OUT in result else result
        name = type(self.network).__name__
        if not isinstance(scores, Tensor) or scores.ndim != 4:
            kind = f"a tensor of {tuple(scores.shape)}" if isinstance(scores, Tensor) else f"a {type(scores).__name__}"
            raise UserError(
                f"model.network: {name} returns {kind}. It must return scores (batch, classes, rows, columns), or a"
                f" dict with them under {OUT!r}: wrap it in a module of your own that does"
            )
        if scores.shape[1] != self.num_classes:
            raise UserError(
                f"model.network: {name} returns scores of {scores.shape[1]} classes, but the data have"
                f" {self.num_classes}: set its own argument for their number to ${{data.num_classes}}"
            )
        if scores.shape[2:] != shape[2:]:
            sizes = " for images of ".join("x".join(map(str, each[2:])) for each in (scores.shape, shape))
            raise UserError(
                f"model.network: {name} returns scores of {sizes} pixels. Scores must have the size of the image, since"
                " resizing would be a part of the architecture: wrap it in a module of your own that resizes them"
            )
        return scores

    def _check(self) -> None:
        """Try an image of an odd size, so that a network that cannot be used is refused before any long work."""
        rows, cols = (max(side, self.min_size) for side in TRIAL)
        try:
            rehearse(self, (rows, cols), lambda net, image: net(image))
        except UserError:
            raise
        except Exception as error:  # a network of others can raise anything
            raise UserError(
                f"model.network: {type(self.network).__name__} cannot process an image of {rows}x{cols} pixels"
                f" ({type(error).__name__}: {first_line(error)}). If it takes only sizes that a number divides, set"
                " model.size_multiple; if it takes no small images, set model.min_size"
            ) from error

    def _start_from(self, path: str, reset_heads: bool, names: list[str]) -> None:
        if not Path(path).is_file():
            raise WeightsError(
                f"model.weights={path} is no file (relative paths start at {Path.cwd()}), and no weights of the model"
                f" by name: these are {', '.join(['none', *names])}"
            )
        state = own_names(read_tensors(path), self.state_dict().keys())
        kept = {key: value for key, value in state.items() if not reset_heads or self.in_backbone(key)}
        fresh = {key: value for key, value in self.state_dict().items() if reset_heads and not self.in_backbone(key)}
        load_strictly(self, kept | fresh, f"model.weights={path}")


def own_names(state: StateDict, expected: Collection[str]) -> dict[str, Tensor]:
    """Return tensors under the ``expected`` names, those of an :class:`Architecture`.

    They are of a checkpoint, of fcnlab export, or of a network by itself, which may have a part called "network".
    """
    of_checkpoint = {key.removeprefix("net."): value for key, value in state.items() if key.startswith("net.network.")}
    of_network = {f"network.{key}": value for key, value in state.items()}
    return of_checkpoint or max(of_network, dict(state), key=lambda names: len(names.keys() & expected))


def _built(network: Callable[..., nn.Module], weights: str, fetched: Mapping[str, Mapping[str, Any]]) -> nn.Module:
    if isinstance(network, nn.Module):
        raise UserError(
            f"model.network is a {type(network).__name__} that is already built: add _partial_: true below"
            " model.network, so that it is built with the arguments of model.weights"
        )
    name = getattr(getattr(network, "func", network), "__name__", "network")
    try:
        with silence_limited():
            built = network(**fetched.get(weights, {}))
    except Exception as error:  # a library can raise anything, and a download a dozen kinds of error
        reason = f"{type(error).__name__}: {first_line(error)}"
        if weights in fetched and isinstance(error, (TypeError, ValueError, KeyError)):  # a download has other errors
            raise WeightsError(f"model.weights={weights} is not for this {name} ({reason})") from error
        if weights in fetched:
            raise WeightsError(
                f"model.weights={weights} could not be fetched by {name} ({reason}).\nOffline? Bring the library's"
                f" file into its cache on this machine (torchvision's: {Path(torch.hub.get_dir(), 'checkpoints')}),"
                " or set model.weights to the path of a file with the network's tensors, or to none."
            ) from error
        raise UserError(f"model.network: {name} cannot be built with these arguments ({reason})") from error
    if not isinstance(built, nn.Module):
        raise UserError(f"model.network: {name} returns a {type(built).__name__}, not a torch.nn.Module")
    return built


def _backbone_path(network: nn.Module, backbone: str | None) -> str:
    parts = [name for name, _ in network.named_children()]
    if backbone is not None and backbone not in parts:
        raise UserError(
            f"model.backbone={backbone} is no submodule of {type(network).__name__}: choose {', '.join(parts)} or null"
        )
    return f"network.{backbone}" if backbone else ""
