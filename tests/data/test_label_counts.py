"""Label counts are correct and computed once for all runs; a damaged file of counts costs time only."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from PIL import Image

from fcnlab.data import DataError, SegmentationDataset, label_counts, open_folder, open_voc
from fcnlab.data.label_counts import absent_classes, one_class_only


@pytest.fixture
def images(voc_root) -> SegmentationDataset:
    return open_voc(str(voc_root), "train")


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch) -> list[int]:
    """Record which masks are decoded from now on."""
    indices, read = [], SegmentationDataset.mask
    monkeypatch.setattr(SegmentationDataset, "mask", lambda self, index: indices.append(index) or read(self, index))
    return indices


def counted(dataset: SegmentationDataset) -> list[int]:
    """Count the labels with PIL and NumPy."""
    pixels = np.concatenate([np.array(Image.open(path)).ravel() for path in dataset.masks])
    return [int((pixels == label).sum()) for label in range(256)]


def counts_file(folder):
    (file,) = folder.iterdir()
    return file


def test_counts_equal_the_files_and_masks_are_read_once(images, folder, reads):
    assert label_counts.check(images, 1, folder).pixels.tolist() == counted(images)
    assert sorted(reads) == list(range(8))
    assert label_counts.check(images, 1, folder).pixels.tolist() == counted(images)
    assert len(reads) == 8


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_masks_are_read_again_after_a_change(images, folder, reads, kind):
    label_counts.check(images, 1, folder)
    os.utime(getattr(images, kind)[3])
    label_counts.check(images, 1, folder)
    assert len(reads) == 16


def test_a_changed_mask_of_the_same_size_and_mtime_is_recounted(images, folder):
    label_counts.check(images, 1, folder)
    mask = images.masks[0]
    was, data = mask.stat(), mask.read_bytes()
    Image.fromarray(np.full(np.array(Image.open(mask)).shape, 20, np.uint8)).save(mask)
    mask.write_bytes(mask.read_bytes() + bytes(max(0, len(data) - mask.stat().st_size)))
    os.utime(mask, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert mask.stat().st_size == was.st_size
    assert label_counts.check(images, 1, folder).pixels.tolist() == counted(images)


def test_another_mapping_of_ids_is_counted_separately(images, folder):
    plain = label_counts.check(images, 1, folder).pixels
    mapped = replace(images, ids={7: 0, 0: 1, 20: 255}, classes=("a", "b"))
    mapped_pixels = label_counts.check(mapped, 1, folder).pixels
    assert mapped_pixels[[0, 1, 255]].tolist() == [plain[7], plain[0], plain[20] + plain[255]]


def test_a_damaged_counts_file_is_recreated(images, folder, reads):
    target = label_counts.check(images, 1, folder).pixels.tolist()
    file = counts_file(folder)
    whole = file.read_bytes()
    digits = [place for place, letter in enumerate(whole) if chr(letter) in "123456789"]
    wrong = [b"", b"[]", b"null", b"{}", b"\xff", b"[" * 99_999, whole[:-20], whole.replace(b"0", b'"x"', 1)]
    wrong += [whole[:place] + b"0" + whole[place + 1 :] for place in digits[::40]]
    wrong += [whole.replace(b'"pixels": [', b'"pixels": [1e999, ')]
    for data in wrong:
        before = len(reads)
        file.write_bytes(data)
        assert label_counts.check(images, 1, folder).pixels.tolist() == target
        assert len(reads) == before + 8 and file.read_bytes() == whole


def test_several_processes_may_write_at_once(images, folder):
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda _: label_counts.check(images, 1, folder).pixels.tolist(), range(16)))
    assert results == [counted(images)] * 16
    assert json.loads(counts_file(folder).read_text())["pixels"] == counted(images)  # and the folder has no other file


def test_counts_work_without_a_writable_folder(images, folder, reads):
    folder.write_text("a file in its place")
    for _ in range(2):
        assert label_counts.check(images, 1, folder).pixels.tolist() == counted(images)
    assert len(reads) == 16


def test_saved_counts_do_not_skip_the_size_check(images, folder):
    label_counts.check(images, 1, folder)
    with pytest.raises(DataError, match="21 are required on each side"):
        label_counts.check(images, 21, folder)


def test_errors_are_not_saved(images, folder):
    Image.new("L", images.size(0)[::-1], 99).save(images.masks[0])
    for _ in range(2):
        with pytest.raises(DataError, match=r"contains labels \[99\]"):
            label_counts.check(images, 1, folder)


def test_counts_of_files_that_change_meanwhile_are_not_saved(images, folder, reads, monkeypatch):
    states = count()
    monkeypatch.setattr(label_counts, "state_of", lambda images: str(next(states)))
    label_counts.check(images, 1, folder)
    assert not folder.exists()


def pixels(**numbers: int) -> np.ndarray:
    counts = np.zeros(256, np.int64)
    for label, number in numbers.items():
        counts[int(label[1:])] = number
    return counts


def test_one_class_is_reported_with_the_shares_of_pixels(images):
    two = replace(images, classes=("background", "object"))
    assert one_class_only(two, pixels(_0=30, _1=1)) is None
    assert (
        one_class_only(two, pixels(_1=5))
        == "all masks together contain at most one class: object 100.0 % of the pixels"
    )
    binary = one_class_only(two, pixels(_0=75, _255=25)) or ""
    assert binary.startswith(
        "all masks together contain at most one class: background 75.0 %, ignored 25.0 % of the pixels."
    )
    assert "binary masks of 0 and 255" in binary and "'data.dataset.ids={0: background, 255: object}'" in binary
    assert "ignored 100.0 %" in (one_class_only(two, pixels(_255=3)) or "")


def test_mapped_masks_are_not_reported_as_binary(images):
    mapped = replace(images, classes=("a", "b"), ids={0: 0, 9: 1})
    assert "binary" not in (one_class_only(mapped, pixels(_0=75, _255=25)) or "")


def test_absent_classes(images):
    three = replace(images, classes=("a", "b", "c"))
    assert absent_classes(three, pixels(_0=1, _2=1)) == ("b",)


def test_a_pipe_in_the_cache_is_replaced_without_waiting(images, folder):
    label_counts.check(images, 1, folder)
    file = counts_file(folder)
    file.unlink()
    os.mkfifo(file)
    assert label_counts.check(images, 1, folder).pixels.tolist() == counted(images)
    assert counts_file(folder).is_file()


NAMES = ("ground", "leaf")


@pytest.fixture
def masks_of(tmp_path):
    """Open a folder whose masks are these arrays or images, by name."""

    def build(masks, **settings) -> SegmentationDataset:
        for name, mask in masks.items():
            mask = mask if isinstance(mask, Image.Image) else Image.fromarray(np.array([mask], np.uint8))
            for folder in ("photos", "labels"):
                (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("RGB", mask.size).save(tmp_path / f"photos/{name}.png")
            mask.save(tmp_path / f"labels/{name}.png")
        patterns = {"images": "photos/{name}.png", "masks": "labels/{name}.png", "fractions": {"all": 1.0}}
        return open_folder(str(tmp_path), "all", **patterns, **{"classes": NAMES} | settings)

    return build


def test_masks_of_0_and_255_among_masks_of_ids_are_always_reported(masks_of, folder, reads):
    """Regression: the object of such masks was silently ignored, since the whole data set has two classes."""
    images = masks_of({"a": [0, 255, 255, 255], "b": [0, 0, 0, 1], "c": [0, 0, 0, 0]})
    for _ in range(2):
        (output,) = label_counts.check(images, 1, folder).conflicts
        assert (
            "1 masks contain only the ids 0 and 255, such as" in output
            and "a.png (ground 25.0 %, ignored 75.0 % of" in output
        )
        assert "1 contain other ids but no 255, such as" in output and "b.png (ground 75.0 %, leaf 25.0 % of" in output
        assert "'data.dataset.ids={0: ground, 1: leaf, 255: null}'" in output
    assert len(reads) == 3


@pytest.mark.parametrize(
    ("masks", "settings"),
    [
        ({"a": [0, 255], "b": [0, 1]}, {"ids": {0: "ground", 1: "leaf", 255: None}}),  # set explicitly
        ({"a": [0, 1, 255], "b": [0, 1]}, {}),
        ({"a": [0, 1, 255], "b": [0, 255]}, {}),
        ({"a": [0, 254], "b": [0, 1]}, {"ignore_index": 254}),
    ],
)
def test_unambiguous_ignored_pixels_are_not_a_conflict(masks_of, folder, masks, settings):
    assert label_counts.check(masks_of(masks, **settings), 1, folder).conflicts == ()


RED, BLACK, GREEN = (255, 0, 0), (0, 0, 0), (0, 255, 0)


def by_palette(indices, *colours) -> Image.Image:
    image = Image.fromarray(np.array([indices], np.uint8))
    image.putpalette([part for colour in colours for part in colour])
    return image


def test_palettes_in_different_orders_are_reported_with_both_files(masks_of, folder):
    """A program that rewrites PNGs may reorder the palette, and with it the ids."""
    images = masks_of({"a": by_palette([0, 0, 1], BLACK, RED), "b": by_palette([1, 1, 0], RED, BLACK)})
    (output,) = label_counts.check(images, 1, folder).conflicts
    assert "[0, 0, 0] is ground in" in output and "a.png but leaf in" in output and "b.png" in output
    assert "data.dataset.classes={NAME: [R, G, B], ...}" in output


@pytest.mark.parametrize(
    ("masks", "settings"),
    [
        ({"a": by_palette([0, 1], BLACK, RED), "b": by_palette([0, 1], BLACK, RED, GREEN)}, {}),
        ({"a": by_palette([0, 1], BLACK, RED), "b": by_palette([0, 1], BLACK, GREEN)}, {}),
        ({"a": by_palette([0, 1], BLACK, RED), "b": by_palette([0, 0], BLACK, GREEN, BLACK)}, {}),  # not in the mask
        ({"a": by_palette([0, 1], BLACK, BLACK), "b": by_palette([1, 1], RED, BLACK)}, {}),  # ambiguous colours
        ({"a": by_palette([0, 1], BLACK, RED), "b": [0, 1]}, {}),
        (
            {"a": by_palette([0, 1], BLACK, RED), "b": by_palette([1, 0], RED, BLACK)},
            {"classes": {"ground": list(BLACK), "leaf": list(RED)}},
        ),
        (
            {"a": by_palette([0, 1, 2], BLACK, RED, GREEN), "b": by_palette([0, 2, 1], BLACK, GREEN, RED)},
            {"ids": {0: "ground", 1: "leaf", 2: "leaf"}},
        ),
    ],
)
def test_palettes_that_agree_are_not_a_conflict(masks_of, folder, masks, settings):
    assert label_counts.check(masks_of(masks, **settings), 1, folder).conflicts == ()


def test_a_modified_conflict_in_the_counts_file_is_recomputed(masks_of, folder):
    images = masks_of({"a": [0, 255], "b": [0, 1]})
    counts = label_counts.check(images, 1, folder)
    file = counts_file(folder)
    file.write_text(file.read_text().replace("is ignored", "is read as gold"))
    assert label_counts.check(images, 1, folder).conflicts == counts.conflicts
