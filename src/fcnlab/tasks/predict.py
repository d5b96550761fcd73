"""``fcnlab predict``."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from glob import glob
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.memory import is_oom_error
from omegaconf import DictConfig
from torch.utils.data import Dataset

from fcnlab.config.components import to_plain
from fcnlab.config.run_context import RunContext
from fcnlab.config.validation import validate_config
from fcnlab.data.image_files import SUFFIXES, DataError, open_image, read_image
from fcnlab.data.loader_workers import Loader, prepare_worker, readers, worker_count
from fcnlab.data.samples import as_tensors, collate
from fcnlab.errors import UserError
from fcnlab.evaluation.splits import required_image_size
from fcnlab.evaluation.submission import check_submission, write_submission
from fcnlab.messages import log_info, log_warning
from fcnlab.runs.drawing import overlay, save_labels, save_png, with_legend
from fcnlab.runs.output_folder import PredictionFolder
from fcnlab.runs.run_folder import RunFolder
from fcnlab.signals import StopSignals
from fcnlab.training.callbacks import GracefulStop
from fcnlab.training.checkpoints import read_nets
from fcnlab.training.hardware import check_machine
from fcnlab.training.ineffective_settings import ineffective_in_scoring
from fcnlab.training.segmenter import Segmenter
from fcnlab.training.speed import evaluation_speed
from fcnlab.training.trainer import build_inference, build_trainer


def predict(cfg: DictConfig, run: RunFolder) -> None:
    """Predict images: class ids as palette PNGs in ``labels/``, tinted images with a legend in ``overlays/``.

    With ``submission``, predict the images of a data set's list and write one archive.
    """
    validate_config(cfg)
    _check_settings(cfg, run.context)
    check_machine(cfg, run.context)
    for message in ineffective_in_scoring(run.context):
        log_warning(message)
    paths = _checked_paths(cfg) if cfg.submission is None else []
    trained = read_nets(to_plain(cfg)["checkpoint"], cfg.trust, run.context.typed_folders)
    nets, facts = [each.net for each in trained], trained[0].checkpoint["fcnlab"]
    if cfg.submission is not None:
        return write_submission(cfg, run, nets, facts["classes"])
    inference, postprocess = build_inference(cfg)
    files = ImageFiles(paths, min_size=required_image_size(inference, *nets))
    writer = WritePredictions(Path(cfg.output), files, facts["classes"], np.array(facts["palette"], np.uint8))
    workers = workers_for(paths, worker_count(cfg.num_workers))
    loader = Loader(files, batch_size=None, num_workers=workers, worker_init_fn=prepare_worker)
    speed = evaluation_speed(cfg, nets[0])
    segmenter = Predictor(
        nets[0], facts["classes"], inference=inference, postprocess=postprocess, ensemble=nets[1:], **speed
    )
    with StopSignals() as signals, signals.reraise_as_interrupted():
        trainer = build_trainer(cfg, run.path, False, [writer, GracefulStop(signals)])
        run.accept(cfg)
        writer.folder.remove_leftovers()
        trainer.predict(segmenter, loader, return_predictions=False)
    log_info(f"{writer.written} of {len(files)} images predicted: labels/ and overlays/ in {cfg.output}")
    if writer.problems:
        raise UserError(f"{len(writer.problems)} of {len(files)} images were skipped:\n" + "\n".join(writer.problems))


def _checked_paths(cfg: DictConfig) -> list[Path]:
    """Return the input images, after checking that their predictions replace only earlier predictions."""
    paths = find_input_images(cfg.input)
    warn_about_subfolders(Path(cfg.input), Path(cfg.output))
    PredictionFolder(Path(cfg.output)).check(output_names(paths), paths, cfg.overwrite)
    return paths


def _check_settings(cfg: DictConfig, context: RunContext) -> None:
    if cfg.submission is not None:
        if context.sets("num_workers"):
            log_warning("num_workers has no effect with submission=...: set data.num_workers")
        return check_submission(cfg)
    if context.sets("competition"):
        log_warning("competition has no effect without submission=FILE.tar.gz")
    if cfg.data is not None:
        raise UserError(
            "data=... has no effect without submission=FILE.tar.gz: set input=... and output=..., or submission="
        )
    missing = [f"{key}=VALUE" for key in ("input", "output") if cfg[key] is None]
    if missing:
        raise UserError(f"set {' and '.join(missing)}: input is the images, output the folder for predictions")


def find_input_images(pattern: str) -> list[Path]:
    """Return the images of a file name, a folder, or a glob.

    Raises
    ------
    UserError
        No images match.
    """
    path = Path(pattern)
    if path.is_dir():
        images = [entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES]
    elif path.is_file():
        images = [path]
    else:
        images = [Path(name) for name in glob(pattern, recursive=True) if Path(name).is_file()]  # noqa: PTH207 (any root)
    if not images:
        raise UserError(f"input={pattern} matches no images: set a file, a folder of {', '.join(SUFFIXES)}, or a glob")
    return sorted(images)


def workers_for(paths: Sequence[Path], requested: int) -> int:
    """Return the number of workers that fit into memory, up to the requested number, for the largest image."""
    largest = 1
    for path in paths if requested else ():
        with suppress(DataError), open_image(path) as file:
            largest = max(largest, math.prod(file.size))
    allocation = readers(requested, 2, 4 * largest)  # torch reads 2 images ahead by default
    if allocation.lack:
        log_warning(
            f"{len(paths):,} images: using {allocation.workers} workers instead of {requested},"
            f" because {allocation.lack}"
        )
    return allocation.workers


def warn_about_subfolders(folder: Path, output: Path) -> None:
    """Warn about images in subfolders, which are not predicted."""
    if not folder.is_dir():
        return
    below = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.parent != folder and not path.is_relative_to(output)
    ]
    if below:
        log_warning(
            f"input={folder}: {len(below):,} images in subfolders are skipped, such as {min(below)}. To predict them,"
            f" too, set 'input=\"{folder}/**/*{min(below).suffix}\"'"
        )


def output_names(paths: Sequence[Path]) -> list[str]:
    """Return unique output names, relative to the common folder of the images."""
    base = os.path.commonpath([path.parent.absolute() for path in paths])
    relative = [path.absolute().relative_to(base) for path in paths]
    with_suffix: set[Path] = set()  # keep the suffix of these: a.jpg beside a.png
    while True:
        names = [f"{path if path in with_suffix else path.with_suffix('')}.png" for path in relative]
        counts = Counter(names)
        folders = {str(parent) for name in names for parent in Path(name).parents}
        clashes = {
            path for path, name in zip(relative, names, strict=True) if counts[name] > 1 or name in folders
        } - with_suffix
        if not clashes:
            return names
        with_suffix |= clashes


class ImageFiles(Dataset):
    """Images by index; an unusable image is returned as a problem, so that the others are still predicted."""

    def __init__(self, paths: Sequence[Path], min_size: int):
        self.paths, self.min_size = list(paths), min_size
        self.names = output_names(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            image = read_image(self.paths[index])
            if min(image.shape[:2]) < self.min_size:
                raise DataError(
                    f"{self.paths[index]} has {image.shape[0]}x{image.shape[1]} pixels, but at least {self.min_size}"
                    " are required on each side"
                )
        except DataError as error:
            return {"problem": str(error)}
        return {**collate([as_tensors(image, None, index)]), "path": str(self.paths[index])}


class Predictor(Segmenter):
    """Return the problem of an image instead of its prediction: an unusable file, or too little memory."""

    def predict_step(self, batch: dict[str, Any]) -> Any:
        if "problem" in batch:
            return batch["problem"]
        try:
            return super().predict_step(batch)
        except (MemoryError, RuntimeError) as error:
            if not (isinstance(error, MemoryError) or is_oom_error(error)):
                raise
            rows, cols = batch["image"].shape[2:]
            return (
                f"{batch['path']} has {rows}x{cols} pixels, too many for the memory: make it smaller, or add"
                " inference=sliding"
            )


class WritePredictions(Callback):
    """Write each prediction when its batch ends."""

    def __init__(self, folder: Path, files: ImageFiles, classes: Sequence[str], palette: np.ndarray):
        self.folder, self.files, self.classes, self.palette = PredictionFolder(folder), files, classes, palette
        self.written, self.problems = 0, []

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module, outputs, batch, batch_idx: int, dataloader_idx=0):
        if isinstance(outputs, str):
            self.problems.append(f"  {outputs}")
            return
        for image, prediction, index in zip(batch["image"], outputs, batch["index"], strict=True):
            name = self.files.names[index]
            labels = prediction.cpu().numpy()
            tinted = overlay(image.permute(1, 2, 0).cpu().numpy(), labels, self.palette)
            drawn = with_legend(tinted, [labels], self.classes, self.palette)
            self.folder.write(f"labels/{name}", partial(save_labels, labels=labels, palette=self.palette))
            self.folder.write(f"overlays/{name}", partial(save_png, image=drawn))
            self.written += 1
