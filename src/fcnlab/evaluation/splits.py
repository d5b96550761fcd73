"""What every verb does with the splits of a data set before any long work: say what there is, and look at it."""

from collections.abc import Iterator
from os.path import isfile  # False for a name that no file can have, where Path's raises an OSError

from fcnlab.config.validation import ConfigError
from fcnlab.data import DataError, DataModule, SegmentationDataset
from fcnlab.data.label_counts import absent_classes, one_class_only
from fcnlab.inference import InferenceMethod
from fcnlab.messages import log_info, log_warning
from fcnlab.models import FCN

MOST_NAMED = 5


def check_splits(data: DataModule, *names: str, min_size: int, target: bool = True) -> None:
    """Say how many images and masks each split has, look at every file, and judge which classes occur.

    Raises
    ------
    DataError
        See :meth:`DataModule.check`; where one of the splits is trained on, at most one class occurs in one of them.
    """
    report_splits(data, *names)
    data.check(*names, min_size=min_size, target=target)
    if not target:
        return
    for name, images in unique_splits(data, *names):
        problem = one_class_only(images, data.label_pixels(name))
        if problem and "train" in names:
            raise DataError(f"{images.title}: {problem}")
        for doubt in (*([problem] if problem else []), *data.mask_conflicts(name)):
            log_warning(f"{images.title}: {doubt}")
    if "train" in names:
        _warn_of_absent_classes(data.split("train"), absent_classes(data.split("train"), data.label_pixels("train")))


def required_image_size(inference: InferenceMethod, net: FCN) -> int:
    """The shorter side, in pixels, that an image needs; said where it is not the net's own.

    Raises
    ------
    UserError
        See :meth:`~fcnlab.inference.InferenceMethod.minimum_image_size`.
    """
    needed = inference.minimum_image_size(net)
    if needed != net.backbone.min_size:
        log_info(
            f"Images need {needed} pixels on each side with {inference}, since the net needs {net.backbone.min_size} at"
            " its smallest scale: leave small scales out to take smaller images"
        )
    return needed


def report_splits(data: DataModule, *names: str) -> None:
    """A line for each split, and a warning where files much like its images were left out."""
    for _, images in unique_splits(data, *names):
        masks = sum(map(isfile, images.masks))
        log_info(f"{images.title}: {len(images):,} images, {masks:,} masks")
        if images.left_out:
            few = ", ".join(path.name for path in images.left_out[:MOST_NAMED])
            few += ", …" if len(images.left_out) > MOST_NAMED else ""
            log_warning(
                f"{len(images.left_out):,} images of {images.title} were left out, whose names fit"
                f" data.dataset.images but for suffix or case: {few}. {{name}}.* takes any suffix, in any case"
            )


def warn_about_fewer_workers(data: DataModule, *names: str, processes: int = 1) -> None:
    """Decide who reads, and warn where fewer workers can than are set: once where it is the same for several splits."""
    titles: dict[tuple[int, str], list[str]] = {}
    for name in names:
        found = data.readers(name, processes)
        if found.lack:
            titles.setdefault((found.workers, found.lack), []).append(data.split(name).title)
    for (workers, lack), of in titles.items():
        log_warning(
            f"{' and '.join(dict.fromkeys(of))}: {workers} workers read in place of {data.num_workers}, since {lack}"
        )


def unique_splits(data: DataModule, *names: str) -> Iterator[tuple[str, SegmentationDataset]]:
    """The splits, each list once, by the first name that it has."""
    for title in dict.fromkeys(data.lists[name] for name in names):
        name = next(name for name in names if data.lists[name] == title)
        yield name, data.split(name)


def _warn_of_absent_classes(dataset: SegmentationDataset, absent: tuple[str, ...]) -> None:
    if absent:
        log_warning(f"no mask of {dataset.title} has {', '.join(absent)}: nothing is learned of such classes")


def check_classes(classes: list[str] | None, data: DataModule) -> None:
    """Scores of one set's classes against another's truth would be numbers without a meaning."""
    known = list(data.split("test").classes)
    if classes is not None and classes != known:
        raise ConfigError(
            f"the checkpoint knows {len(classes)} classes ({', '.join(classes[:4])}, …), {data.split('test').title} has"
            f" {len(known)} ({', '.join(known[:4])}, …): give the data= that it was trained for"
        )
