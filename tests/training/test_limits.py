"""Images that give no score are refused before a training, and not at its first validation."""

from types import SimpleNamespace

import numpy as np
import pytest

from fcnlab.data.formats.shapes import open_shapes
from fcnlab.errors import UserError
from fcnlab.training.limits import check_validation_has_scores

IGNORE_INDEX, CAT = 255, 8


class Masks:
    """Eight images of shapes, whose masks are of one label each."""

    def __init__(self, images, labels):
        self.images, self.labels = images, labels
        self.title, self.classes = images.title, images.classes

    def __len__(self):
        return len(self.labels)

    def mask(self, index):
        return np.full((4, 4), self.labels[index], np.uint8)

    def size(self, index):
        return (4, 4) if index % 2 else (6, 4)


@pytest.fixture
def check(shapes_root):
    dataset = open_shapes(str(shapes_root), "val", num_train=24, num_val=8, size=64)

    def run(labels, limit=1.0, world_size=1, batch=1, monitor="val/miou"):
        split = Masks(dataset, labels)
        data = SimpleNamespace(
            split=lambda name: split,
            label_pixels=lambda name: np.bincount(labels, minlength=256) * 16,
            eval_batch_size=batch,
        )
        callbacks = [SimpleNamespace(monitor=monitor), SimpleNamespace()]
        limits = {"limit_val_batches": limit, "limit_test_batches": 1.0}
        check_validation_has_scores(SimpleNamespace(world_size=world_size, callbacks=callbacks, **limits), data)

    return run


@pytest.mark.parametrize(
    ("limit", "world_size", "batch", "refused"),
    [
        (1.0, 1, 1, False),
        (1, 1, 1, True),
        (3, 1, 1, True),
        (4, 1, 1, False),
        (0.25, 1, 1, True),
        (0.5, 1, 1, False),
        (1, 2, 1, True),
        (2, 2, 1, False),
        (2, 1, 2, False),  # images 0 and 2, which are of one size, then 1 and 3
        (1, 1, 4, True),  # images 0, 2, 4 and 6
        (0, 1, 1, False),  # no validation at all
    ],
)
def test_limit_that_leaves_ignored_pixels_only_is_refused(check, limit, world_size, batch, refused):
    """Of eight images, the fourth alone has a labelled pixel."""
    labels = [IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, CAT, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX, IGNORE_INDEX]
    if not refused:
        return check(labels, limit, world_size, batch)
    with pytest.raises(UserError, match=rf"trainer\.limit_val_batches={limit}: .* of 8 images .* are ignored"):
        check(labels, limit, world_size, batch)


def test_a_monitored_class_that_no_image_has_is_refused(check):
    labels = [0, 1, 2, 3, CAT, 0, 0, 0]
    check(labels, monitor="val/iou/cat")
    check(labels, 5, monitor="val/iou/cat")
    with pytest.raises(
        UserError, match=r"limit_val_batches=4: .*monitor=val/iou/cat has no value, since none of the 4"
    ):
        check(labels, 4, monitor="val/iou/cat")
    with pytest.raises(UserError, match="SimpleNamespace: monitor=val/iou/dog has no value, since none of the 8"):
        check(labels, monitor="val/iou/dog")


def test_set_of_ignored_pixels_is_refused(check):
    with pytest.raises(UserError, match="8 of 8 images of shapes val are scored, but all their pixels are ignored"):
        check([IGNORE_INDEX] * 8)
