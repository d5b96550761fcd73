"""Scoring a net on a set, the same way at the end of a training and in ``fcnlab eval``, and the record of it."""

import copy
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import lightning as L
import torch
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch.loggers import WandbLogger
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fcnlab.callbacks.wandb import log_scores
from fcnlab.data import DataModule, Pictures
from fcnlab.launching import as_typed, options, typed
from fcnlab.results.record import write_record
from fcnlab.results.scores import Scores
from fcnlab.results.selection import OPTIMISTIC, Facts, for_scored, is_optimistic, said, validated_on
from fcnlab.segmenter import Segmenter

PACKAGES = ("fcnlab", "torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "albumentations", "numpy")


class Scored(NamedTuple):
    """The scores of ``count`` images, and how the weights were selected; None: nobody knows."""

    scores: Scores
    selection: Facts | None
    count: int


def score(
    trainer: L.Trainer,
    segmenter: Segmenter,
    data: DataModule,
    folder: Path,
    seed: int,
    began: Mapping[str, Any],
    training: Mapping[str, float] = MappingProxyType({}),
    selected: Facts | None = None,
    **facts: Mapping[str, Any] | None,
) -> Scored | None:
    """Evaluate the test list and leave the record in ``folder``; the scores, on the process that writes (rank 0).

    ``began`` has the commit and the source when the run began, since files may have been edited after they were
    imported. ``training`` is what the training took, for the record's ``cost``; ``selected`` what the checkpoint says
    of its selection; ``facts`` are further parts of the record.
    """
    segmenter.scored_as = scored_as(data, selected)
    started = time.perf_counter()
    trainer.test(segmenter, datamodule=data, verbose=False)
    seconds = time.perf_counter() - started
    index, matrices = (values.cpu().numpy() for values in segmenter.confusions.compute())
    if not trainer.is_global_zero:
        return None
    pictures = data.split("test")
    selection = selected and for_scored(selected, [data.fingerprints("test")[place] for place in index])
    found = write_record(
        folder,
        split=data.lists["test"],
        names=[pictures.names[place] for place in index],
        classes=pictures.classes,
        matrices=matrices,
        protocol=protocol(trainer, pictures, len(index), segmenter),
        cost=cost(segmenter, pictures, seconds, len(index)) | dict(training),
        provenance=provenance(segmenter, seed, began),
        selection=selection,
        **facts,
    )
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            log_scores(logger, found, matrices.sum(axis=0), pictures.classes, segmenter.scored_as, selection)
    return Scored(found, selection, len(index))


def scored_as(data: DataModule, selected: Facts | None) -> Literal["test", "final"]:
    """What scores are logged under: nothing that was validated on is called a test."""
    if data.lists["test"] == data.lists["val"]:
        return "final"
    return "final" if selected and set(data.fingerprints("test")) <= validated_on(selected) else "test"


def words_of(found: Scored, name: str, data: DataModule) -> str:
    """The score, what it is of, and how the weights were selected, in a line."""
    selection, pictures = found.selection, data.split("test")
    part = f"{found.count} of {len(pictures)} images of " if found.count < len(pictures) else ""
    title = f"{part}{pictures.title}"
    line = f"{name} mIoU {100 * found.scores.miou:.2f} % on {title}. The weights were {said(selection)}."
    return f"{line} {OPTIMISTIC}." if is_optimistic(selection) else line


def protocol(trainer: L.Trainer, pictures: Pictures, count: int, segmenter: Segmenter) -> dict[str, Any]:
    """What the numbers mean."""
    return {
        "set": pictures.title,
        "pictures": count,
        "of": len(pictures),
        "resolution": "native: each picture and its labels at their own size",
        "void": "pixels whose truth is void are in no sum",
        "absent_classes": "a class in neither truth nor prediction has no IoU and is left out of the mean",
        "inference": str(segmenter.inference),
        "postprocess": str(segmenter.postprocess),
        "precision": str(trainer.precision),
        "padded_samples": 0,
    }


def cost(segmenter: Segmenter, pictures: Pictures, seconds: float, count: int) -> dict[str, Any]:
    """What the net takes; GMACs are of one pass over the set's first picture, whose size is given."""
    rows, cols = pictures.image(0).shape[:2]
    return {
        "parameters": sum(parameter.numel() for parameter in segmenter.net.parameters()),
        "gmacs_per_picture": round(macs(segmenter.net, rows, cols) / 1e9, 3),
        "gmacs_at": [rows, cols],
        "seconds": round(seconds, 2),
        "pictures_per_second": round(count / seconds, 2),
        "peak_memory_mib": round(peak_memory() / 2**20),
    }


def describe(segmenter: Segmenter, pictures: Pictures) -> str:
    """The net in a line."""
    net, (rows, cols) = segmenter.net, pictures.image(0).shape[:2]
    levels = ", ".join(map(str, net.levels))
    parameters = sum(parameter.numel() for parameter in net.parameters()) / 1e6
    work = macs(net, rows, cols) / 1e9
    return (
        f"The net: {type(net).__name__} of levels {levels} on {type(net.backbone).__name__},"
        f" {parameters:.2f} M parameters, {work:.2f} GMACs for a picture of {rows}x{cols}"
    )


def macs(net: nn.Module, rows: int, cols: int) -> int:
    """Multiply-accumulates of convolutions and products for one picture, counted without computing them."""
    shadow = copy.deepcopy(net).to("meta").eval()
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        shadow(torch.empty(1, 3, rows, cols, device="meta"))
    return counter.get_total_flops() // 2


def peak_memory() -> int:
    """Bytes: allocated on the GPU where there is one, else the process's largest resident size."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else largest_resident()


def largest_resident() -> int:
    """Bytes that this process has held at most."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def provenance(segmenter: Segmenter, seed: int, began: Mapping[str, Any]) -> dict[str, Any]:
    """Where the numbers come from."""
    began_with = {"commit": began["commit"], "source": began["source"], "seed": seed}
    return began_with | machine(segmenter.device) | {"command": command()}


def machine(device: torch.device) -> dict[str, Any]:
    """The versions of what computes, and on which device."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "versions": {name: metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "device": f"{device.type}: {name}",
    }


def command() -> str:
    """What to type for this very run, also where it was one job of a sweep."""
    hydra = HydraConfig.get()
    words = [word for word in as_typed(hydra.overrides.task) if not word.startswith("sweep.")]
    return typed(["fcnlab", str(hydra.job.config_name), *options(hydra), *words])


def commit() -> str | None:
    """fcnlab's own commit, with "+changes" where files differ; None where it is not run from a checkout."""
    found = git("describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes")
    return None if found is None else found.strip()


def git(*words: str) -> str | None:
    """What git says in fcnlab's checkout; None where it runs from none, though perhaps inside another repository."""
    here = Path(__file__)
    try:
        for asked in (("ls-files", "--error-unmatch", here.name), words):
            done = subprocess.run(["git", *asked], cwd=here.parent, capture_output=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace")


def table(found: Scores, classes: tuple[str, ...]) -> str:
    """The scores as the terminal shows them, in percent."""
    four = "   ".join(f"{name} {100 * value:.2f}" for name, value in zip(found._fields, found[:4], strict=False))
    width = max(map(len, classes))
    rows = [f"  {name:<{width}}  {100 * value:6.2f}" for name, value in zip(classes, found.iou, strict=True)]
    return "\n".join([four, "IoU by class:", *rows])
