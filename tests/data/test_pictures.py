"""Each way in which files can be wrong is found, named and explained before any work."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcnlab.data import DataError, Pictures
from fcnlab.data.pictures import read_image

MIN_SIZE = 8


@pytest.fixture
def make(tmp_path, save_pair):
    """A set of three classes and sound pictures of 12x16."""

    def build(names="abc", **changes) -> Pictures:
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
        return Pictures(**settings | changes)

    return build


def save(path: Path, shape=(12, 16), value: int = 0, corner: int = 0) -> None:
    """One value everywhere but in a corner."""
    pixels = np.full(shape, value, np.uint8)
    pixels[0, 0] = corner
    Image.fromarray(pixels).save(path)


def truncate(path: Path, share: float = 0.5) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


BROKEN = {
    "missing picture": (lambda image, mask: image.unlink(), r"b\.jpg is missing"),
    "missing mask": (lambda image, mask: mask.unlink(), r"b\.png is missing"),
    "folder": (lambda image, mask: (image.unlink(), image.mkdir()), r"b\.jpg cannot be read as a picture"),
    "text": (lambda image, mask: image.write_text("Not Found"), r"b\.jpg cannot be read as a picture"),
    "empty file": (lambda image, mask: mask.write_bytes(b""), r"b\.png cannot be read as a picture"),
    "truncated mask": (lambda image, mask: truncate(mask), r"b\.png cannot be read"),
    "colour mask": (lambda image, mask: save(mask, (12, 16, 3)), r"b\.png .* mode RGB: .*Convert colours to ids"),
    "wrong label": (lambda image, mask: save(mask, value=7), r"b\.png holds labels \[7\].* 0 to 2 and 255 for void"),
    "beside void": (lambda image, mask: save(mask, value=255, corner=3), r"b\.png holds labels \[3\]"),
    "other size": (lambda image, mask: save(mask, (16, 12)), r"b\.jpg has 12x16 pixels, its mask 16x12"),
    "small": (lambda image, mask: save(image, (7, 99, 3)), r"b\.jpg has 7x99 pixels; the net needs 8"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_check_names_the_broken_file(make, kind):
    pictures = make()
    damage, message = BROKEN[kind]
    damage(pictures.images[1], pictures.masks[1])
    with pytest.raises(DataError, match=message) as caught:
        pictures.check(MIN_SIZE)
    assert str(caught.value).startswith("toys: 1 of 3 pictures cannot be used")


def test_check_passes_sound_pictures(make):
    make().check(MIN_SIZE)
    make(masks=()).check(MIN_SIZE)  # pictures without truth are only looked at


@pytest.mark.parametrize(("names", "message"), [("abca", "a is listed twice"), ("", "toys is empty: name another")])
def test_check_of_names(make, names, message):
    with pytest.raises(DataError, match=message):
        make(names).check()


def test_check_tells_of_several_at_once(make):
    pictures = make("abcdefgh")
    for image in pictures.images[:7]:
        image.unlink()
    with pytest.raises(DataError) as caught:
        pictures.check()
    lines = str(caught.value).splitlines()
    assert lines[0].startswith("toys: 7 of 8") and lines[-1] == "… and 2 more"
    assert [line.rsplit("/")[-1] for line in lines[1:-1]] == [f"{name}.jpg is missing" for name in "abcde"]


def test_truncated_jpeg_is_an_error_when_read(make):
    """Its header is sound, so check() lets it pass; a half grey picture would be worse."""
    pictures = make()
    truncate(pictures.images[1], 0.95)
    pictures.check()
    with pytest.raises(DataError, match=r"b\.jpg cannot be read to its end"):
        pictures.image(1)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_damage_never_raises_anything_else(make, tmp_path, suffix):
    pictures = make("a")
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
    assert pictures.image(0).shape == (12, 16, 3)


def test_void_is_read_as_255(make):
    pictures = make(void=3)
    save(pictures.masks[0], value=2, corner=3)
    assert pictures.mask(0)[0].tolist() == [255] + [2] * 15
    save(pictures.masks[0], value=255)  # which is no void there
    with pytest.raises(DataError, match=r"holds labels \[255\].* 3 for void"):
        pictures.mask(0)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_masks_are_indices_not_colours(make, mode):
    pictures, truth = make(), np.arange(12 * 16, dtype=np.uint8).reshape(12, 16) % 3
    image = Image.fromarray(truth)
    if mode == "P":
        image.putpalette([200, 100, 50] * 256)
    image.save(pictures.masks[0])
    np.testing.assert_array_equal(pictures.mask(0), truth)


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK"])
def test_pictures_are_rgb(tmp_path, mode):
    path = tmp_path / "x.tif"
    Image.new(mode, (5, 3)).save(path)
    assert read_image(path).shape == (3, 5, 3)


def test_noted_rotation_is_not_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn me by 90 degrees"; the mask would not turn with it
    Image.new("RGB", (5, 3)).save(tmp_path / "x.jpg", exif=exif)
    assert read_image(tmp_path / "x.jpg").shape == (3, 5, 3)
