"""SBD next to VOC's devkit: its lists, its masks (read directly or converted once), and which mask is used."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from fcnlab.data import DataError, DataModule, open_sbd, open_voc
from fcnlab.data.formats import sbd
from fcnlab.data.formats.sbd import convert_masks, read_mat
from fcnlab.data.formats.voc import voc_palette
from fcnlab.data.transforms import standard

MASKS = {
    name: np.random.default_rng(place).choice(np.array([0, 7, 20], np.uint8), (20 + place, 30 - place))
    for place, name in enumerate(("t0", "t1", "sbd0", "sbd1"))
}


@pytest.fixture
def root(voc_root):
    """The tiny VOC without SegmentationClassAug/, and SBD as unpacked, which also has masks of two VOC images."""
    folder = voc_root / "VOCdevkit/VOC2012"
    for mask in (folder / "SegmentationClassAug").iterdir():
        mask.unlink()
    (folder / "SegmentationClassAug").rmdir()
    dataset = voc_root / "benchmark_RELEASE/dataset"
    (dataset / "cls").mkdir(parents=True)
    for name, mask in MASKS.items():
        Image.new("RGB", mask.shape[::-1]).save(folder / "JPEGImages" / f"{name}.jpg")
        Image.new("L", mask.shape[::-1]).save(folder / "SegmentationClass" / f"{name}.png")
        savemat(dataset / "cls" / f"{name}.mat", {"GTcls": {"Boundaries": 0.0, "Segmentation": mask}})
    for name in ("sbd0", "sbd1"):
        (folder / "SegmentationClass" / f"{name}.png").unlink()
    (dataset / "train.txt").write_text("t0\nsbd0\n")
    (dataset / "val.txt").write_text("t1\nsbd1\n")
    return voc_root


def masks(images) -> dict[str, np.ndarray]:
    return {name: images.mask(index) for index, name in enumerate(images.names)}


@pytest.mark.parametrize("convert", [True, False])
def test_sbd_lists_use_sbd_masks(convert, root):
    for split, names in (("sbd_train", ("t0", "sbd0")), ("sbd_val", ("t1", "sbd1"))):
        dataset = open_sbd(str(root), split, convert=convert)
        assert dataset.names == names and dataset.title == f"VOC2012 {split}"
        dataset.check()
        for name, mask in masks(dataset).items():
            np.testing.assert_array_equal(mask, MASKS[name])
    assert (root / "VOCdevkit/VOC2012/SegmentationClassAug").is_dir() == convert


@pytest.mark.parametrize("convert", [True, False])
def test_voc_lists_prefer_official_masks(convert, root):
    dataset = open_sbd(str(root), "trainaug", convert=convert)
    dataset.check()
    folders = ["SegmentationClass"] * 8 + ["SegmentationClassAug" if convert else "cls"] * 2
    assert [path.parent.name for path in dataset.masks] == folders
    np.testing.assert_array_equal(dataset.mask(9), MASKS["sbd1"])
    assert not dataset.mask(0).any()


def test_converted_masks_have_the_devkit_format_and_serve_open_voc(root):
    open_sbd(str(root), "trainaug")
    converted = sorted((root / "VOCdevkit/VOC2012/SegmentationClassAug").iterdir())
    assert [path.name for path in converted] == ["sbd0.png", "sbd1.png", "t0.png", "t1.png"]
    with Image.open(converted[0]) as mask:
        assert mask.mode == "P" and mask.getpalette()[: 21 * 3] == voc_palette(21).flatten().tolist()
        np.testing.assert_array_equal(np.array(mask), MASKS["sbd0"])
    open_voc(str(root), "trainaug").check()


def test_masks_are_converted_once(root, monkeypatch):
    open_sbd(str(root), "trainaug")
    monkeypatch.setattr(sbd, "read_mat", lambda path: pytest.fail("converted again"))
    convert_masks(root / "nothing", root / "VOCdevkit/VOC2012/SegmentationClassAug", root)
    open_sbd(str(root), "sbd_train").check()


def test_masks_missing_in_an_existing_folder_are_read_from_sbd(root):
    own = root / "VOCdevkit/VOC2012/SegmentationClassAug/sbd0.png"
    own.parent.mkdir()
    Image.fromarray(MASKS["sbd0"] * 0).save(own)
    read = masks(open_sbd(str(root), "trainaug"))
    assert not read["sbd0"].any()
    np.testing.assert_array_equal(read["sbd1"], MASKS["sbd1"])


def test_official_lists_work_without_sbd(voc_root):
    for split in ("train", "val", "trainaug"):  # the masks of the last are in SegmentationClassAug/
        open_sbd(str(voc_root), split).check()


def test_a_user_list_takes_precedence_over_the_sbd_list(root):
    (root / "VOCdevkit/VOC2012/ImageSets/Segmentation/sbd_train.txt").write_text("sbd1\n")
    assert open_sbd(str(root), "sbd_train").names == ("sbd1",)


@pytest.mark.parametrize("split", ["sbd_train", "trainaug"])
def test_missing_sbd_is_an_error_with_instructions(split, root):
    (root / "benchmark_RELEASE").rename(root / "elsewhere")
    with pytest.raises(
        DataError, match=r"SBD is not in data\.root=.*benchmark\.tgz.*data\.download=true.*data\.archive"
    ):
        open_sbd(str(root), split)


def test_a_mask_missing_in_a_foreign_conversion_is_named(voc_root):
    (voc_root / "VOCdevkit/VOC2012/SegmentationClassAug/sbd1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 10 images cannot be used:\n.*sbd1\.png is missing"):
        open_sbd(str(voc_root), "trainaug").check()


def test_an_image_without_an_sbd_mask_is_an_error(root):
    (root / "benchmark_RELEASE/dataset/cls/sbd1.mat").unlink()
    with pytest.raises(DataError, match=r"cls/sbd1\.mat is missing"):
        open_sbd(str(root), "trainaug").check()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"sbd0\.mat cannot be read as a mask of SBD \(GTcls\.Segmentation\): it is not a MATLAB file"),
        ({"GTinst": {"Segmentation": MASKS["sbd0"]}}, "it has no variable GTcls"),
        (
            {"GTcls": {"Segmentation": MASKS["sbd0"] + 21}},
            r"sbd0\.mat contains labels \[21, 28, 41\], but VOC has classes 0",
        ),
    ],
)
def test_a_bad_file_is_named_and_leaves_no_partial_conversion(content, message, root):
    file = root / "benchmark_RELEASE/dataset/cls/sbd0.mat"
    file.write_bytes(content) if isinstance(content, bytes) else savemat(file, content)
    with pytest.raises(DataError, match=message):
        read_mat(file)
    with pytest.raises(DataError, match=message + r"(?s:.*)data\.dataset\.convert=false"):
        open_sbd(str(root), "trainaug")
    assert "SegmentationClassAug" not in "".join(path.name for path in (root / "VOCdevkit/VOC2012").iterdir())
    with pytest.raises(DataError, match=message):
        open_sbd(str(root), "trainaug", convert=False).check()


def test_a_killed_conversion_is_restarted(root, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(sbd.shutil, "rmtree", lambda *args, **kwargs: None)  # SIGKILL cleans nothing up
        patch.setattr(Path, "rename", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            open_sbd(str(root), "trainaug")
    assert not (root / "VOCdevkit/VOC2012/SegmentationClassAug").exists()
    open_sbd(str(root), "trainaug").check()


def test_sbd_lists_that_overlap_with_voc_val_are_refused(root):
    """SBD images are read from VOC's folder: copies from SBD's archive would hide the overlap."""
    lists = root / "VOCdevkit/VOC2012/ImageSets/Segmentation"
    (lists / "val.txt").write_text("t0\nv0\n")
    data = DataModule(open_sbd, str(root), "sbd_train", "val", 21, standard, crop_size=16, batch_size=1)
    with pytest.raises(DataError, match=r"1 of 2 images of VOC2012 val are also in data\.train_list=sbd_train \(t0\)"):
        data.check("train", "val")
