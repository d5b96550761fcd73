"""A network as a program of torch.export: images in bytes to class maps, for images of any size."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from fcnlab.errors import UserError, first_line
from fcnlab.library_internals.torch import TorchDispatchMode
from fcnlab.messages import only_from

Images = UInt8[Tensor, "batch 3 rows cols"]
ClassMap = UInt8[Tensor, "batch rows cols"]
ScoreMap = Float[Tensor, "batch classes rows cols"]
Runner = Callable[[Tensor], tuple[Tensor, Tensor]]  # images to class map and scores
ImageSize = tuple[int, int]  # rows and columns

INPUT, CLASS_MAP, SCORES = "image", "class_map", "scores"
FACTS = "fcnlab.json"  # in a file of torch.export
EXAMPLE = (2, 97, 130)  # batch, rows and columns: all different, and some cells of the coarsest level on each side
LARGEST = 8192  # pixels on a side, up to which every image must be accepted
ROUND = 20_160  # pixels on a side; divisible by 64 and by every number up to 10
LARGEST_SMALLEST = 1024  # pixels on each side, below which a size must be accepted


class BytesToClasses(nn.Module):
    """What ``fcnlab predict`` computes with ``inference=whole`` and ``postprocess=none``: normalisation to argmax."""

    def __init__(self, net: nn.Module, with_scores: bool):
        super().__init__()
        self.net, self.with_scores = net, with_scores

    def forward(self, image: Tensor) -> Any:
        scores = self.net(image.float() / 255).float()
        class_map = scores.argmax(1).to(torch.uint8)  # the first of equal scores
        return (class_map, scores) if self.with_scores else class_map


class Program(NamedTuple):
    """An exported network, and the least number of pixels on each side of its images."""

    exported: ExportedProgram
    smallest: int


def export_program(net: nn.Module, minimum: int, static: ImageSize | None, with_scores: bool) -> Program:
    """Export a network; ``minimum`` is its own smallest size.

    ``static`` fixes the images: one at a time, of this size. Otherwise the batch and both sides are free. torch.export
    fixes a side that is one cell long, so an image whose coarsest level is one cell wide is too small for the program.

    Raises
    ------
    UserError
        torch.export cannot trace the network.
    """
    auto = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    batch, *size = (1, *static) if static else EXAMPLE
    example = torch.zeros(batch, 3, *size, dtype=torch.uint8)
    network = BytesToClasses(net.to(memory_format=torch.contiguous_format), with_scores).eval()
    try:
        # An inequality of sizes that sympy cannot solve stays a check of the program; torch logs it with tracebacks.
        with torch.no_grad(), only_from(logging.ERROR, "torch.fx.experimental.symbolic_shapes"):
            exported = torch.export.export(network, (example,), dynamic_shapes=None if static else (auto,))
    except Exception as error:  # the errors of torch.export have no common class
        raise UserError(
            f"torch.export cannot export {type(net).__name__}, because its code depends on the image in a way that no"
            f" fixed program has: {first_line(error)}"
        ) from error
    for node in exported.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    if static:
        return Program(exported, min(static))
    smallest = _smallest(exported, minimum)
    _check_larger_sizes(exported, smallest)
    return Program(exported, smallest)


def _smallest(exported: ExportedProgram, minimum: int) -> int:
    """Return the smallest side of a square image that a program accepts; smaller ones it refuses at once."""
    module, reason = exported.module(), "no size"
    for side in range(minimum, LARGEST_SMALLEST + 1):
        try:
            with torch.inference_mode():
                module(torch.zeros(1, 3, side, side, dtype=torch.uint8))
            return side
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = first_line(error)
    raise UserError(
        f"the exported network accepts no image of up to {LARGEST_SMALLEST} pixels on each side: {reason}."
        " Set static=ROWSxCOLS to export it for one size"
    )


def _check_larger_sizes(exported: ExportedProgram, smallest: int) -> None:
    """Refuse a program with conditions on larger sizes, such as rows <= cols: a file of ONNX would not check them.

    They come first in a program and need sizes only, so the program runs on the device meta. What fails there later,
    for want of numbers, does not matter.
    """
    module = exported.module().to("meta")
    near, far = smallest + 1, smallest + LARGEST
    # Code that pads to a multiple may take another way for a multiple.
    for size in (*permutations((smallest, near, far, ROUND), 2), (far, far), (ROUND, ROUND)):
        try:
            module(torch.empty(1, 3, *size, dtype=torch.uint8, device="meta"))
        except AssertionError as error:
            raise size_refused(size, error) from error
        except (NotImplementedError, RuntimeError):
            continue


def size_refused(size: Sequence[int], condition: AssertionError) -> UserError:
    """Return the error of a program that refuses rows and columns of ``size``, by a condition of torch.export."""
    return UserError(
        f"the exported network accepts no image of {size[0]}x{size[1]} pixels, because its code depends on the size:"
        f" {first_line(condition)}. Set static=ROWSxCOLS to export it for one size"
    )


def save_program(program: Program, path: Path, facts: Mapping[str, Any]) -> None:
    """Write a program as ``.pt2``; ``torch.export.load(path, extra_files={"fcnlab.json": ""})`` returns the facts."""
    with path.open("wb") as file:  # torch would write the name of a path into the archive
        torch.export.save(program.exported, file, extra_files={FACTS: json.dumps(facts)})


def open_program(path: Path) -> Runner:
    """Return a function that runs the program in a file; it also returns the scores that the file keeps to itself."""
    module = torch.export.load(path).module()

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(), _ArgmaxInput() as scores:
            found = module(images)
        return found if isinstance(found, tuple) else (found, scores.tensor)

    return run


class _ArgmaxInput(TorchDispatchMode):
    """Keeps the tensor whose argmax was computed last."""

    tensor: Tensor

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.argmax.default:
            self.tensor = args[0]
        return func(*args, **(kwargs or {}))
