"""From the disk to a training batch: fcnlab's augmented pictures against pytorch-fcn's unaugmented ones.

python benchmarks/input_pipeline.py        some 20 seconds; a quarter of a GB in a temporary folder

The rival is what wkentaro/pytorch-fcn's VOC data set does to a picture, written here again: PIL, float64 minus the mean
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

from fcnlab.data import Pictures, open_voc
from fcnlab.data.cache import cached
from fcnlab.data.module import TrainingSamples, collate
from fcnlab.data.shapes import write_data_set
from fcnlab.data.transforms import Augmentation, standard

MEAN_BGR = np.array([104.00698793, 116.66876762, 122.67891434])
BATCH = 8
REFERENCE = "pytorch-fcn's path"


def pytorch_fcn(pictures: Pictures, index: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A picture and its labels, as its VOCClassSegBase loads and transforms them."""
    with Image.open(pictures.images[index]) as file:
        image = np.array(file, dtype=np.uint8)
    with Image.open(pictures.masks[index]) as file:
        label = np.array(file, dtype=np.int32)
    label[label == 255] = -1
    image = image[:, :, ::-1].astype(np.float64)
    image -= MEAN_BGR
    return torch.from_numpy(image.transpose(2, 0, 1)).float(), torch.from_numpy(label).long()


def batches(pictures: Pictures, augment: Augmentation) -> Callable[[int], object]:
    """Ours, by the number of the batch."""
    samples = TrainingSamples(pictures, augment, seed=0)
    return lambda number: collate([samples[0, index % len(pictures)] for index in _indices(number)])


def _indices(number: int) -> range:
    return range(number * BATCH, (number + 1) * BATCH)


def open_pictures(root: str, count: int, folder: Path, split: str = "trainaug") -> Pictures:
    """VOC's, or shapes of its pictures' size."""
    if (Path(root) / "VOCdevkit").is_dir():
        pictures = open_voc(root, split)
    else:
        write_data_set(folder / "VOCdevkit" / "VOC2012", count, 0, size=430, seed=0)
        pictures = open_voc(str(folder), "train")
    chosen = np.random.default_rng(0).permutation(len(pictures))[:count]
    names, images, masks = (
        tuple(paths[index] for index in chosen) for paths in (pictures.names, pictures.images, pictures.masks)
    )
    return replace(pictures, names=names, images=images, masks=masks)


def measure(pictures: Pictures, crop: int, folder: Path) -> dict[str, dict[str, float]]:
    """The pace of each variant, over all pictures once."""
    on_disk = cached(pictures, "disk", folder)
    coloured, plain = standard(crop), standard(crop, colour=False)
    variants = {
        REFERENCE: lambda number: [pytorch_fcn(pictures, index) for index in _indices(number)],
        "no cache, standard": batches(pictures, coloured),
        "no cache, without colour": batches(pictures, plain),
        "cache, standard": batches(on_disk, coloured),
        "cache, without colour": batches(on_disk, plain),
    }
    return measuring.summary(measuring.in_turns(variants, len(pictures) // BATCH), REFERENCE, BATCH)


def main() -> None:
    asked = measuring.options(__doc__, root="../shared/data", pictures=240, crop=512)
    measuring.on_cores(asked.threads)
    with tempfile.TemporaryDirectory() as name:
        pictures = open_pictures(asked.root, asked.pictures, Path(name))
        rows, cols = np.median([pictures.size(index) for index in range(len(pictures))], axis=0)
        title = f"{len(pictures)} pictures of {pictures.title}, median {rows:.0f}x{cols:.0f}, crops of {asked.crop}"
        measuring.report(title, measure(pictures, asked.crop, Path(name)), asked.json)


if __name__ == "__main__":
    main()
