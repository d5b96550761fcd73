"""What every verb does with the splits of a data set before any long work: say what there is, and look at it."""

from collections.abc import Iterator
from os.path import isfile  # False for a name that no file can have, where Path's raises an OSError

from fcnlab.data import DataError, DataModule, Pictures
from fcnlab.data.label_counts import absent_classes, one_class_only
from fcnlab.inference import InferenceMethod
from fcnlab.models import FCN
from fcnlab.tasks.building import say, warn

MOST_NAMED = 5


def check_splits(data: DataModule, *names: str, min_size: int, truth: bool = True) -> None:
    """Say how many images and masks each split has, look at every file, and judge which classes occur.

    Raises
    ------
    DataError
        See :meth:`DataModule.check`; where one of the splits is trained on, at most one class occurs in one of them.
    """
    say_what_is_there(data, *names)
    data.check(*names, min_size=min_size, truth=truth)
    if not truth:
        return
    for name, pictures in once_each(data, *names):
        problem = one_class_only(pictures, data.label_pixels(name))
        if problem and "train" in names:
            raise DataError(f"{pictures.title}: {problem}")
        for doubt in (*([problem] if problem else []), *data.mask_conflicts(name)):
            warn(f"{pictures.title}: {doubt}")
    if "train" in names:
        _warn_of_absent_classes(data.split("train"), absent_classes(data.split("train"), data.label_pixels("train")))


def needed_size(inference: InferenceMethod, net: FCN) -> int:
    """The shorter side, in pixels, that an image needs; said where it is not the net's own.

    Raises
    ------
    UserError
        See :meth:`~fcnlab.inference.InferenceMethod.minimum_image_size`.
    """
    needed = inference.minimum_image_size(net)
    if needed != net.backbone.min_size:
        say(
            f"Images need {needed} pixels on each side with {inference}, since the net needs {net.backbone.min_size} at"
            " its smallest scale: leave small scales out to take smaller images"
        )
    return needed


def say_what_is_there(data: DataModule, *names: str) -> None:
    """A line for each split, and a warning where files much like its images were left out."""
    for _, pictures in once_each(data, *names):
        masks = sum(map(isfile, pictures.masks))
        say(f"{pictures.title}: {len(pictures):,} images, {masks:,} masks")
        if pictures.left_out:
            few = ", ".join(path.name for path in pictures.left_out[:MOST_NAMED])
            few += ", …" if len(pictures.left_out) > MOST_NAMED else ""
            warn(
                f"{len(pictures.left_out):,} images of {pictures.title} were left out, whose names fit"
                f" data.pictures.images but for suffix or case: {few}. {{name}}.* takes any suffix, in any case"
            )


def warn_of_fewer_workers(data: DataModule, *names: str, processes: int = 1) -> None:
    """Decide who reads, and warn where fewer workers can than are set: once where it is the same for several splits."""
    titles: dict[tuple[int, str], list[str]] = {}
    for name in names:
        found = data.readers(name, processes)
        if found.lack:
            titles.setdefault((found.workers, found.lack), []).append(data.split(name).title)
    for (workers, lack), of in titles.items():
        warn(f"{' and '.join(dict.fromkeys(of))}: {workers} workers read in place of {data.num_workers}, since {lack}")


def once_each(data: DataModule, *names: str) -> Iterator[tuple[str, Pictures]]:
    """The splits, each list once, by the first name that it has."""
    for title in dict.fromkeys(data.lists[name] for name in names):
        name = next(name for name in names if data.lists[name] == title)
        yield name, data.split(name)


def _warn_of_absent_classes(pictures: Pictures, absent: tuple[str, ...]) -> None:
    if absent:
        warn(f"no mask of {pictures.title} has {', '.join(absent)}: nothing is learned of such classes")
