"""VOC's layout, its colours, and the real subset where it is there."""

import re

import numpy as np
import pytest
from PIL import Image

from fcnlab.data import DataError, open_voc
from fcnlab.data.voc import CLASSES, voc_palette

# The devkit's colours as they are published, by class id.
COLOURS = [
    (0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (128, 128, 128),
    (64, 0, 0), (192, 0, 0), (64, 128, 0), (192, 128, 0), (64, 0, 128), (192, 0, 128), (64, 128, 128),
    (192, 128, 128), (0, 64, 0), (128, 64, 0), (0, 192, 0), (128, 192, 0), (0, 64, 128),
]  # fmt: skip


def test_palette():
    palette = voc_palette()
    assert [tuple(colour) for colour in palette[:21].tolist()] == COLOURS
    assert palette[255].tolist() == [224, 224, 192] and len(palette) == 256
    named = dict(zip(CLASSES, COLOURS, strict=True))
    assert (named["aeroplane"], named["person"], named["tvmonitor"]) == ((128, 0, 0), (192, 128, 128), (0, 64, 128))


def test_list_gives_pictures_and_masks(voc_root):
    pictures = open_voc(str(voc_root), "val")
    assert pictures.names == ("v0", "v1", "v2", "v3", "v4") and len(pictures) == 5
    assert pictures.title == "VOC2012 val" and pictures.classes == CLASSES
    pictures.check()
    assert pictures.image(0).shape == (*pictures.mask(0).shape, 3)


def test_sbd_masks_fill_the_gaps(voc_root):
    pictures = open_voc(str(voc_root), "trainaug")
    pictures.check()
    folders = [mask.parent.name for mask in pictures.masks]
    assert folders == ["SegmentationClass"] * 8 + ["SegmentationClassAug"] * 2


def test_official_mask_wins_over_sbd(voc_root):
    folder = voc_root / "VOCdevkit" / "VOC2012"
    Image.new("L", (1, 1)).save(folder / "SegmentationClassAug" / "t0.png")
    assert open_voc(str(voc_root), "trainaug").masks[0] == folder / "SegmentationClass" / "t0.png"


def test_missing_mask_is_looked_for_in_the_official_folder(voc_root):
    (voc_root / "VOCdevkit/VOC2012/SegmentationClassAug/sbd0.png").unlink()
    with pytest.raises(DataError, match=r"SegmentationClass/sbd0\.png is missing"):
        open_voc(str(voc_root), "trainaug").check()


def test_blank_lines_and_spaces_are_no_names(voc_root):
    write_list(voc_root, b"v0 \r\n\r\n  v1\n\n")
    assert open_voc(str(voc_root), "val").names == ("v0", "v1")


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_lists_are_utf8_with_or_without_a_mark(voc_root, start):
    write_list(voc_root, (start + "v0\né\n").encode())
    assert open_voc(str(voc_root), "val").names == ("v0", "é")


def test_a_list_of_other_bytes_is_named(voc_root):
    write_list(voc_root, "v0\né\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"val\.txt cannot be read as a list: .*position 3.*It is UTF-8"):
        open_voc(str(voc_root), "val")


@pytest.mark.parametrize("name", ["../../x", "a/../../b", "..", "/etc/passwd"])
def test_names_that_lead_out_of_the_folders_are_refused(voc_root, name):
    write_list(voc_root, f"v0\n{name}\n".encode())
    with pytest.raises(DataError, match=re.escape(f"names {name!r}, which leads out")):
        open_voc(str(voc_root), "val")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_names_that_no_file_can_have_are_told_by_the_check(voc_root, name):
    write_list(voc_root, f"v0\n{name}\n".encode())
    with pytest.raises(DataError, match="1 of 2 pictures cannot be used"):
        open_voc(str(voc_root), "val").check()


def write_list(voc_root, data: bytes) -> None:
    (voc_root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_bytes(data)


def test_unknown_list_names_those_that_are_there(voc_root):
    with pytest.raises(DataError, match=r"no list 'test' .* there is train, trainaug, val\. Set data\.train_list"):
        open_voc(str(voc_root), "test")


@pytest.mark.parametrize("inside", ["VOCdevkit", "VOCdevkit/VOC2012"])
def test_root_too_deep_gets_a_hint(voc_root, inside):
    with pytest.raises(DataError, match=re.escape(f"Did you mean data.root={voc_root}?")):
        open_voc(str(voc_root / inside), "val")


def test_wrong_root_is_named(tmp_path):
    with pytest.raises(DataError, match=re.escape(f"data.root={tmp_path}: ") + ".*Set data.root to the folder"):
        open_voc(str(tmp_path), "val")


def test_another_year_is_another_folder(voc_root):
    (voc_root / "VOCdevkit" / "VOC2012").rename(voc_root / "VOCdevkit" / "VOC2011")
    assert open_voc(str(voc_root), "val", year=2011).title == "VOC2011 val"


@pytest.mark.parametrize(("split", "count"), [("train", 437), ("val", 300), ("trainaug", 3131)])
def test_real_lists(shared, split, count):
    pictures = open_voc(str(shared / "data"), split)
    assert len(pictures) == len(set(pictures.names)) == count
    for index in range(0, count, count // 20):
        mask = pictures.mask(index)
        np.testing.assert_array_equal(mask, np.array(Image.open(pictures.masks[index])))
        assert set(np.unique(mask)) <= {*range(21), 255} and pictures.image(index).shape[:2] == mask.shape


def test_real_val_is_held_out(shared):
    train, val, trainaug = (set(open_voc(str(shared / "data"), split).names) for split in ("train", "val", "trainaug"))
    assert not val & trainaug and train <= trainaug
