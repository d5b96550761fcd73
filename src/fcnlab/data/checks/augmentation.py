"""What comes out of the training loader: that no two workers and no two epochs draw alike, and equal seeds do.

Workers are copies of one process, random states included. A pipeline that draws from such a state gives each worker the
same crops, and each epoch those of the first: no loss curve shows it.
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
    """The findings about the data module's own loader and augmentation, on the image at ``index`` again and again."""
    one = repeat_image(dataset, index, BATCH * BATCHES)
    lack = loader_of(data, one, workers=2).readers("train").lack
    workers = 0 if lack else 2
    try:
        alone, again = stream(data, one, workers=0), stream(data, one, workers=0)
        shared, later = stream(data, one, workers), stream(data, one, workers, epoch=1)
    except Exception as error:  # of a user's own augmentation
        return [Finding(ABOUT, "loading", Verdict.ERROR, f"it fails: {first_line(error)}")]
    findings = [_finding("equal seeds", "give equal images", "give unequal images", alone == again)]
    if lack:
        findings.append(Finding(ABOUT, "0 and 2 workers", Verdict.WARNING, f"not compared, since {lack}"))
    else:
        bad = "give unequal images: a run depends on num_workers"
        findings.append(_finding("0 and 2 workers", "give equal images", bad, alone == shared))
    if data.augment is None:
        return [*findings, Finding(ABOUT, "draws", Verdict.OK, "none: images are taken whole, as they are")]
    if not lack:
        bad = "draw alike: half of the images are copies"
        findings.append(_finding("two workers", "draw apart", bad, shared[0::2] != shared[1::2]))
    bad = "draw alike: later epochs bring nothing new"
    return [*findings, _finding("two epochs", "draw apart", bad, samples_of_epoch(shared) != samples_of_epoch(later))]


def repeat_image(dataset: SegmentationDataset, index: int, count: int) -> SegmentationDataset:
    """A set of one image: samples of it differ by what was drawn, and by nothing else."""
    names = tuple(f"{dataset.names[index]}-{copy}" for copy in range(count))
    return replace(dataset, names=names, images=(dataset.images[index],) * count, masks=(dataset.masks[index],) * count)


def stream(data: DataModule, dataset: SegmentationDataset, workers: int, epoch: int = 0) -> Stream:
    """The first batches of an epoch, as the data module's loader gives them for these images."""
    loader = loader_of(data, dataset, workers).train_dataloader()
    assert isinstance(loader.batch_sampler, TrainingBatches)
    loader.batch_sampler.set_epoch(epoch)
    return [_digests(batch) for batch in loader]


def loader_of(data: DataModule, dataset: SegmentationDataset, workers: int) -> DataModule:
    """The same augmentation of other images, by so many workers."""
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
    """The samples of an epoch, whatever their order."""
    return sorted(sample for batch in batches for sample in batch)


def _digests(batch: Batch) -> list[str]:
    pairs = zip(batch["image"].numpy(), batch["mask"].numpy(), strict=True)
    return [blake2b(image.tobytes() + mask.tobytes(), digest_size=8).hexdigest() for image, mask in pairs]


def _finding(check: str, fine: str, bad: str, holds: bool) -> Finding:
    return Finding(ABOUT, check, Verdict.OK if holds else Verdict.ERROR, fine if holds else bad)


def augmented_samples(data: DataModule, dataset: SegmentationDataset, sound: Sequence[int], count: int) -> list[Sample]:
    """The first samples of the first epoch, those of sound images, by name."""
    samples = TrainingSamples(dataset, data.augment, data.seed)
    wanted = set(sound)
    keys = [key for (key,) in TrainingBatches(len(dataset), 1, data.seed) if key[1] in wanted]
    drawn = [samples[key] for key in keys[:count]]
    return [(dataset.names[one["index"]], one["image"].permute(1, 2, 0).numpy(), one["mask"].numpy()) for one in drawn]
