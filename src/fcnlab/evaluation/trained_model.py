"""A trained model in Python: load a checkpoint, predict images."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from numpy import ndarray
from PIL import Image

from fcnlab.data.image_files import as_rgb, check_depth, read_image
from fcnlab.errors import UserError
from fcnlab.escaping import escape_terminal
from fcnlab.inference import InferenceMethod, NoPostprocess, Postprocess, WholeImage
from fcnlab.models import Network
from fcnlab.training.checkpoints import read_nets
from fcnlab.training.segmenter import Segmenter
from fcnlab.training.speed import prefers_channels_last

OneImage = str | Path | Image.Image | ndarray  # an array: uint8, (rows, cols, 3), RGB
Labels = UInt8[ndarray, "rows cols"]
Probabilities = Float32[ndarray, "classes rows cols"]


def load(
    checkpoint: str | Path | Sequence[str | Path],
    device: str | torch.device | None = None,
    inference: InferenceMethod | None = None,
    postprocess: Postprocess | None = None,
    trust: Sequence[str] = (),
) -> "TrainedModel":
    """Return the trained model of a checkpoint of ``fcnlab train``.

    The file is read as data: it can come from anyone.

    Parameters
    ----------
    checkpoint
        Such as ``RUN/checkpoints/best.ckpt``; the run's folder is not needed. A ``.safetensors`` file of ``fcnlab
        export`` is a checkpoint, too. ``wandb:ENTITY/PROJECT/NAME:ALIAS`` downloads the checkpoint of an artifact in
        W&B. A list is an ensemble: the class probabilities of its networks, which have the same classes, are averaged.
    device
        Such as "cpu" or "cuda:1". None: the GPU if there is one, otherwise the CPU.
    inference, postprocess
        As ``inference=`` and ``postprocess=`` of ``fcnlab predict``, such as ``fcnlab.inference.Flip()``. None: one
        pass over the whole image, without post-processing.
    trust
        Packages whose classes the checkpoint may use. Their code runs.

    Raises
    ------
    UserError
        The file does not exist, is damaged, was not written by fcnlab, or uses classes of other packages; an argument
        is no device or method; or a package that ``postprocess`` needs is not installed.
    """
    _check_method("inference", inference, InferenceMethod, "fcnlab.inference.Flip()")
    _check_method("postprocess", postprocess, Postprocess, "fcnlab.inference.GuidedFilter()")
    device = _device(device)
    trained = read_nets(checkpoint, trust)
    postprocess = postprocess or NoPostprocess()
    postprocess.check_installed()
    nets, facts = [each.net for each in trained], trained[0].checkpoint["fcnlab"]
    palette = np.array(facts["palette"], np.uint8)
    return TrainedModel(nets, facts["classes"], palette, device, inference or WholeImage(), postprocess)


def _check_method(name: str, value: object, kind: type, example: str) -> None:
    if value is not None and not isinstance(value, kind):
        raise UserError(f"{name}={value!r} is no {kind.__name__}: give an object such as {example}")


def _device(name: str | torch.device | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError:
        raise UserError(
            f"device={name} is no device of torch: choose cpu, cuda, or cuda:1 for the second GPU"
        ) from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device={name}: torch finds {torch.cuda.device_count()} GPUs here. Choose another device or cpu"
        )
    return device


class TrainedModel:
    """A trained model that predicts single images; :func:`load` returns one.

    Attributes
    ----------
    net
        The network, in evaluation mode: RGB images in 0..1, (batch, 3, rows, cols), to class scores. Of an ensemble,
        the first one.
    nets
        All networks.
    classes
        Names, by class id.
    palette
        RGB of each class, uint8, (classes, 3).
    """

    def __init__(
        self,
        nets: Sequence[Network],
        classes: Sequence[str],
        palette: UInt8[ndarray, "classes 3"],
        device: torch.device,
        inference: InferenceMethod,
        postprocess: Postprocess,
    ):
        self.device = device
        self.classes, self.palette = tuple(classes), palette
        self._min_size = max(map(inference.minimum_image_size, nets))
        self._segmenter = Segmenter(
            nets[0],
            classes,
            channels_last=prefers_channels_last(nets[0], on_gpu=self.device.type == "cuda"),
            row_blocks=True,
            inference=inference,
            postprocess=postprocess,
            ensemble=nets[1:],
        )
        self._segmenter.to(self.device).eval()

    def __repr__(self) -> str:
        networks = escape_terminal(", ".join(net.title for net in self.nets))
        return f"<TrainedModel: {networks}, {len(self.classes)} classes, {self.device}>"

    @property
    def net(self) -> Network:
        return self._segmenter.net

    @property
    def nets(self) -> list[Network]:
        return self._segmenter.nets

    @overload
    def predict(self, image: OneImage) -> Labels: ...
    @overload
    def predict(self, image: Sequence[OneImage]) -> list[Labels]: ...
    def predict(self, image):
        """Return the class ids of an image's pixels, those that ``fcnlab predict`` writes in single precision.

        Parameters
        ----------
        image
            A file, a PIL image, or a uint8 array (rows, cols, 3) of RGB, of any size; or a list of these, for which a
            list is returned. Orientation in EXIF data is ignored, as in training.

        Raises
        ------
        ValueError
            The image is smaller than the model requires, or an array of another type or shape.
        DataError
            A file is missing, damaged, too large, or has more than 8 bits per channel.
        """
        if isinstance(image, list | tuple):
            return [self.predict(each) for each in image]
        with torch.inference_mode():
            labels = self._segmenter.predict_step({"image": self._batch(image)})
        return labels[0].byte().cpu().numpy()

    @overload
    def probabilities(self, image: OneImage) -> Probabilities: ...
    @overload
    def probabilities(self, image: Sequence[OneImage]) -> list[Probabilities]: ...
    def probabilities(self, image):
        """Return the class probabilities of an image's pixels; the arguments and errors are those of :meth:`predict`.

        Their argmax is the prediction, except where the two highest probabilities are equal in single precision.
        """
        if isinstance(image, list | tuple):
            return [self.probabilities(each) for each in image]
        with torch.inference_mode():
            return self._segmenter.probabilities(self._batch(image).float() / 255)[0].cpu().numpy()

    def _batch(self, image: OneImage) -> UInt8[torch.Tensor, "1 3 rows cols"]:
        pixels = _pixels(image)
        rows, cols = pixels.shape[:2]
        if min(rows, cols) < self._min_size:
            name = f"{image}" if isinstance(image, str | Path) else "the image"
            raise ValueError(f"{name} must have at least {self._min_size} pixels on each side, but has {rows}x{cols}")
        return torch.from_numpy(pixels).permute(2, 0, 1)[None].to(self.device)


def _pixels(image: OneImage) -> UInt8[ndarray, "rows cols 3"]:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        check_depth(image, "the image")
        return as_rgb(image)
    if not isinstance(image, ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        kind = f"{image.dtype} of {image.shape}" if isinstance(image, ndarray) else type(image).__name__
        raise ValueError(
            f"the image must be a file, a PIL image, or a uint8 array of (rows, cols, 3), got {kind}{_advice(image)}"
        )
    return np.array(image)  # a copy: torch refuses arrays that are read-only or run backwards


def _advice(image: object) -> str:
    """Return how to convert an array, where that is likely to be meant."""
    if not isinstance(image, ndarray):
        return ""
    if image.ndim == 2:
        return ": np.stack([image] * 3, axis=-1) makes three channels of a grey image"
    if image.ndim == 3 and image.shape[0] == 3 != image.shape[2]:
        return ": image.transpose(1, 2, 0) moves the channels to the end"
    if image.ndim == 3 and image.shape[2] == 3 and np.issubdtype(image.dtype, np.floating):
        return ": (image * 255).round().astype(np.uint8) converts values in 0..1"
    return ""
