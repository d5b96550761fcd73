"""``fcnlab figure``. Nothing here imports torch, so that it starts quickly on any machine."""

import logging
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from fcnlab.comparison import comparison, pdf
from fcnlab.comparison.formats import listed
from fcnlab.comparison.image_panels import Archives
from fcnlab.comparison.runs import ExcludedRun, read_runs
from fcnlab.config.validation import validate_config
from fcnlab.errors import UserError
from fcnlab.escaping import escape_line
from fcnlab.publication.colour_vision import confusable
from fcnlab.publication.example_figure import Column, ExampleFigure, chosen_images, example_figure, run_columns
from fcnlab.publication.figure_files import write_figure
from fcnlab.publication.output_file import check_output_file
from fcnlab.runs.run_folder import RunFolder
from fcnlab.tasks.compare import existing_folder, group_names, warn_about_excluded_folders

log = logging.getLogger("fcnlab")
FILE = "figure.pdf"
FEW_RESAMPLES = 100  # the least: the figure shows no intervals
MOST_LISTED = 4  # pairs of classes


def figure(cfg: DictConfig, run: RunFolder) -> None:
    """Draw images with the predictions of some runs and the ground truth; write a PDF and a PNG."""
    validate_config(cfg)
    paths = _output_files(cfg, run.path)
    if not pdf.is_available():
        raise UserError(pdf.HINT)
    if cfg.images and run.context.sets("num_images"):
        log.warning("num_images=%d has no effect with images=..., which names the images", cfg.num_images)
    archives = Archives()
    columns, images_in_common = _columns(cfg)
    names = chosen_images(columns, list(cfg.images), cfg.num_images, archives)
    drawn = example_figure(columns, names, archives)
    run.accept(cfg)
    paths[0].parent.mkdir(parents=True, exist_ok=True)
    write_figure(drawn, cfg.width, *paths, description=_description(drawn))
    _report(drawn, images_in_common, was_chosen=not cfg.images)
    log.info("Figure: %s and %s", *paths)


def _output_files(cfg: DictConfig, folder: Path) -> tuple[Path, Path]:
    """Return the paths of the PDF and the PNG."""
    is_named = cfg.output is not None
    path = Path(cfg.output) if is_named else folder / FILE
    if path.suffix != ".pdf":
        raise UserError(f"output={path} must end in .pdf; a PNG with the same name is written beside it")
    paths = path, path.with_suffix(".png")
    for each in paths:
        check_output_file(each, cfg.overwrite, is_named)
    return paths


def _columns(cfg: DictConfig) -> tuple[list[Column], int]:
    """Return the columns of the figure, and the number of images that all runs have scored."""
    folders = [existing_folder(name, "runs") for name in cfg.runs]
    runs, left_out = read_runs(folders)
    _check_named_runs(folders, left_out)
    result = comparison.compare(runs, resamples=FEW_RESAMPLES, names=group_names(cfg.names))
    _check_named_runs(folders, result.left_out)
    warn_about_excluded_folders([*left_out, *result.left_out], "not drawn")
    return run_columns(result, [run.folder for run in runs]), result.images


def _check_named_runs(folders: Sequence[Path], left_out: Sequence[ExcludedRun]) -> None:
    """Refuse a figure that lacks a run that the user has named; runs below a folder may be left out."""
    named = {folder.absolute() for folder in folders}
    for out in left_out:
        if out.folder in named:
            raise UserError(f"runs= contains {out.folder}, which cannot be drawn: {out.reason}")


def _description(drawn: ExampleFigure) -> str:
    titles = ", ".join(drawn.titles)
    return escape_line(f"Columns: {titles}. Rows: {', '.join(row.name for row in drawn.rows)}")


def _report(drawn: ExampleFigure, images_in_common: int, was_chosen: bool) -> None:
    """Log which images are shown, for a caption, and which colours are hard to distinguish."""
    names = ", ".join(row.name for row in drawn.rows)
    if was_chosen and len(drawn.columns) > 1:
        log.info(
            "Images: %s. Of %d images, these are the kept ones on which the mIoU of the runs differs most, so they are"
            " not typical: say so in the caption, or choose with images=NAME,NAME",
            *(names, images_in_common),
        )
    elif was_chosen:
        log.info("Images: %s. They are evenly spaced from the highest mIoU to the lowest", names)
    pairs = [f"{first} and {second}" for first, second in confusable(drawn.legend)]
    if pairs:
        log.warning(
            "The colours of %s look alike to readers with a kind of colour blindness: name these classes in the"
            " caption",
            listed(pairs, MOST_LISTED, "; "),
        )
