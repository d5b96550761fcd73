"""Masks, compared with another library's reading of the same files: colours in any format, ids with any mapping."""

import struct
import time
import zlib
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from fcnlab.data import DataError, SegmentationDataset, open_camvid, open_folder, open_sbd, open_shapes, open_voc
from fcnlab.data.formats.voc import voc_palette
from fcnlab.data.masks import mask_palette, read_mask

NAMES = ("ground", "leaf", "stem")
COLOURS = ((10, 20, 30), (0, 255, 0), (200, 0, 9))
GREYS = ((0, 0, 0), (85, 85, 85), (255, 255, 255))
LABELS = np.random.default_rng(0).integers(0, 3, (13, 17)).astype(np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Open a folder with one image, whose mask is saved at ``mask``."""
    for name in ("photos", "labels"):
        (tmp_path / name).mkdir()
    Image.new("RGB", LABELS.shape[::-1]).save(tmp_path / "photos/a.jpg")

    def build(suffix: str = "png", **settings) -> SegmentationDataset:
        patterns = {"images": "photos/{name}.jpg", "masks": f"labels/{{name}}.{suffix}", "fractions": {"all": 1.0}}
        return open_folder(str(tmp_path), "all", **patterns, **{"classes": NAMES} | settings)

    return build


@pytest.fixture
def mask(tmp_path) -> Path:
    return tmp_path / "labels/a.png"


def by_palette(order: tuple[int, ...], colours=COLOURS, **options):
    """Save labels as indices of a palette whose entries are in another order."""

    def save(path: Path) -> None:
        image = Image.fromarray(np.argsort(order).astype(np.uint8)[LABELS])
        image.putpalette([part for label in order for part in colours[label]])
        image.save(path, **options)

    return save


def as_rgb(path: Path, colours=COLOURS, **options) -> None:
    Image.fromarray(np.array(colours, np.uint8)[LABELS]).save(path, **options)


def by_hand(depth: int, stored: tuple[int, ...], palette: bytes = b""):
    """Save labels as grey of few bits, or as indices of a palette."""

    def save(path: Path) -> None:
        bits = (np.array(stored, np.uint8)[LABELS][..., None] >> np.arange(depth)[::-1]) & 1
        lines = b"".join(b"\0" + np.packbits(line).tobytes() for line in bits.reshape(len(LABELS), -1))
        header = struct.pack(">IIBBBBB", *LABELS.shape[::-1], depth, 3 if palette else 0, 0, 0, 0)
        parts = [(b"IHDR", header), *([(b"PLTE", palette)] if palette else [])]
        parts += [(b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
        whole = (struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts)
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(whole))

    return save


COLOURED = {
    "RGB.png": as_rgb,
    "palette.png": by_palette((0, 1, 2)),
    "palette in another order.png": by_palette((2, 0, 1)),
    "palette, optimised.png": by_palette((1, 2, 0), optimize=True),
    "palette of 8 bits.png": by_palette((1, 0, 2), bits=8),
    "RGB.tif": as_rgb,
    "RGB, compressed.tif": partial(as_rgb, compression="tiff_lzw"),
    "palette.tif": by_palette((2, 1, 0)),
    "palette, compressed.tiff": by_palette((2, 0, 1), compression="tiff_adobe_deflate"),
}


@pytest.mark.parametrize("kind", COLOURED)
def test_class_colours_equal_the_colours_read_by_opencv(folder, mask, kind):
    mask = mask.with_suffix(Path(kind).suffix)
    COLOURED[kind](mask)
    shown = cv2.imread(str(mask), cv2.IMREAD_COLOR_RGB)
    expected = np.full(LABELS.shape, 99)
    for label, colour in enumerate(COLOURS):
        expected[(shown == colour).all(axis=2)] = label
    images = folder(mask.suffix[1:], classes=dict(zip(NAMES, map(list, COLOURS), strict=True)))
    np.testing.assert_array_equal(images.mask(0), expected)
    np.testing.assert_array_equal(images.mask(0), LABELS)  # which differs from the stored indices
    images.check()


GREY = {
    "8 bits": lambda path: Image.fromarray(np.array(GREYS, np.uint8)[:, 0][LABELS]).save(path),
    "2 bits": by_hand(2, (0, 1, 3)),
    "4 bits": by_hand(4, (0, 5, 15)),
    "palette": by_palette((2, 0, 1), GREYS),
    "RGB": partial(as_rgb, colours=GREYS),
}


@pytest.mark.parametrize("kind", GREY)
def test_class_colours_apply_to_grey_masks(folder, mask, kind):
    GREY[kind](mask)
    shown = cv2.imread(str(mask), cv2.IMREAD_COLOR_RGB)
    images = folder(classes=dict(zip(NAMES, map(list, GREYS), strict=True)))
    np.testing.assert_array_equal(np.array(GREYS)[images.mask(0)], shown)


@pytest.mark.parametrize("save", [by_hand(1, (0, 1, 0)), by_palette((2, 0, 1), ((0, 0, 0), (255,) * 3, (0, 0, 0)))])
def test_class_colours_apply_to_black_and_white_masks(folder, mask, save):
    save(mask)
    images = folder(classes={"background": [0, 0, 0], "object": [255, 255, 255]})
    np.testing.assert_array_equal(images.mask(0), LABELS == 1)


def test_ignore_colours_apply_to_grey_masks(folder, mask):
    GREY["8 bits"](mask)
    images = folder(classes={"a": [0, 0, 0], "b": [85, 85, 85]}, ignore_colours=[[255, 255, 255]])
    np.testing.assert_array_equal(images.mask(0), np.array([0, 1, 255])[LABELS])


def test_masks_of_ids_with_class_colours_are_refused(folder, mask):
    """Regression: they were read as ids, and the colours were ignored."""
    Image.fromarray(LABELS).save(mask)
    with pytest.raises(
        DataError, match=r"3 colours .*\[0, 0, 0\], \[1, 1, 1\], .*contain ids, .*classes to names only"
    ):
        folder(classes=dict(zip(NAMES, map(list, COLOURS), strict=True))).mask(0)


def test_an_index_beyond_the_palette_is_an_error(folder, mask):
    by_hand(8, (0, 1, 9), bytes(np.ravel(COLOURS).tolist()))(mask)
    with pytest.raises(DataError, match=r"a\.png contains index 9, but its palette has 3 colours"):
        folder(classes=dict(zip(NAMES, map(list, COLOURS), strict=True))).mask(0)


MAPPINGS = {
    "binary": ((0, 255, 255), {0: "ground", 255: "leaf"}, 255, (0, 1, 1)),
    "from 1, ignored is 0": ((0, 1, 2), {1: "ground", 2: "leaf"}, 0, (255, 0, 1)),
    "several to one": ((7, 8, 9), {7: "leaf", 8: "ground", 9: "leaf"}, None, (1, 0, 1)),
    "or null for ignored pixels": ((3, 4, 255), {3: None, 4: "ground", 5: "leaf"}, 255, (255, 0, 255)),
    "beyond 255": ((0, 300, 65535), {0: "ground", 300: "leaf"}, 65535, (0, 1, 255)),
}


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", MAPPINGS)
def test_ids_are_mapped_to_classes(folder, mask, kind, bits, suffix):
    stored, ids, ignore_index, labels = MAPPINGS[kind]
    if max(stored) > 2**bits - 1:
        bits = 16
    mask = mask.with_suffix(f".{suffix}")
    Image.fromarray(np.array(stored, f"uint{bits}")[LABELS]).save(mask)
    images = folder(suffix, classes=NAMES[:2], ids=ids, ignore_index=ignore_index)
    numbers = {None: 255, "ground": 0, "leaf": 1}
    read = cv2.imread(str(mask), cv2.IMREAD_UNCHANGED)
    assert read.dtype.itemsize == bits // 8
    for label, value in zip(images.mask(0).ravel(), read.ravel().tolist(), strict=True):
        assert label == numbers[ids.get(value)]
    np.testing.assert_array_equal(images.mask(0), np.array(labels)[LABELS])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ids": {0: "ground", 1: "leaf"}}, r"data\.dataset\.ids has no id for stem"),
        ({"ids": {0: "ground", 1: "leaf", 2: "tree"}}, r"ids names 'tree', which is not in .*ground, leaf, stem"),
        pytest.param(
            {"ids": {"zero": "ground"}},
            r"ids has the key 'zero': ids must be numbers",
            marks=pytest.mark.unchecked,
        ),
        ({"ids": {-1: "ground", 1: "leaf", 2: "stem"}}, r"ids=\{-1: \.\.\.\} is not a valid mask id: use 0 to 65535"),
        (
            {"ids": {0: "ground", 1: "leaf", 2: "stem"}, "ignore_index": 2},
            r"ignore_index=2 is also the id of class stem .*ids=",
        ),
        ({"ids": {0: "a"}, "classes": {"a": [0, 0, 0]}}, r"ids has no effect with class colours"),
        ({"ignore_index": 7, "classes": {"a": [0, 0, 0]}}, r"ignore_index=7 has no effect with class colours"),
        ({"ignore_index": -1}, r"ignore_index=-1 is not a valid mask id: set 0 to 65535, or null"),
    ],
)
def test_invalid_ids_are_explained(folder, settings, message):
    with pytest.raises(DataError, match=message):
        folder(**settings)


def test_an_id_without_a_class_is_an_error_that_names_it(folder, mask):
    Image.fromarray(np.array((0, 1, 77), np.uint8)[LABELS]).save(mask)
    with pytest.raises(DataError, match=r"a\.png contains labels \[77\] without a class"):
        folder(classes=NAMES[:2], ids={0: "ground", 1: "leaf"}).mask(0)


def test_ids_beyond_255_are_errors_that_name_them(folder, mask):
    Image.fromarray(np.array((0, 1, 300), np.uint16)[LABELS]).save(mask)
    with pytest.raises(
        DataError, match=r"a\.png contains labels \[300\], but .* has classes 0 to 2 and ignore_index 255"
    ):
        folder().mask(0)


@pytest.mark.parametrize(
    ("suffix", "pixels", "options"),
    [
        ("png", LABELS.astype(np.uint16), {}),
        ("tif", LABELS, {}),
        ("tiff", LABELS, {"compression": "tiff_lzw"}),
        ("tif", LABELS.astype(np.uint16), {"compression": "tiff_adobe_deflate"}),
        ("tif", LABELS.astype(np.uint16), {"compression": "packbits"}),
    ],
)
def test_ids_are_read_from_16_bit_files_and_tiffs(folder, mask, suffix, pixels, options):
    mask = mask.with_suffix(f".{suffix}")
    Image.fromarray(pixels).save(mask, **options)
    np.testing.assert_array_equal(cv2.imread(str(mask), cv2.IMREAD_UNCHANGED), folder(suffix).mask(0))
    folder(suffix).check()


def test_tiffs_written_by_opencv_are_read(folder, mask):
    for values in (LABELS, LABELS.astype(np.uint16)):
        cv2.imwrite(str(mask.with_suffix(".tif")), values)
        np.testing.assert_array_equal(folder("tif").mask(0), LABELS)


def white_is_zero(path: Path) -> None:
    Image.fromarray(LABELS.astype(np.uint16)).save(path, tiffinfo={262: 0})


REFUSED = {
    "pages": (
        lambda p: Image.fromarray(LABELS).save(p, save_all=True, append_images=[Image.fromarray(LABELS)]),
        "more",
    ),
    "lossy": (lambda p: Image.fromarray(LABELS).save(p, compression="jpeg"), "has jpeg compression, which blurs"),
    "rotated": (lambda p: Image.fromarray(LABELS).save(p, tiffinfo={274: 3}), "with orientation 3: save it upright"),
    "white is zero": (white_is_zero, "mode I;16"),
    "floating point": (lambda p: Image.fromarray(LABELS.astype(np.float32)).save(p), "mode F;32F"),
    "32 bits": (lambda p: Image.fromarray(LABELS.astype(np.int32)).save(p), "mode I;32"),
    "1 bit": (lambda p: Image.fromarray(LABELS == 1).save(p), r"mode 1, .*1-bit black and white: .*classes=\{NAME"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_ambiguous_mask_files_are_refused(folder, mask, kind):
    save, message = REFUSED[kind]
    save(mask.with_suffix(".tif"))
    with pytest.raises(DataError, match=rf"a\.tif .*{message}"):
        folder("tif").mask(0)


def test_a_rotated_tiff_image_is_refused(tmp_path, folder, mask):
    """PIL rotates TIFFs (only TIFFs) when it decodes them, and the mask would not be rotated."""
    Image.fromarray(LABELS).save(mask)
    Image.new("RGB", LABELS.shape[::-1]).save(tmp_path / "photos/a.jpg", "TIFF", tiffinfo={274: 3})
    with pytest.raises(DataError, match=r"a\.jpg is a TIFF with orientation 3"):
        folder().image(0)


def test_a_truncated_tiff_is_refused(folder, mask):
    mask = mask.with_suffix(".tif")
    for options in ({}, {"compression": "tiff_lzw"}):
        Image.fromarray(LABELS).save(mask, **options)
        whole = mask.read_bytes()
        for length in range(0, len(whole) - 1, 9):
            mask.write_bytes(whole[:length])
            try:
                assert np.array_equal(folder("tif").mask(0), LABELS)  # the missing bytes contain no pixels
            except DataError as error:
                assert str(mask) in str(error)


def camvid(root: Path) -> SegmentationDataset:
    for name in ("train", "trainannot"):
        (root / "CamVid" / name).mkdir(parents=True)
    return open_camvid(str(root), "train")


def test_an_ignore_index_that_is_a_class_is_refused_for_every_data_set(voc_root, tmp_path, folder, shapes_root):
    small = {"num_train": 24, "num_val": 8, "size": 64}  # the settings of all other tests
    opened = [
        open_voc(str(voc_root), "val"),
        open_sbd(str(voc_root), "trainaug"),
        open_shapes(str(shapes_root), "val", **small),
        camvid(tmp_path),
        folder(),
    ]
    for images in opened:
        with pytest.raises(
            DataError, match=rf"ignore_index=2 is also the id of class {images.classes[2]} .*dataset\.ids="
        ):
            replace(images, ignore_index=2)
        assert replace(images, ignore_index=None).ignore_index is None
    with pytest.raises(DataError, match=r"ignore_index=0 is also the id of class ground"):
        folder(ignore_index=0)


def test_more_than_255_classes_are_refused(voc_root):
    """The 256th class would be ignored."""
    with pytest.raises(DataError, match="has 256 classes, but 1 to 255"):
        replace(open_voc(str(voc_root), "val"), classes=tuple(map(str, range(256))), ignore_index=None)


@pytest.mark.parametrize("colours", [{0: 0, 1: 7, 2: 20, 3: 255}, {0: 7, 1: 0, 2: 20}])
def test_a_voc_mask_with_a_reordered_palette_is_refused(voc_root, colours):
    """PNG optimisers reorder palettes: the mask looks the same but has other ids."""
    dataset = open_voc(str(voc_root), "train")
    mask = dataset.masks[0]
    stored = np.random.default_rng(1).integers(0, len(colours), dataset.size(0)).astype(np.uint8)
    for image, sound in (
        (Image.fromarray(stored), False),
        (Image.fromarray(np.uint8([*colours.values()])[stored]), True),
    ):
        palette = voc_palette(256)[[*colours.values()]] if not sound else voc_palette(256)
        image.putpalette(palette.tobytes())
        image.save(mask)
        if sound:
            np.testing.assert_array_equal(dataset.mask(0), np.array([*colours.values()])[stored])
        else:
            with pytest.raises(
                DataError, match=r"contains labels|a palette whose colours contradict its ids for VOC2012 train"
            ):
                dataset.mask(0)


def test_a_palette_of_other_colours_does_not_change_ids(voc_root):
    dataset = open_voc(str(voc_root), "train")
    stored = np.random.default_rng(1).integers(0, 21, dataset.size(0)).astype(np.uint8)
    image = Image.fromarray(stored)
    image.putpalette(np.random.default_rng(2).integers(0, 256, 768).astype(np.uint8).tobytes())
    image.save(dataset.masks[0])
    np.testing.assert_array_equal(dataset.mask(0), stored)


def test_real_masks_equal_the_decoding_by_pil(shared):
    dataset = open_voc(str(shared / "data"), "val")
    for index in range(0, len(dataset), 40):
        np.testing.assert_array_equal(dataset.mask(index), np.array(Image.open(dataset.masks[index])))


def test_a_tiff_with_many_images_is_refused_quickly(tmp_path):
    """PIL counts them in quadratic time: a file of 1 MB takes minutes."""
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "x.tif")
    data = bytearray((tmp_path / "x.tif").read_bytes())
    (first,) = struct.unpack_from("<I", data, 4)
    (entries,) = struct.unpack_from("<H", data, first)
    struct.pack_into("<I", data, first + 2 + 12 * entries, len(data))
    for count in range(1, 60_000):  # each directory has no entries and follows the previous one
        data += struct.pack("<HI", 0, (len(data) + 6) * (count < 59_999))
    (tmp_path / "x.tif").write_bytes(data)
    started = time.process_time()
    with pytest.raises(DataError, match="contains more than one image"):
        read_mask(tmp_path / "x.tif", coloured=False)
    assert time.process_time() - started < 1


def test_a_tiff_of_signed_numbers_is_refused(tmp_path):
    """PIL reads -1 of 8 bits as 255, which would be ignored."""
    cv2.imwrite(str(tmp_path / "a.tif"), np.array([[-1, 0, 1]], np.int8))
    with pytest.raises(DataError, match="signed numbers"):
        read_mask(tmp_path / "a.tif", coloured=False)


@pytest.mark.parametrize(("bits", "step"), [(2, 85), (4, 17)])
def test_grey_masks_of_few_bits_are_explained(folder, mask, bits, step):
    by_hand(bits, (0, 1, 2))(mask)
    with pytest.raises(DataError, match=rf"{bits}-bit grey.*8 bits.*\{{NAME: \[0, 0, 0\], NAME: \[{step}, {step}, "):
        folder().mask(0)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_mask_palette_equals_the_palette_read_by_pil(mask, folder, suffix):
    mask = mask.with_suffix(f".{suffix}")
    folder(suffix)
    for save in (by_palette((2, 0, 1)), lambda path: Image.fromarray(LABELS).save(path)):
        save(mask)
        with Image.open(mask) as file:
            expected = np.array(file.getpalette("RGB")).reshape(-1, 3) if file.mode == "P" else None
        np.testing.assert_array_equal(mask_palette(mask), expected)
