"""Every defect of image and mask files is found, named and explained before training."""

import os
import struct
import time
import zlib
from io import BytesIO
from pathlib import Path
from threading import get_ident

import numpy as np
import pytest
from PIL import Image

from fcnlab.data import DataError, SegmentationDataset
from fcnlab.data.image_files import UnreadableFile, image_size, read_image

MIN_SIZE = 8


@pytest.fixture
def make(tmp_path, save_pair):
    """A data set of three classes with valid images of 12x16."""

    def build(names="abc", **changes) -> SegmentationDataset:
        for seed, name in enumerate(dict.fromkeys(names)):
            save_pair(tmp_path / f"{name}.jpg", tmp_path / f"{name}.png", seed=seed)
        settings = {
            "title": "toys",
            "names": tuple(names),
            "images": tuple(tmp_path / f"{name}.jpg" for name in names),
            "masks": tuple(tmp_path / f"{name}.png" for name in names),
            "classes": ("ground", "cat", "dog"),
            "palette": np.zeros((3, 3), np.uint8),
        }
        return SegmentationDataset(**settings | changes)

    return build


def save(path: Path, shape=(12, 16), value: int = 0, corner: int = 0) -> None:
    """Save an image of one value, except in a corner."""
    pixels = np.full(shape, value, np.uint8)
    pixels[0, 0] = corner
    Image.fromarray(pixels).save(path)


def save_png(path: Path, cols: int, rows: int, depth: int, data: bytes, *more: tuple[bytes, bytes]) -> None:
    """Write a grey PNG by hand; ``more`` are chunks after the pixels."""
    header = struct.pack(">IIBBBBB", cols, rows, depth, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(data)), *more, (b"IEND", b"")]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks)
    )


def flip_last_pixels(mask: Path) -> None:
    """Flip a bit in the compressed pixels, where PIL does not check the checksum."""
    data = bytearray(mask.read_bytes())
    data[data.index(b"IEND") - 15] ^= 1
    mask.write_bytes(data)


