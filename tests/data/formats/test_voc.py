"""VOC's layout and colours, and the real subset if it is available."""

import hashlib
import re
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import SBDataset

from fcnlab.data import DataError, open_voc
from fcnlab.data.formats.sbd import SBD
from fcnlab.data.formats.voc import CLASSES, find_list, read_list, voc_archive, voc_palette

# The devkit's published colours, by class id.
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


def test_a_list_selects_images_and_masks(voc_root):
    dataset = open_voc(str(voc_root), "val")
    assert dataset.names == ("v0", "v1", "v2", "v3", "v4") and len(dataset) == 5
    assert dataset.title == "VOC2012 val" and dataset.classes == CLASSES
    dataset.check()
    assert dataset.image(0).shape == (*dataset.mask(0).shape, 3)


def test_a_list_may_be_the_path_of_a_text_file(voc_root, tmp_path):
    whole = open_voc(str(voc_root), "train")
    (tmp_path / "few.txt").write_text(f"{whole.names[-1]}\n")
    dataset = open_voc(str(voc_root), f"{tmp_path}/few.txt")
    assert dataset.names == whole.names[-1:] and dataset.images == whole.images[-1:]
    assert dataset.title == "VOC2012 few.txt"


def test_sbd_masks_are_used_where_official_ones_are_missing(voc_root):
    dataset = open_voc(str(voc_root), "trainaug")
    dataset.check()
    folders = [mask.parent.name for mask in dataset.masks]
    assert folders == ["SegmentationClass"] * 8 + ["SegmentationClassAug"] * 2


def test_an_official_mask_takes_precedence_over_sbd(voc_root):
    folder = voc_root / "VOCdevkit" / "VOC2012"
    Image.new("L", (1, 1)).save(folder / "SegmentationClassAug" / "t0.png")
    assert open_voc(str(voc_root), "trainaug").masks[0] == folder / "SegmentationClass" / "t0.png"


def test_a_missing_mask_is_reported_in_the_official_folder(voc_root):
    (voc_root / "VOCdevkit/VOC2012/SegmentationClassAug/sbd0.png").unlink()
    with pytest.raises(DataError, match=r"SegmentationClass/sbd0\.png is missing"):
        open_voc(str(voc_root), "trainaug").check()


def test_blank_lines_and_spaces_in_lists_are_skipped(voc_root):
    write_list(voc_root, b"v0 \r\n\r\n  v1\n\n")
    assert open_voc(str(voc_root), "val").names == ("v0", "v1")


@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_lists_are_utf8_with_or_without_a_byte_order_mark(voc_root, start):
    write_list(voc_root, (start + "v0\né\n").encode())
    assert open_voc(str(voc_root), "val").names == ("v0", "é")


