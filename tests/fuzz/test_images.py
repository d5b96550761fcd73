"""An image is refused or read as RGB in its size, with the saved colours if its format is lossless."""

import struct
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcnlab.data import DataError
from fcnlab.data.image_files import read_image
from fuzz.damage import damaged
from fuzz.test_masks import GREY, png

pytestmark = pytest.mark.filterwarnings("ignore")  # a run prints PIL's warnings and continues

ROWS, COLS = 9, 14
PIXELS = np.random.default_rng(0).integers(0, 256, (ROWS, COLS, 4), np.uint8)
ORIENTATION = 0x0112  # the EXIF tag


def saved(image: Image.Image, form: str, **settings) -> bytes:
    file = BytesIO()
    image.save(file, form, **settings)
    return file.getvalue()


VALID_FILES = {
    form: saved(Image.fromarray(PIXELS[..., :3]), form) for form in ("JPEG", "PNG", "BMP", "PPM", "TIFF", "WEBP")
}
VALID_FILES |= {
    "GIF": saved(Image.fromarray(PIXELS[..., 0]), "GIF"),
    "progressive": saved(Image.fromarray(PIXELS[..., :3]), "JPEG", progressive=True),
    "CMYK": saved(Image.frombytes("CMYK", (COLS, ROWS), PIXELS.tobytes()), "JPEG"),
    "deflated": saved(Image.fromarray(PIXELS[..., :3]), "TIFF", compression="tiff_adobe_deflate"),
}


@pytest.fixture
def read(tmp_path):
    """Return the image in these bytes; None if they are refused."""

    def reading(data: bytes) -> np.ndarray | None:
        path = tmp_path / "image.jpg"
        path.write_bytes(data)
        try:
            return read_image(path)
        except DataError as error:
            assert str(path) in str(error)
            return None

    return reading


@given(st.sampled_from(sorted(VALID_FILES)).flatmap(lambda form: damaged(VALID_FILES[form])))
def test_a_damaged_image_is_refused_or_rgb(read, data):
    pixels = read(data)
    assert pixels is None or (pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3)


WIDE = {"I;16": np.uint16, "I": np.int32, "F": np.float32}  # more than 8 bits
# Convert the other modes' pixels to RGB by hand: (rows, cols, channels) to (rows, cols, 3).
AS_RGB = {
    "1": lambda pixels: np.repeat(pixels[..., :1] // 128 * 255, 3, axis=-1),
    "L": lambda pixels: np.repeat(pixels[..., :1], 3, axis=-1),
    "LA": lambda pixels: np.repeat(pixels[..., :1], 3, axis=-1),
    "P": lambda pixels: np.stack([pixels[..., 0] ^ 85, pixels[..., 0], 255 - pixels[..., 0]], axis=-1),
    "RGB": lambda pixels: pixels[..., :3],
    "RGBA": lambda pixels: pixels[..., :3],
    "CMYK": lambda pixels: ((255 - pixels[..., :3].astype(int)) * (255 - pixels[..., 3:].astype(int)) / 255).round(),
}


def of_mode(mode: str) -> Image.Image:
    grey = PIXELS[..., 0]
    if mode in WIDE:
        return Image.fromarray(grey.astype(WIDE[mode]) * 257)
    if mode == "1":
        return Image.fromarray(grey >= 128)
    channels = len(Image.new(mode, (1, 1)).getbands())
    image = Image.frombytes(mode, (COLS, ROWS), PIXELS[..., :channels].tobytes())
    if mode == "P":
        image.putpalette(AS_RGB["P"](np.arange(256)[:, None]).astype(np.uint8).tobytes())
    return image


@pytest.mark.parametrize(
    ("mode", "form"),
    [(mode, "TIFF") for mode in (*AS_RGB, *WIDE)] + [(mode, "PNG") for mode in ("1", "L", "P", "RGBA", "I;16")],
)
def test_every_mode_is_read_with_its_colours(read, mode, form):
    pixels = read(saved(of_mode(mode), form))
    if mode in WIDE:
        assert pixels is None
    else:
        np.testing.assert_allclose(pixels, AS_RGB[mode](PIXELS), atol=mode == "CMYK")


@given(st.integers(0, 9) | st.binary(max_size=40))
def test_exif_does_not_rotate_an_image(read, exif):
    if isinstance(exif, int):
        note = Image.Exif()
        note[ORIENTATION] = exif
        exif = note.tobytes()
    pixels = read(saved(Image.fromarray(PIXELS[..., :3]), "JPEG", exif=exif))
    np.testing.assert_array_equal(pixels, read(VALID_FILES["JPEG"]))


def claiming(form: str, place: int, size: bytes) -> bytes:
    return VALID_FILES[form][:place] + size + VALID_FILES[form][place + len(size) :]


BOMBS = {
    "JPEG": claiming("JPEG", VALID_FILES["JPEG"].index(b"\xff\xc0") + 5, struct.pack(">HH", 65_500, 65_500)),
    "PNG": png(10_000, 10_000, 8, GREY, b"\0"),
    "BMP": claiming("BMP", 18, struct.pack("<ii", 10_000, 10_000)),
    "GIF": claiming("GIF", 6, struct.pack("<HH", 65_000, 65_000)),
    "PPM": b"P6 60000 60000 255\n",
}


@pytest.mark.parametrize("form", BOMBS)
def test_bombs_are_refused_before_they_take_memory(read, little_memory, form):
    assert read(BOMBS[form]) is None


@pytest.mark.parametrize(
    "start", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"8BPS\0\1", b"#define x_width 8\n"]
)
def test_other_formats_are_not_tried(tmp_path, start):
    (tmp_path / "x.jpg").write_bytes(start)
    with pytest.raises(DataError, match="cannot identify image file"):
        read_image(tmp_path / "x.jpg")