def truncate(path: Path, share: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


BROKEN = {
    "missing image": (lambda image, mask: image.unlink(), r"b\.jpg is missing"),
    "missing mask": (lambda image, mask: mask.unlink(), r"b\.png is missing"),
    "folder": (lambda image, mask: (image.unlink(), image.mkdir()), r"b\.jpg cannot be read as an image"),
    "text": (lambda image, mask: image.write_text("Not Found"), r"b\.jpg cannot be read as an image"),
    "empty file": (lambda image, mask: mask.write_bytes(b""), r"b\.png cannot be read as an image"),
    "truncated mask": (lambda image, mask: truncate(mask), r"b\.png is truncated or damaged"),
    "colour mask": (lambda image, mask: save(mask, (12, 16, 3)), r"b\.png .* mode RGB, .*Convert colours to ids"),
    "wrong label": (
        lambda image, mask: save(mask, value=7),
        r"b\.png contains labels \[7\].* 0 to 2 and ignore_index 255",
    ),
    "wrong label among ignored pixels": (
        lambda image, mask: save(mask, value=255, corner=3),
        r"b\.png contains labels \[3\]",
    ),
    "other size": (lambda image, mask: save(mask, (16, 12)), r"b\.jpg has 12x16 pixels, but its mask 16x12"),
    "flipped bit": (lambda image, mask: flip_last_pixels(mask), r"b\.png is truncated or damaged: .*checksum"),
    "grey of 4 bits": (lambda image, mask: save_png(mask, 16, 12, 4, bytes(9 * 12)), r"b\.png is 4-bit grey"),
    "JPEG mask": (
        lambda image, mask: Image.new("L", (16, 12)).save(mask, "JPEG"),
        r"b\.png cannot be read as an image \(PNG, TIFF\)",
    ),
    "mask with a bomb": (
        lambda image, mask: save_png(
            mask, 16, 12, 8, bytes(17 * 12), (b"zTXt", b"k\0\0" + zlib.compress(bytes(2**21)))
        ),
        r"b\.png is truncated or damaged: Decompressed [Dd]ata [Tt]oo [Ll]arge",
    ),
    "image of 16 bits": (
        lambda image, mask: Image.fromarray(np.zeros((12, 16), np.uint16)).save(image, "PNG"),
        r"b\.jpg has pixels of mode I;16, with more than 8 bits",
    ),
    "small": (
        lambda image, mask: save(image, (7, 99, 3)),
        r"b\.jpg has 7x99 pixels, but at least 8 are required on each side",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_check_names_the_broken_file(make, kind):
    images = make()
    damage, message = BROKEN[kind]
    damage(images.images[1], images.masks[1])
    with pytest.raises(DataError, match=message) as caught:
        images.check(MIN_SIZE)
    assert str(caught.value).startswith("toys: 1 of 3 images cannot be used")


def test_check_accepts_valid_images(make):
    make().check(MIN_SIZE)
    make(masks=()).check(MIN_SIZE)  # without ground truth, only images are checked


@pytest.mark.parametrize(
    ("names", "message"), [("abca", "a is listed more than once"), ("", "toys is empty: set another")]
)
def test_check_reports_repeated_or_missing_names(make, names, message):
    with pytest.raises(DataError, match=message):
        make(names).check()


def test_check_uses_only_the_allowed_cores(make, monkeypatch):
    """The machine has 64 cores, of which the job may use one."""
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {5}, raising=False)
    threads, read = set(), SegmentationDataset.mask
    monkeypatch.setattr(SegmentationDataset, "mask", lambda self, index: threads.add(get_ident()) or read(self, index))
    make("abcdefgh").check()
    assert len(threads) == 1


def test_check_reports_several_files_at_once(make):
    images = make("abcdefgh")
    for image in images.images[:7]:
        image.unlink()
    with pytest.raises(DataError) as caught:
        images.check()
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("toys: 7 of 8") and lines[-1] == "… and 2 more"
    assert [line.rsplit("/")[-1] for line in lines[1:-1]] == [f"{name}.jpg is missing" for name in "abcde"]


@pytest.mark.parametrize("share", [0.9, 0.99])
def test_a_truncated_jpeg_is_an_error(make, share):
    """Its header is valid, but the end marker is missing."""
    images = make()
    truncate(images.images[1], share)
    for look in (images.check, lambda: images.image(1)):
        with pytest.raises(DataError, match=r"b\.jpg is truncated or damaged"):
            look()


def test_a_jpeg_with_trailing_bytes_is_read(make):
    images = make()
    whole = images.image(1)
    for change in (lambda data: data + b"appended by a camera", lambda data: data + bytes(9)):
        images.images[1].write_bytes(change(images.images[1].read_bytes()))
        images.check()
        np.testing.assert_array_equal(images.image(1), whole)


def test_jpegs_equal_the_decoding_by_pil(tmp_path):
    """OpenCV decodes most of them: to the same values for every kind of JPEG, and without EXIF rotation."""
    rng, exif = np.random.default_rng(0), Image.Exif()
    exif[0x0112] = 6  # rotated
    for mode, options in [
        ("RGB", {}),
        ("RGB", {"exif": exif}),
        ("RGB", {"progressive": True}),
        ("RGB", {"subsampling": 0}),
        ("RGB", {"quality": 5, "subsampling": 2}),
        ("RGB", {"keep_rgb": True}),
        ("L", {}),
        ("CMYK", {}),
    ]:
        channels = {"L": (), "RGB": (3,), "CMYK": (4,)}[mode]
        path = tmp_path / "x.jpg"
        Image.fromarray(rng.integers(0, 256, (31, 47, *channels), np.uint8), mode).save(path, "JPEG", **options)
        with Image.open(path) as file:
            np.testing.assert_array_equal(read_image(path), np.array(file.convert("RGB")))


def test_real_jpegs_equal_the_decoding_by_pil(shared):
    for path in sorted((shared / "data/VOCdevkit/VOC2012/JPEGImages").glob("*.jpg"))[::100]:
        with Image.open(path) as file:
            np.testing.assert_array_equal(read_image(path), np.array(file.convert("RGB")))


def test_jpegs_without_an_end_marker_are_read_by_pil(make):
    """OpenCV would return grey pixels and only print a warning."""
    path = make().images[0]
    whole, expected = path.read_bytes(), read_image(path)
    path.write_bytes(whole + b"trailing bytes, which some cameras write")
    np.testing.assert_array_equal(read_image(path), expected)
    for length in range(len(whole) - 1, len(whole) // 2, -5):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"a\.jpg (cannot be read|is truncated)"):
            read_image(path)


def test_sizes_equal_those_of_the_pixels(make):
    images = make()
    save(images.images[1], (7, 99, 3))
    assert [images.size(index) for index in range(3)] == [(12, 16), (7, 99), (12, 16)]


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_damaged_files_raise_data_errors_only(make, tmp_path, suffix):
    images = make("a")
    sound, rng = (tmp_path / f"a.{suffix}").read_bytes(), np.random.default_rng(0)
    path = tmp_path / f"damaged.{suffix}"
    for place in range(0, len(sound), 7):
        flipped = bytearray(sound)
        flipped[place] = rng.integers(256)
        for data in (sound[:place], flipped):
            path.write_bytes(data)
            try:
                assert read_image(path).dtype == np.uint8
            except DataError as error:
                assert str(path) in str(error)
    assert images.image(0).shape == (12, 16, 3)


def test_ignore_index_is_read_as_255(make):
    images = make(ignore_index=3)
    save(images.masks[0], value=2, corner=3)
    assert images.mask(0)[0].tolist() == [255] + [2] * 15
    save(images.masks[0], value=255)  # which is not ignore_index there
    with pytest.raises(DataError, match=r"contains labels \[255\].* ignore_index 3"):
        images.mask(0)


@pytest.mark.filterwarnings("ignore:Image size")
def test_images_above_the_pixel_limit_are_refused(make, tmp_path, monkeypatch):
    save_png(tmp_path / "large.png", 10_000, 10_000, 8, b"")
    with pytest.raises(DataError, match=r"large\.png has 10000x10000 pixels, more than 89478485 in total"):
        read_image(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as users with larger images may set
    with pytest.raises(DataError, match="is truncated or damaged"):
        read_image(tmp_path / "large.png")


def test_a_format_that_runs_external_programs_is_refused(tmp_path):
    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(DataError, match=r"x\.jpg cannot be read as an image \(BMP, GIF, JPEG, .*cannot identify"):
        read_image(tmp_path / "x.jpg")


def test_transparent_palette_colours_are_read_without_a_warning(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image.putpalette([1, 2, 3, 200, 100, 50])
    image.save(tmp_path / "x.png", transparency=b"\x10\x20")
    assert read_image(tmp_path / "x.png").tolist() == [[[1, 2, 3], [200, 100, 50]]]


@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_are_read_as_indices_not_colours(make, mode):
    images, target = make(), np.arange(12 * 16, dtype=np.uint8).reshape(12, 16) % 3
    image = Image.fromarray(target)
    if mode == "P":
        image.putpalette([200, 100, 50] * 256)
    image.save(images.masks[0])
    np.testing.assert_array_equal(images.mask(0), target)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_images_are_converted_to_rgb(tmp_path, mode):
    path = tmp_path / "x.tif"
    Image.new(mode, (5, 3)).save(path)
    assert read_image(path).shape == (3, 5, 3)


def test_exif_rotation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotation by 90 degrees, which would not apply to the mask
    Image.new("RGB", (5, 3)).save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape == (3, 5, 3)


@pytest.mark.parametrize("head", [b"P1 2 2\n", b"P2 2 2 255\n", b"P3 2 2 255\n", b"P6 2 2 254\n", b"P5 2 2 100\n"])
def test_formats_that_pil_decodes_slowly_are_refused(tmp_path, head):
    (tmp_path / "x.ppm").write_bytes(head + b"1 0 1 0 1 0 1 0 1 0 1 0")
    with pytest.raises(UnreadableFile, match="takes minutes to read"):
        read_image(tmp_path / "x.ppm")


def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    with pytest.raises(UnreadableFile, match="not a regular file"):
        read_image(tmp_path / "x.jpg")


def tiff(order: str, is_big: bool, rows: int, lists: dict[int, tuple[int, int]], rows_per_strip: int = 1) -> bytes:
    """Return a TIFF of grey rows of 16 pixels; ``lists`` are tags with a type and a count, which share their bytes."""
    number, entry, count = ("Q", "HHQ", "Q") if is_big else ("L", "HHL", "H")
    values = {256: 16, 257: rows, 258: 8, 259: 1, 262: 1, 277: 1, 278: rows_per_strip}
    magic = struct.pack(order + ("HHHQ" if is_big else "HL"), *((43, 8, 0, 16) if is_big else (42, 8)))
    entries = sorted([(tag, 4, 1, value) for tag, value in values.items()] + [(t, *n, None) for t, n in lists.items()])
    width = struct.calcsize(order + entry + number)
    end = (
        (16 if is_big else 8) + struct.calcsize(order + count) + width * len(entries) + struct.calcsize(order + number)
    )
    most = max(n for _, n in lists.values())
    packed = struct.pack(order + count, len(entries))
    for tag, kind, numbers, value in entries:
        stored = struct.pack(order + number, end) if value is None else struct.pack(order + "L", value)
        packed += struct.pack(order + entry, tag, kind, numbers) + stored.ljust(8 if is_big else 4, b"\0")
    packed += struct.pack(order + number, 0)
    return (b"II" if order == "<" else b"MM") + magic + packed + struct.pack(order + "L", 8) * most + bytes(16)


def assert_refused_quickly(path: Path, data: bytes, output: str) -> None:
    """Use the fastest of three times, since a busy machine may slow down single ones."""
    path.write_bytes(data)
    for read in (read_image, image_size):
        seconds = []
        for _ in range(3):
            started = time.process_time()
            with pytest.raises(UnreadableFile, match=output):
                read(path)
            seconds.append(time.process_time() - started)
        assert min(seconds) < 0.5


@pytest.mark.parametrize(("order", "is_big"), [("<", False), (">", False), ("<", True)])
@pytest.mark.parametrize("tag", [273, 279, 324, 325])
@pytest.mark.parametrize("kind", [1, 4])
def test_a_tiff_with_too_many_strips_is_refused_quickly(tmp_path, order, is_big, tag, kind):
    """Regression: PIL needs 16 s and 1.2 GB for the header of a million strips that share their bytes."""
    data = tiff(order, is_big, 65_537, {tag: (kind, 65_537)})
    assert_refused_quickly(tmp_path / "x.tif", data, "declares 65537 strips or tiles, more than 65536: save it as PNG")


def test_a_tiff_with_another_long_list_is_refused(tmp_path):
    data = tiff("<", False, 2, {273: (4, 2), 339: (4, 65_537)})
    assert_refused_quickly(tmp_path / "x.tif", data, "declares 65537 numbers in tag 339")


def tiled(
    cols: int, rows: int, tile: tuple[int, int], kind: int = 4, more=(), order: str = "<", magic: int = 42
) -> bytes:
    """Return a deflated grey TIFF with tiles; ``more`` are additional header entries."""
    blob = zlib.compress(bytes(tile[0] * tile[1]) if tile[0] * tile[1] < 1 << 20 else b"\0", 9)
    count = -(-cols // tile[0]) * -(-rows // tile[1])
    big = magic == 43
    number, width = ("Q", 8) if big else ("L", 4)
    head = struct.pack(order + ("HHHQ" if big else "HL"), *((43, 8, 0, 16) if big else (42, 8)))
    values = [(256, 4, cols), (257, 4, rows), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    values += [(322, kind, tile[0]), (323, kind, tile[1]), *more]
    form = {1: "B", 3: "H", 4: "L", 9: "l", 16: "Q"}
    entries = [(tag, each, 1, struct.pack(order + form[each], value)) for tag, each, value in values]
    begin = 2 + len(head) + (8 if big else 2) + (len(entries) + 2) * (4 + 2 * width) + width
    lists = [struct.pack(f"{order}{count}L", *[number] * count) for number in (begin + 8 * count, len(blob))]
    starts = [begin, begin + 4 * count]
    inside = count * 4 <= width
    entries += [
        (tag, 4, count, data if inside else struct.pack(order + number, start))
        for tag, data, start in zip((324, 325), lists, starts, strict=True)
    ]
    packed = struct.pack(order + ("Q" if big else "H"), len(entries))
    for tag, each, numbers, value in sorted(entries):
        packed += struct.pack(f"{order}HH{number}", tag, each, numbers) + value[:width].ljust(width, b"\0")
    return (b"II" if order == "<" else b"MM") + head + packed + bytes(width) + b"".join(lists) + blob


@pytest.mark.parametrize(
    ("cols", "rows", "tile", "settings"),
    [
        (200, 200, (30_000, 30_000), {}),
        (200, 200, (30_000, 30_000), {"kind": 3}),
        (200, 200, (30_000, 30_000), {"order": ">"}),
        (200, 200, (30_000, 30_000), {"magic": 43}),
        (200, 200, (30_000, 30_000), {"magic": 43, "kind": 16}),
        (200, 200, (65_536, 16_384), {"kind": 9}),
        (30_000, 1, (16, 65_536), {}),  # many tiles of a megapixel each
    ],
)
def test_a_tiff_with_tiles_much_larger_than_the_image_is_refused(tmp_path, cols, rows, tile, settings):
    """Regression: a file of 2 MB took 2.7 GB of memory."""
    assert_refused_quickly(
        tmp_path / "x.tif", tiled(cols, rows, tile, **settings), "its tiles have .* pixels, but the image"
    )


@pytest.mark.parametrize("more", [[(322, 3, 16)], [(256, 4, 16)]])
def test_a_tiff_with_two_sizes_is_refused(tmp_path, more):
    assert_refused_quickly(tmp_path / "x.tif", tiled(9, 7, (256, 256), more=more), "has tag .* twice, or elsewhere")


def test_a_tiff_with_an_indirect_size_is_refused(tmp_path):
    assert_refused_quickly(tmp_path / "x.tif", tiled(9, 7, (256, 256), kind=16), "has tag 322 twice, or elsewhere")


@pytest.mark.parametrize("settings", [{}, {"kind": 3}, {"order": ">"}, {"magic": 43}])
@pytest.mark.parametrize(("cols", "rows", "tile"), [(9, 7, (512, 512)), (300, 200, (128, 256)), (2_000, 3, (256, 256))])
def test_tiles_larger_than_the_image_are_read(tmp_path, cols, rows, tile, settings):
    (tmp_path / "x.tif").write_bytes(tiled(cols, rows, tile, **settings))
    assert read_image(tmp_path / "x.tif").shape == (rows, cols, 3)


def test_overlapping_strips_are_refused(tmp_path):
    """Each strip has all rows except one."""
    data = tiff("<", False, 1000, {273: (4, 20_000)}, rows_per_strip=999)
    assert_refused_quickly(tmp_path / "x.tif", data, "stores the same pixels many times")


@pytest.mark.parametrize(("order", "is_big"), [("<", False), (">", False), ("<", True)])
def test_a_tiff_with_one_strip_per_row_is_read(tmp_path, order, is_big):
    (tmp_path / "x.tif").write_bytes(tiff(order, is_big, 3000, {273: (4, 3000)}))
    assert read_image(tmp_path / "x.tif").shape == (3000, 16, 3)


def test_a_big_endian_bigtiff_is_refused(tmp_path):
    assert_refused_quickly(tmp_path / "x.tif", tiff(">", True, 9, {273: (4, 9)}), "big-endian BigTIFF")


@pytest.mark.parametrize("planes", [3, 4])
def test_planar_channels_are_read(tmp_path, planes):
    """Each of three or four strips contains one channel of all pixels."""
    image = np.random.default_rng(0).integers(0, 256, (40, 30, planes), np.uint8)
    Image.fromarray(image).save(tmp_path / "x.tif", tiffinfo={284: 2}, compression=None)
    assert read_image(tmp_path / "x.tif").shape == (40, 30, 3)


def jpeg_of(scans: int, side: int = 64, **settings) -> bytes:
    """Return a JPEG with additional empty scans of its first component, with 1 byte of data each."""
    file = BytesIO()
    Image.new("RGB", (side, side)).save(file, "JPEG", **settings)
    is_progressive = settings.get("progressive", False)
    head = struct.pack(">BBHBBBBBB", 0xFF, 0xDA, 8, 1, 1, 0, *((1, 63, 0) if is_progressive else (0, 63, 0)))
    return file.getvalue()[:-2] + (head + b"\0") * scans + b"\xff\xd9"


def test_a_jpeg_with_too_many_scans_is_refused_quickly(tmp_path):
    """Regression: 500 kB of scans over 4 million pixels took 40 s."""
    assert_refused_quickly(tmp_path / "x.jpg", jpeg_of(9000, progressive=True), "JPEG with more than 100 scans")


def test_a_sequential_jpeg_with_too_many_scans_is_refused_quickly(tmp_path):
    """A sequential JPEG may have a scan per component, and so any number of scans."""
    data = jpeg_of(0)
    scan, frame = data.index(b"\xff\xda"), data.index(b"\xff\xc0")
    assert data[frame + 9] == 3
    head = struct.pack(">BBHBBBBBB", 0xFF, 0xDA, 8, 1, 1, 0, 0, 63, 0)
    assert_refused_quickly(
        tmp_path / "x.jpg", data[:scan] + (head + b"\0") * 101 + b"\xff\xd9", "JPEG with more than 100 scans"
    )


@pytest.mark.parametrize(
    "trailing", [b"", b"\xff\xda\0\2" * 200], ids=["alone", "with trailing bytes, as in motion photos"]
)
@pytest.mark.parametrize("is_progressive", [False, True])
def test_usual_jpegs_are_read(tmp_path, is_progressive, trailing):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8))
    exif = Image.Exif()
    exif[0x010E] = "\xff\xda" * 500  # as in thumbnails
    image.save(
        tmp_path / "x.jpg", progressive=is_progressive, exif=exif, comment=b"\xff\xda" * 500, restart_marker_rows=1
    )
    with (tmp_path / "x.jpg").open("ab") as file:
        file.write(trailing)
    assert read_image(tmp_path / "x.jpg").shape == (64, 48, 3)
