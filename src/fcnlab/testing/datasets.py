"""The conformance suite of a data set."""

import pickle

import numpy as np
import pytest

from fcnlab.data import DataError, SegmentationDataset
from fcnlab.metrics.scores import IGNORE_INDEX
from fcnlab.testing.checks import require


class DatasetContract:
    """Tests of a :class:`~fcnlab.SegmentationDataset`, a split of a data set."""

    most_images: int = 20
    """How many images are read completely: the first ones."""

    def make(self) -> SegmentationDataset:
        """Return a split of the data set."""
        raise NotImplementedError("return your data set from make")

    @pytest.fixture
    def dataset(self) -> SegmentationDataset:
        dataset = self.make()
        require(
            isinstance(dataset, SegmentationDataset),
            f"make returns a {type(dataset).__name__}, not a SegmentationDataset.",
        )
        return dataset

    def _read(self, dataset: SegmentationDataset) -> range:
        return range(min(len(dataset), self.most_images))

    def test_lengths(self, dataset):
        counts = [len(dataset.names), len(dataset.images), len(dataset.masks)]
        require(len(dataset) > 0, f"{dataset.title} is empty: check the path and the name of its list.")
        require(
            counts[0] == counts[1] and counts[2] in (0, counts[0]),
            f"{dataset.title} has {counts[0]} names, {counts[1]} images and {counts[2]} masks. Each name needs an"
            " image, and a mask unless the split has no ground truth.",
        )

    def test_names(self, dataset):
        twice = dataset.listed_twice()
        require(not twice, f"The name {', '.join(twice[:3])} occurs more than once: scores are recorded by name.")

    def test_classes(self, dataset):
        names = dataset.classes
        require(
            all(isinstance(name, str) and name for name in names) and len(set(names)) == len(names),
            f"classes must be names that differ, got {names!r:.200}.",
        )
        palette = np.asarray(dataset.palette)
        require(
            palette.shape == (len(names), 3) and palette.dtype == np.uint8,
            f"palette must be an array of uint8 with a row of red, green and blue for each of the {len(names)} classes,"
            f" got {palette.dtype} of shape {palette.shape}.",
        )
        colours = {tuple(colour) for colour in palette.tolist()}
        require(len(colours) == len(names), "Two classes have the same colour in palette.")

    def test_files(self, dataset):
        """All headers and masks pass the checks that each command makes before it starts."""
        try:
            dataset.check()
        except DataError as error:
            pytest.fail(str(error), pytrace=False)

    def test_images(self, dataset):
        for index in self._read(dataset):
            image, name = dataset.image(index), dataset.names[index]
            require(
                image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3,
                f"The image of {name} must be uint8 of shape (rows, cols, 3), got {image.dtype} of shape"
                f" {image.shape}.",
            )
            require(
                dataset.size(index) == image.shape[:2],
                f"size says {dataset.size(index)} for {name}, but its image has {image.shape[:2]} rows and columns.",
            )

    def test_masks(self, dataset):
        for index in self._read(dataset) if dataset.masks else ():
            mask, name = dataset.mask(index), dataset.names[index]
            require(
                mask.dtype == np.uint8 and mask.shape == dataset.image(index).shape[:2],
                f"The mask of {name} must be uint8 with the rows and columns of its image, got {mask.dtype} of shape"
                f" {mask.shape}.",
            )
            wrong = np.setdiff1d(mask, [*range(len(dataset.classes)), IGNORE_INDEX]).tolist()
            require(
                not wrong,
                f"The mask of {name} contains {wrong[:3]}, but classes are 0 to {len(dataset.classes) - 1}, and ignored"
                f" pixels {IGNORE_INDEX}. Describe the ids or colours of the files by ids=, colours= or ignore_index=.",
            )

    def test_reading_is_repeatable(self, dataset):
        """A sample is the same when it is read again, also by a worker process, which gets a pickled data set."""
        try:
            copied = pickle.loads(pickle.dumps(dataset))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            pytest.fail(f"The data set cannot be pickled for the workers of a loader: {error}.", pytrace=False)
        for index in self._read(dataset):
            for kind in ("image", "mask") if dataset.masks else ("image",):
                first, *others = (getattr(each, kind)(index) for each in (dataset, dataset, copied))
                require(
                    all(np.array_equal(first, other) for other in others),
                    f"The {kind} of {dataset.names[index]} differs when it is read again: put random changes into an"
                    " augmentation.",
                )
