"""A list of names is refused, or every name is below the data's folders and occurs once."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from fcnlab.data import DataError, SegmentationDataset, open_voc

HOSTILE = (
    "../../x",
    "/etc/passwd",
    "a/../../b",
    "..",
    ".",
    "",
    " ",
    "a\0b",
    "x" * 300,
    "a/" * 3000,
    "\x85",
    "💾",
    "v0\t1",
)
NAMES = st.lists(st.sampled_from(("v0", "v1", "set/v0")) | st.sampled_from(HOSTILE) | st.text(max_size=9), max_size=6)


@pytest.fixture
def opened(tmp_path):
    """Open a VOC with these bytes as list, and only the image v0; return None if the list is refused."""
    folder = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (3, 2)).save(folder / "JPEGImages" / "v0.jpg")
    Image.new("L", (3, 2)).save(folder / "SegmentationClass" / "v0.png")

    def opening(data: bytes) -> SegmentationDataset | None:
        file = folder / "ImageSets" / "Segmentation" / "val.txt"
        file.write_bytes(data)
        try:
            return open_voc(str(tmp_path), "val")
        except DataError as error:
            assert str(file) in str(error)
            return None

    return opening


def is_sound(dataset: SegmentationDataset) -> bool:
    try:
        dataset.check()
    except DataError:
        return False
    return True


@given(st.binary(max_size=99) | NAMES.map(lambda names: "\n".join(names).encode(errors="surrogatepass")))
@example("../../x".encode("utf-16"))
def test_any_bytes_are_refused_or_give_valid_names(opened, tmp_path, data):
    dataset = opened(data)
    if dataset is not None:
        assert is_sound(dataset) == (dataset.names == ("v0",))
        for path in dataset.images + dataset.masks:
            assert ".." not in path.parts and path.is_relative_to(tmp_path / "VOCdevkit" / "VOC2012")


@given(
    st.lists(st.sampled_from(("v0", "v1", "2007_000032", "set/v0", "é"))),
    st.sampled_from(("\n", "\r\n", "\n\n", " \n", "\n\t", "\r")),
    st.sampled_from(("", "\ufeff", "\n")),
)
def test_names_are_read_as_written(opened, names, end, start):
    dataset = opened((start + "".join(name + end for name in names)).encode())
    assert dataset.names == tuple(names)
    assert is_sound(dataset) == (names == ["v0"])


def test_a_folder_in_the_place_of_a_list_is_refused(opened, tmp_path):
    opened(b"v0")
    list_file = tmp_path / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt"
    list_file.unlink()
    list_file.mkdir()
    with pytest.raises(DataError, match="no list 'val'"):
        open_voc(str(Path(tmp_path)), "val")