def test_a_list_in_another_encoding_is_an_error_that_names_it(voc_root):
    write_list(voc_root, "v0\né\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"val\.txt cannot be read as a list: .*position 3.*It must be UTF-8"):
        open_voc(str(voc_root), "val")


@pytest.mark.parametrize("name", ["../../x", "a/../../b", "..", "/etc/passwd"])
def test_names_that_leave_the_data_folder_are_refused(voc_root, name):
    write_list(voc_root, f"v0\n{name}\n".encode())
    with pytest.raises(DataError, match=re.escape(f"contains {name!r}, which leads out")):
        open_voc(str(voc_root), "val")


@pytest.mark.parametrize("name", ["x" * 300, "a\0b"])
def test_invalid_file_names_are_reported_by_the_check(voc_root, name):
    write_list(voc_root, f"v0\n{name}\n".encode())
    with pytest.raises(DataError, match="1 of 2 images cannot be used"):
        open_voc(str(voc_root), "val").check()


def write_list(voc_root, data: bytes) -> None:
    (voc_root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").write_bytes(data)


def test_an_unknown_list_is_an_error_that_lists_the_available_ones(voc_root):
    with pytest.raises(DataError, match=r"no list 'test' .* available are train, trainaug, val\. Choose one of these"):
        open_voc(str(voc_root), "test")


@pytest.mark.parametrize("inside", ["VOCdevkit", "VOCdevkit/VOC2012"])
def test_a_root_that_is_too_deep_gets_a_hint(voc_root, inside):
    with pytest.raises(DataError, match=re.escape(f"Did you mean data.root={voc_root}?")):
        open_voc(str(voc_root / inside), "val")


def official(root, *names: str):
    """Create a devkit folder with images of these names, and no lists."""
    folder = root / "VOCdevkit/VOC2012"
    for name in names:
        save = {"JPEGImages": Image.new("RGB", (3, 2)), "SegmentationClass": Image.new("L", (3, 2))}
        for kind, image in save.items():
            (folder / kind).mkdir(parents=True, exist_ok=True)
            image.save(folder / kind / f"{name}.{'jpg' if kind == 'JPEGImages' else 'png'}")
    (folder / "SegmentationClassAug").mkdir()
    return folder


def listed(root, name: str) -> tuple[str, ...]:
    return read_list(*find_list(root / "VOCdevkit/VOC2012", name, 2012))


# Length, md5, first and last name: VOC's, DeepLab's, and seg11valid of shelhamer/fcn.berkeleyvision.org, data/pascal.
OFFICIAL = {
    "train": (1464, "223101833d3a86c8a837814f3e7afe88", "2007_000032", "2011_003255"),
    "val": (1449, "5510db06bbb92848a0bf6109eba6d646", "2007_000033", "2011_003271"),
    "trainaug": (10582, "215992f6fd958f89800449fdb4bbabe6", "2007_000032", "2011_003276"),
    "seg11valid": (736, "7984b6ce736bd3666d8b7ee70b5401da", "2007_000033", "2011_003271"),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_fcnlab_contains_the_official_lists(name, tmp_path):
    count, md5, first, last = OFFICIAL[name]
    official(tmp_path, first)
    names = listed(tmp_path, name)
    assert (len(names), names[0], names[-1]) == (count, first, last) and len(set(names)) == count
    assert hashlib.md5("".join(f"{name}\n" for name in names).encode()).hexdigest() == md5
    if name != "seg11valid":
        assert listed(tmp_path, f"voc2012_{name}") == names


def test_official_lists_overlap_only_as_published(tmp_path):
    official(tmp_path, "2007_000032", "2007_000033")
    train, val, trainaug, seg11valid = (set(listed(tmp_path, name)) for name in OFFICIAL)
    assert train < trainaug and seg11valid < val and not val & trainaug


def test_trainaug_without_sbd_masks_recommends_data_voc_aug(tmp_path):
    folder = official(tmp_path, "2007_000032")
    (folder / "SegmentationClassAug").rmdir()
    with pytest.raises(DataError, match=r"masks only in SBD, and .*Aug does not exist: choose data=voc_aug"):
        open_voc(str(tmp_path), "trainaug")


def test_a_list_in_the_devkit_takes_precedence(tmp_path):
    lists = official(tmp_path, "2007_000032") / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "trainaug.txt").write_text("mine\n")
    assert open_voc(str(tmp_path), "trainaug").names == listed(tmp_path, "trainaug") == ("mine",)
    assert len(listed(tmp_path, "voc2012_trainaug")) == 10582


def test_lists_of_2012_are_not_used_for_other_years(tmp_path):
    official(tmp_path, "2007_000032", "2007_000033").rename(tmp_path / "VOCdevkit/VOC2007")
    for name in ("train", "trainaug"):
        with pytest.raises(DataError, match=f"no list '{name}'"):
            open_voc(str(tmp_path), name, year=2007)


def test_a_list_without_any_existing_image_is_not_available(voc_root):
    """The data set is the user's own, in VOC's format."""
    with pytest.raises(DataError, match=r"no list 'seg11valid' .*: available are train, trainaug, val"):
        open_voc(str(voc_root), "seg11valid")


# torchvision, datasets/voc.py (0.26): years, checksums and URLs.
@pytest.mark.parametrize("year", range(2007, 2013))
def test_voc_archives_equal_those_of_torchvision(year):
    from torchvision.datasets.voc import DATASET_YEAR_DICT

    known, actual = DATASET_YEAR_DICT[str(year)], voc_archive(year, "train")
    assert (
        actual.md5 == known["md5"] and actual.urls[0] == known["url"] and actual.name == known["url"].rpartition("/")[2]
    )
    assert (
        all(url.endswith(f"/{actual.name}") for url in actual.urls) and len(set(actual.urls)) == len(actual.urls) >= 2
    )
    if year == 2007:
        assert voc_archive(year, "test").md5 == DATASET_YEAR_DICT["2007-test"]["md5"]


def test_the_sbd_archive_equals_that_of_torchvision():
    assert (SBD.md5, SBD.urls[0], SBD.name) == (SBDataset.md5, SBDataset.url, SBDataset.filename)


def test_an_unknown_year_has_no_archive(tmp_path):
    with pytest.raises(
        DataError, match=r"data\.dataset\.year=2013 is not valid: VOC has segmentations of 2007 to 2012"
    ):
        open_voc(str(tmp_path), "train", year=2013, download=True)


def test_a_devkit_is_unpacked_from_user_tar_files(voc_root, tmp_path):
    """Once the devkit exists, the tar files are not read again."""
    lists = voc_root / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    shutil.copy(lists / "trainaug.txt", lists / "trainval.txt")
    with tarfile.open(tmp_path / "mine.tar", "w") as tar:
        tar.add(voc_root / "VOCdevkit", "VOCdevkit")
    for archive in ([str(tmp_path / "mine.tar")], "gone.tar"):
        dataset = open_voc(str(tmp_path / "new"), "val", archive=archive)
        dataset.check()
        assert dataset.names == open_voc(str(voc_root), "val").names


def test_a_wrong_root_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=re.escape(f"data.root={tmp_path}: ") + ".*Set data.root to the folder"):
        open_voc(str(tmp_path), "val")


def test_the_year_selects_the_folder(voc_root):
    (voc_root / "VOCdevkit" / "VOC2012").rename(voc_root / "VOCdevkit" / "VOC2011")
    assert open_voc(str(voc_root), "val", year=2011).title == "VOC2011 val"


@pytest.mark.parametrize(("split", "count"), [("train", 437), ("val", 300), ("trainaug", 3131)])
def test_real_lists(shared, split, count):
    dataset = open_voc(str(shared / "data"), split)
    assert len(dataset) == len(set(dataset.names)) == count
    for index in range(0, count, count // 20):
        mask = dataset.mask(index)
        np.testing.assert_array_equal(mask, np.array(Image.open(dataset.masks[index])))
        assert set(np.unique(mask)) <= {*range(21), 255} and dataset.image(index).shape[:2] == mask.shape


def test_real_val_and_trainaug_are_disjoint(shared):
    train, val, trainaug = (set(open_voc(str(shared / "data"), split).names) for split in ("train", "val", "trainaug"))
    assert not val & trainaug and train <= trainaug
