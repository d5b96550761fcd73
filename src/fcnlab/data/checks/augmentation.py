"""Check the randomness of the training loader: different in each worker and epoch, equal for equal seeds.

Workers are copies of one process, including its random states. A pipeline that uses such a state returns the same crops
in each worker and each epoch, which no loss curve shows.
"""

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b

from jaxtyping import UInt8
from numpy import ndarray

from fcnlab.data.checks.report import Finding, Verdict
from fcnlab.data.datamodule import DataModule
from fcnlab.data.dataset import SegmentationDataset
from fcnlab.data.loader_workers import Batch
from fcnlab.data.samplers import TrainingBatches
from fcnlab.data.samples import TrainingSamples
from fcnlab.errors import first_line

ABOUT = "augmentation"
BATCH = 4  # images
BATCHES = 4  # of an epoch, two from each of two workers

Stream = list[list[str]]  # a digest of each sample, by batch
Sample = tuple[str, UInt8[ndarray, "rows cols 3"], UInt8[ndarray, "rows cols"]]


def inspect_streams(data: DataModule, dataset: SegmentationDataset, index: int) -> list[Finding]:
    """Return the findings on loader and augmentation, for many copies of the image at ``index``."""
    copies = repeat_image(dataset, index, BATCH * BATCHES)
    lack = loader_of(data, copies, workers=2).readers("train").lack
    workers = 0 if lack else 2
    try:
        no_workers, repeated = stream(data, copies, workers=0), stream(data, copies, workers=0)
        with_workers, next_epoch = stream(data, copies, workers), stream(data, copies, workers, epoch=1)
    except Exception as error:  # of a user's own augmentation
        return [Finding(ABOUT, "loading", Verdict.ERROR, f"loading fails: {first_line(error)}")]
    findings = [_finding("equal seeds", "return equal images", "return different images", no_workers == repeated)]
    if lack:
        findings.append(Finding(ABOUT, "0 and 2 workers", Verdict.WARNING, f"not compared, because {lack}"))
    else:
        failure = "return different images: runs depend on num_workers"
        findings.append(_finding("0 and 2 workers", "return equal images", failure, no_workers == with_workers))
    if data.augment is None:
        return [*findings, Finding(ABOUT, "draws", Verdict.OK, "no augmentation: images are used unchanged")]
    if not lack:
        failure = "draw the same numbers: half of the images are copies"
        findings.append(
            _finding("two workers", "draw different numbers", failure, with_workers[0::2] != with_workers[1::2])
        )
    failure = "draw the same numbers: all epochs are equal"
    return [
        *findings,
        _finding(
            "two epochs",
            "draw different numbers",
            failure,
            samples_of_epoch(with_workers) != samples_of_epoch(next_epoch),
        ),
    ]


def repeat_image(dataset: SegmentationDataset, index: int, count: int) -> SegmentationDataset:
    """Return a data set with copies of one image, whose samples differ only by their random numbers."""
    names = tuple(f"{dataset.names[index]}-{copy}" for copy in range(count))
    return replace(dataset, names=names, images=(dataset.images[index],) * count, masks=(dataset.masks[index],) * count)


def stream(data: DataModule, dataset: SegmentationDataset, workers: int, epoch: int = 0) -> Stream:
    """Return digests of the first batches of an epoch from the data module's loader."""
    loader = loader_of(data, dataset, workers).train_dataloader()
    assert isinstance(loader.batch_sampler, TrainingBatches)
    loader.batch_sampler.set_epoch(epoch)
    return [_digests(batch) for batch in loader]


def loader_of(data: DataModule, dataset: SegmentationDataset, workers: int) -> DataModule:
    """Return a data module with the same augmentation for another data set and number of workers."""
    return DataModule(
        dataset=lambda root, split: dataset,
        root=data.root,
        train_list="train",
        val_list="train",
        num_classes=data.num_classes,
        augment=lambda crop_size: data.augment,
        crop_size=data.crop_size,
        batch_size=BATCH,
        num_workers=workers,
        seed=data.seed,
    )


def samples_of_epoch(batches: Stream) -> list[str]:
    """Return the samples of an epoch in sorted order."""
    return sorted(sample for batch in batches for sample in batch)


def _digests(batch: Batch) -> list[str]:
    pairs = zip(batch["image"].numpy(), batch["mask"].numpy(), strict=True)
    return [blake2b(image.tobytes() + mask.tobytes(), digest_size=8).hexdigest() for image, mask in pairs]


def _finding(check: str, success: str, failure: str, holds: bool) -> Finding:
    return Finding(ABOUT, check, Verdict.OK if holds else Verdict.ERROR, success if holds else failure)


def augmented_samples(
    data: DataModule, dataset: SegmentationDataset, valid_indices: Sequence[int], count: int
) -> list[Sample]:
    """Return the first samples of the first epoch, without invalid images: name, image, mask."""
    samples = TrainingSamples(dataset, data.augment, data.seed)
    valid = set(valid_indices)
    keys = [key for (key,) in TrainingBatches(len(dataset), 1, data.seed) if key[1] in valid]
    drawn = [samples[key] for key in keys[:count]]
    return [
        (dataset.names[sample["index"]], sample["image"].permute(1, 2, 0).numpy(), sample["mask"].numpy())
        for sample in drawn
    ]
