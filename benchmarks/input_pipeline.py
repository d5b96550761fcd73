"""Loading a training batch from disk: fcnlab's augmented images against pytorch-fcn's unaugmented ones.

python benchmarks/input_pipeline.py        some 20 seconds; a quarter of a GB in a temporary folder

The rival is what wkentaro/pytorch-fcn's VOC data set does to an image, written here again: PIL, float64 minus the mean
colour, float tensors. It is without a batch, in its favour: ours is augmented, and stacked to uint8 batches.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fcnlab.data import SegmentationDataset, open_voc
from fcnlab.data.cache import with_cache
from fcnlab.data.formats.shapes import write_data_set
from fcnlab.data.samples import TrainingSamples, collate
from fcnlab.data.transforms import Augmentation, standard

MEAN_BGR = np.array([104.00698793, 116.66876762, 122.67891434])
BATCH = 8
REFERENCE = "pytorch-fcn's path"


def pytorch_fcn(dataset: SegmentationDataset, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Load an image and its labels like pytorch-fcn's VOCClassSegBase."""
    with Image.open(dataset.images[index]) as file:
        image = np.array(file, dtype=np.uint8)
    with Image.open(dataset.masks[index]) as file:
        label = np.array(file, dtype=np.int32)
    label[label == 255] = -1
    image = image[:, :, ::-1].astype(np.float64)
    image -= MEAN_BGR
    return torch.from_numpy(image.transpose(2, 0, 1)).float(), torch.from_numpy(label).long()


def batches(dataset: SegmentationDataset, augment: Augmentation) -> Callable[[int], object]:
    """Return fcnlab's loading of a batch, by its number."""
    samples = TrainingSamples(dataset, augment, seed=0)
    return lambda number: collate([samples[0, index % len(dataset)] for index in _indices(number)])


def _indices(number: int) -> range:
    return range(number * BATCH, (number + 1) * BATCH)


def open_images(root: str, count: int, folder: Path, split: str = "trainaug") -> SegmentationDataset:
    """Return VOC's images, or generated shapes of their size."""
    if (Path(root) / "VOCdevkit").is_dir():
        dataset = open_voc(root, split)
    else:
        write_data_set(folder / "VOCdevkit" / "VOC2012", count, 0, size=430, seed=0)
        dataset = open_voc(str(folder), "train")
    chosen = np.random.default_rng(0).permutation(len(dataset))[:count]
    names, images, masks = (
        tuple(paths[index] for index in chosen) for paths in (dataset.names, dataset.images, dataset.masks)
    )
    return replace(dataset, names=names, images=images, masks=masks)


def measure(dataset: SegmentationDataset, crop: int, folder: Path) -> dict[str, dict[str, float]]:
    """Return the pace of each variant, over all images once."""
    on_disk = with_cache(dataset, "disk", folder)
    coloured, plain = standard(crop), standard(crop, colour=False)
    variants = {
        REFERENCE: lambda number: [pytorch_fcn(dataset, index) for index in _indices(number)],
        "no cache, standard": batches(dataset, coloured),
        "no cache, without colour": batches(dataset, plain),
        "cache, standard": batches(on_disk, coloured),
        "cache, without colour": batches(on_disk, plain),
    }
    return measuring.summary(measuring.in_turns(variants, len(dataset) // BATCH), REFERENCE, BATCH)


def main() -> None:
    args = measuring.options(__doc__, root="../shared/data", num_images=240, crop=512)
    measuring.on_cores(args.threads)
    with tempfile.TemporaryDirectory() as name:
        images = open_images(args.root, args.num_images, Path(name))
        rows, cols = np.median([images.size(index) for index in range(len(images))], axis=0)
        title = f"{len(images)} images of {images.title}, median {rows:.0f}x{cols:.0f}, crops of {args.crop}"
        measuring.report(title, measure(images, args.crop, Path(name)), args.json)


if __name__ == "__main__":
    main()
