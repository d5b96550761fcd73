"""Check and report the splits of a data set before any long work."""

from collections.abc import Iterator
from os.path import isfile  # False for a name that no file can have, where Path's raises an OSError

from fcnlab.config.validation import ConfigError
from fcnlab.data import DataError, DataModule, SegmentationDataset
from fcnlab.data.label_counts import absent_classes, one_class_only
from fcnlab.inference import InferenceMethod
from fcnlab.messages import log_info, log_warning
from fcnlab.models import Network

MOST_NAMED = 5


def check_splits(data: DataModule, *names: str, min_size: int, target: bool = True) -> None:
    """Log the number of images and masks of each split, check every file, and check which classes occur.

    Raises
    ------
    DataError
        See :meth:`DataModule.check`; also if a split is used for training and has at most one class.
    """
    report_splits(data, *names)
    data.check(*names, min_size=min_size, target=target)
    if not target:
        return
    for name, dataset in unique_splits(data, *names):
        problem = one_class_only(dataset, data.label_pixels(name))
        if problem and "train" in names:
            raise DataError(f"{dataset.title}: {problem}")
        for warning in (*([problem] if problem else []), *data.mask_conflicts(name)):
            log_warning(f"{dataset.title}: {warning}")
    if "train" in names:
        _warn_of_absent_classes(data.split("train"), absent_classes(data.split("train"), data.label_pixels("train")))


def required_image_size(inference: InferenceMethod, *nets: Network) -> int:
    """Return the minimum size of the shorter image side in pixels; log it if inference requires more than the model.

    All networks of an ensemble must be able to process an image.

    Raises
    ------
    UserError
        See :meth:`~fcnlab.inference.InferenceMethod.minimum_image_size`.
    """
    required, least = (
        max(sizes) for sizes in zip(*((inference.minimum_image_size(net), net.min_size) for net in nets), strict=True)
    )
    if required > least:
        log_info(
            f"Images must have at least {required} pixels on each side with {inference}, because the model requires"
            f" {least} at the smallest scale. Remove small scales to accept smaller images"
        )
    return required


def report_splits(data: DataModule, *names: str) -> None:
    """Log a line for each split and for groups of images, and warn if files with similar names were skipped."""
    if data.folds.group is not None and "train" in names:
        whole = data.whole("train")
        groups = data.folds.groups(whole)
        pattern, example = data.folds.group, next(iter(groups))
        log_info(f"{whole.title}: {len(groups):,} groups of data.fold_group={pattern}, such as {example!r}")
    for _, dataset in unique_splits(data, *names):
        masks = sum(map(isfile, dataset.masks))
        log_info(f"{dataset.title}: {len(dataset):,} images, {masks:,} masks")
        if dataset.left_out:
            examples = ", ".join(path.name for path in dataset.left_out[:MOST_NAMED])
            examples += ", …" if len(dataset.left_out) > MOST_NAMED else ""
            log_warning(
                f"{len(dataset.left_out):,} images of {dataset.title} were skipped, because their names match"
                f" data.dataset.images except for suffix or case: {examples}. {{name}}.* matches any suffix"
            )


def warn_about_fewer_workers(data: DataModule, *names: str, processes: int = 1) -> None:
    """Allocate the loader workers, and warn if there are fewer than configured, in one line for equal splits."""
    titles: dict[tuple[int, str], list[str]] = {}
    for name in names:
        allocation = data.readers(name, processes)
        if allocation.lack:
            titles.setdefault((allocation.workers, allocation.lack), []).append(data.split(name).title)
    for (workers, lack), datasets in titles.items():
        log_warning(
            f"{' and '.join(dict.fromkeys(datasets))}: using {workers} workers instead of {data.num_workers},"
            f" because {lack}"
        )


def unique_splits(data: DataModule, *names: str) -> Iterator[tuple[str, SegmentationDataset]]:
    """Yield the splits, each list once, with its first name."""
    for title in dict.fromkeys(data.lists[name] for name in names):
        name = next(name for name in names if data.lists[name] == title)
        yield name, data.split(name)


def _warn_of_absent_classes(dataset: SegmentationDataset, absent: tuple[str, ...]) -> None:
    if absent:
        log_warning(f"no mask of {dataset.title} contains {', '.join(absent)}: the model cannot learn these classes")


def check_classes(classes: list[str] | None, data: DataModule) -> None:
    """Check that the checkpoint has the classes of the data set, without which scores are meaningless."""
    dataset_classes = list(data.split("test").classes)
    if classes is not None and classes != dataset_classes:
        raise ConfigError(
            f"the checkpoint has {len(classes)} classes ({', '.join(classes[:4])}, …), but {data.split('test').title}"
            f" has {len(dataset_classes)} ({', '.join(dataset_classes[:4])}, …): set data= to a data set with the"
            " checkpoint's classes"
        )
