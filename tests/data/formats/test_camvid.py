"""CamVid in SegNet's layout: 11 classes, and id 11 on disk is ignored."""

import numpy as np
import pytest
from PIL import Image

from fcnlab.data import DataError, open_camvid


@pytest.fixture
def root(tmp_path, save_pair):
    for split in ("train", "val"):
        for name in ("b", "a"):
            files = tmp_path / "CamVid" / split / f"{name}.png", tmp_path / "CamVid" / f"{split}annot" / f"{name}.png"
            save_pair(*files, labels=range(12))
    (tmp_path / "CamVid" / "train" / "Thumbs.db").write_text("no image")
    return tmp_path


def test_id_11_is_read_as_255(root):
    dataset = open_camvid(str(root), "train")
    dataset.check()
    on_disk = np.array(Image.open(dataset.masks[0]))
    np.testing.assert_array_equal(dataset.mask(0), np.where(on_disk == 11, 255, on_disk))
    assert 11 in on_disk and len(dataset.classes) == len(dataset.palette) == 11


def test_images_are_sorted_and_other_files_skipped(root):
    assert open_camvid(str(root), "train").names == ("a", "b")


def test_images_of_any_suffix_are_read(root, save_pair):
    """Regression: images of all but three suffixes were skipped silently."""
    for name in ("c.TIF", "d.bmp"):
        save_pair(root / "CamVid/train" / name, root / f"CamVid/trainannot/{name[0]}.png", labels=(0, 1))
    assert open_camvid(str(root), "train").names == ("a", "b", "c", "d")


def test_an_image_without_a_mask_is_an_error(root):
    (root / "CamVid" / "trainannot" / "a.png").unlink()
    with pytest.raises(DataError, match=r"trainannot/a\.png is missing"):
        open_camvid(str(root), "train").check()


def test_an_unknown_split_is_an_error_that_lists_the_splits(root):
    (root / "CamVid" / "test").mkdir()  # without masks, it is not a split
    with pytest.raises(DataError, match=r"no split 'test' .* available are train, val\. Choose one of these"):
        open_camvid(str(root), "test")


def test_a_wrong_root_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"no CamVid in data\.root=.*Set data\.root"):
        open_camvid(str(tmp_path), "train")


@pytest.mark.parametrize(("split", "count"), [("train", 367), ("val", 101)])
def test_real_images(shared, split, count):
    dataset = open_camvid(str(shared / "data"), split)
    assert len(dataset) == count
    for index in range(0, count, count // 10):
        assert set(np.unique(dataset.mask(index))) <= {*range(11), 255}
        assert dataset.image(index).shape == (*dataset.mask(index).shape, 3)
