"""The formats of ``fcnlab export``: how a file of each is written and opened again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from fcnlab.inference import WholeImage
from fcnlab.models.weights import SUFFIX
from fcnlab.publication.export_facts import interface
from fcnlab.publication.exported_program import (
    ImageSize,
    Program,
    Runner,
    export_program,
    open_program,
    save_program,
)
from fcnlab.publication.onnx_file import OPSET, check_onnx_installed, open_onnx, save_onnx
from fcnlab.training.checkpoints import TrainedNet, read_nets
from fcnlab.training.segmenter import Segmenter
from fcnlab.training.speed import prefers_channels_last
from fcnlab.training.weights_file import write_weights_file


class Request(NamedTuple):
    """What to export: a trained network, for one size of images or for all, with its scores or without.

    ``trust`` are packages, and ``folders`` config folders, that the user has typed.
    """

    trained: TrainedNet
    static: ImageSize | None
    with_scores: bool
    trust: Sequence[str]
    folders: Sequence[Path]

    @property
    def minimum(self) -> int:
        """The network's own smallest size."""
        return WholeImage().minimum_image_size(self.trained.net)

    def program(self, with_scores: bool) -> Program:
        return export_program(self.trained.net, self.minimum, self.static, with_scores)

    def interface(self, smallest: int) -> dict[str, Any]:
        return interface(smallest, self.static, len(self.trained.classes), self.with_scores)


@runtime_checkable  # by make test-slow, which checks annotations
class Export(Protocol):
    """A network that is ready to be written."""

    facts: dict[str, Any]  # of this format
    smallest: int  # pixels on each side of an image

    def write(self, path: Path, facts: Mapping[str, Any]) -> None: ...

    def open(self, path: Path) -> Runner | None:
        """Return what the file computes; None where no installed package runs it."""
        ...


@runtime_checkable
class Format(Protocol):
    """A kind of file. ``is_program``: it runs without fcnlab, so ``static`` and ``scores`` have a meaning."""

    suffix: str
    is_program: bool

    def check_installed(self) -> None: ...

    def export(self, request: Request) -> Export: ...


class TorchExport:
    """A program of torch.export: ``torch.export.load(FILE).module()(image)``."""

    suffix, is_program = ".pt2", True

    def check_installed(self) -> None:
        """torch is always installed."""

    def export(self, request: Request) -> Export:
        return _ExportedProgram(request)


class _ExportedProgram:
    def __init__(self, request: Request):
        self.program = request.program(request.with_scores)
        self.smallest = self.program.smallest
        self.facts = {"format": "torch_export", "torch": torch.__version__, **request.interface(self.smallest)}

    def write(self, path: Path, facts: Mapping[str, Any]) -> None:
        save_program(self.program, path, facts)

    def open(self, path: Path) -> Runner:
        return open_program(path)


class Onnx:
    """ONNX, for onnxruntime and others."""

    suffix, is_program = ".onnx", True

    def check_installed(self) -> None:
        check_onnx_installed()

    def export(self, request: Request) -> Export:
        return _ExportedOnnx(request)


class _ExportedOnnx:
    def __init__(self, request: Request):
        self.program, self.with_scores = request.program(with_scores=True), request.with_scores
        self.smallest = self.program.smallest
        self.facts = {"format": "onnx", "opset": OPSET, **request.interface(self.smallest)}

    def write(self, path: Path, facts: Mapping[str, Any]) -> None:
        save_onnx(self.program, path, facts, self.with_scores)

    def open(self, path: Path) -> Runner | None:
        return open_onnx(path)


class Safetensors:
    """Weights with the record of the checkpoint: ``fcnlab.load(FILE)``."""

    suffix, is_program = SUFFIX, False

    def check_installed(self) -> None:
        """safetensors is always installed."""

    def export(self, request: Request) -> Export:
        return _ExportedWeights(request)


class _ExportedWeights:
    def __init__(self, request: Request):
        self.request, self.smallest = request, request.minimum
        self.facts = {"format": "safetensors", "smallest": self.smallest}

    def write(self, path: Path, facts: Mapping[str, Any]) -> None:
        write_weights_file(path, self.request.trained.net, self.request.trained.checkpoint, facts)

    def open(self, path: Path) -> Runner:
        (trained,) = read_nets(path, self.request.trust, self.request.folders)
        return runner_of(trained)


FORMATS: dict[str, Format] = {"onnx": Onnx(), "torch_export": TorchExport(), "safetensors": Safetensors()}


def runner_of(trained: TrainedNet) -> Runner:
    """Return a function that computes the class map of ``fcnlab predict`` in single precision, and the scores."""
    channels_last = prefers_channels_last(trained.net, on_gpu=False)
    segmenter = Segmenter(trained.net, trained.classes, channels_last=channels_last, row_blocks=True).eval()

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            return segmenter.predict_step({"image": images}), segmenter(images).float()

    return run
