"""Each planted defect is reported by one check with the file's name, and a clean data set has no findings."""

import shutil
from dataclasses import replace
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance

from fcnlab.data import DataError, open_voc
from fcnlab.data.checks.files import (
    class_frequencies,
    inspect_images,
    inspect_overlap,
    inspect_split,
    nearest,
    perceptual_code,
)
from fcnlab.data.checks.report import Verdict

ROWS, COLS, EDGE = 40, 48, 4
NAMES = {"train": [f"t{place}" for place in range(6)], "val": [f"v{place}" for place in range(4)]}
OK, WARNING, ERROR = Verdict


def draw(folder: Path, name: str, seed: int) -> None:
    """Save patches of random colours, and a mask with all classes and some ignored pixels."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (ROWS // EDGE, COLS // EDGE, 3), np.uint8)
    labels = rng.permutation(np.resize([*range(21), 255], ROWS * COLS // EDGE**2).astype(np.uint8))
    shape = (ROWS // EDGE, COLS // EDGE)
    for path, small in (("JPEGImages", patches), ("SegmentationClass", labels.reshape(shape))):
        image = Image.fromarray(small.repeat(EDGE, 0).repeat(EDGE, 1))
        image.save(folder / path / f"{name}.{'jpg' if small.ndim == 3 else 'png'}")


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    """A VOC data set without defects."""
    folder = tmp_path_factory.mktemp("clean") / "VOCdevkit" / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for split, names in NAMES.items():
        (folder / "ImageSets/Segmentation" / f"{split}.txt").write_text("\n".join(names))
    for seed, name in enumerate([*NAMES["train"], *NAMES["val"]]):
        draw(folder, name, seed)
    return folder.parents[1]


@pytest.fixture
def voc(clean, tmp_path) -> Path:
    """A copy of the clean data set, to plant a defect in."""
    shutil.copytree(clean, tmp_path / "root")
    return tmp_path / "root" / "VOCdevkit" / "VOC2012"


def findings_of(root: Path) -> list:
    """Return the findings in both splits and between them."""
    train, val = (open_voc(str(root), split) for split in NAMES)
    seen, val_seen = list(inspect_images(train)), list(inspect_images(val))
    findings = [*inspect_split("train", train, seen), *inspect_split("val", val, val_seen)]
    return [*findings, *inspect_overlap(("train", "val"), (train, seen), (val, val_seen))]


def image(voc: Path, name: str) -> Path:
    return voc / "JPEGImages" / f"{name}.jpg"


def mask(voc: Path, name: str) -> Path:
    return voc / "SegmentationClass" / f"{name}.png"


def shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])


def cut_out(path: Path) -> None:
    """Remove the middle of an image file and keep its beginning and end."""
    Image.open(path).save(path, "PNG")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + data[-12:])


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 20] ^= 1
    path.write_bytes(data)


def relabel(path: Path, old: int, new: int) -> None:
    labels = np.array(Image.open(path))
    Image.fromarray(np.where(labels == old, np.uint8(new), labels)).save(path)


def remove_class(voc: Path, label: int) -> None:
    for path in (voc / "SegmentationClass").glob("t*.png"):
        relabel(path, label, 0)


def add_name(voc: Path, split: str, name: str) -> None:
    with (voc / "ImageSets/Segmentation" / f"{split}.txt").open("a") as file:
        file.write(f"\n{name}\n")


def save_rotated(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(path).save(path, exif=exif)


def save_16_bits(path: Path) -> None:
    """Save RGB of 16 bits, of which PIL reads the upper bytes."""
    pixels = cv2.imread(str(path)).astype(np.uint16) * 257
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


def save_lossy_copy(source: Path, target: Path) -> None:
    """Save a copy that looks the same but has other pixel values."""
    pixels = Image.open(source).resize((COLS * 2, ROWS * 2), Image.Resampling.BICUBIC)
    ImageEnhance.Brightness(pixels).enhance(0.9).resize((COLS, ROWS)).save(target, quality=60)


def grey_16_bits(path: Path) -> None:
    Image.fromarray(np.zeros((ROWS, COLS), np.uint16)).save(path, "PNG")


DEFECTS = {  # name: (change, split, check, verdict, message)
    "missing image": (lambda voc: image(voc, "t1").unlink(), "train", "files", ERROR, "t1.jpg is missing"),
    "missing mask": (lambda voc: mask(voc, "v1").unlink(), "val", "files", ERROR, "v1.png is missing"),
    "a name without files": (lambda voc: add_name(voc, "val", "x"), "val", "files", ERROR, "x.jpg is missing"),
    "a double name": (lambda voc: add_name(voc, "train", "t2"), "train", "list", ERROR, "t2 is listed more than once"),
    "a web page instead of an image": (
        lambda voc: image(voc, "t1").write_text("<html>404"), "train", "formats", ERROR, "t1.jpg cannot be read as"),
    "an empty mask file": (
        lambda voc: mask(voc, "t1").write_bytes(b""), "train", "formats", ERROR, "t1.png cannot be read as"),
    "a truncated JPEG": (
        lambda voc: shorten(image(voc, "v2")), "val", "whole files", ERROR, "v2.jpg is truncated or damaged"),
    "a truncated mask": (
        lambda voc: shorten(mask(voc, "t0")), "train", "whole files", ERROR, "t0.png is truncated or damaged"),
    "a flipped bit in a mask": (
        lambda voc: flip_bit(mask(voc, "t0")), "train", "whole files", ERROR, "t0.png is truncated or damaged"),
    "a mask of another size": (
        lambda voc: Image.new("L", (COLS, ROWS - 1)).save(mask(voc, "t3")), "train", "mask sizes", ERROR,
        "t3.jpg has 40x48 pixels, but its mask 39x48"),
    "a coloured mask": (
        lambda voc: Image.open(mask(voc, "v0")).convert("RGB").save(mask(voc, "v0")), "val", "pixel modes", ERROR,
        "v0.png is a mask of mode RGB"),
    "a grey image of 16 bits": (
        lambda voc: grey_16_bits(image(voc, "t4")), "train", "pixel modes", ERROR, "t4.jpg has pixels of mode I;16"),
    "labels without a class": (
        lambda voc: relabel(mask(voc, "t5"), 20, 21), "train", "labels", ERROR, "t5.png contains labels [21]"),
    "one name in both lists": (
        lambda voc: add_name(voc, "val", "t0"), "train and val", "overlap", ERROR, "t0 of val equals t0 of train"),
    "one file under two names": (
        lambda voc: shutil.copy(image(voc, "t0"), image(voc, "v3")), "train and val", "overlap", ERROR,
        "v3 of val equals t0 of train"),
    "equal pixels in another format": (
        lambda voc: Image.open(image(voc, "t0")).save(image(voc, "v3"), "PNG"), "train and val", "overlap", ERROR,
        "v3 of val equals t0 of train"),
    "a lossy copy in the other split": (
        lambda voc: save_lossy_copy(image(voc, "t0"), image(voc, "v3")), "train and val", "look-alikes", WARNING,
        "v3 of val looks like t0 of train"),
    "a copy in the same split": (
        lambda voc: shutil.copy(image(voc, "t0"), image(voc, "t3")), "train", "duplicates", WARNING, "t3 equals t0"),
    "a lossy copy in the same split": (
        lambda voc: save_lossy_copy(image(voc, "t0"), image(voc, "t3")), "train", "look-alikes", WARNING,
        "t3 looks like t0"),
    "a rotation in EXIF": (
        lambda voc: save_rotated(image(voc, "t2")), "train", "rotation", WARNING, "t2.jpg has EXIF orientation 6"),
    "a CMYK image": (
        lambda voc: Image.open(image(voc, "t2")).convert("CMYK").save(image(voc, "t2")), "train", "colour space",
        WARNING, "t2.jpg is CMYK"),
    "a colour image of 16 bits": (
        lambda voc: save_16_bits(image(voc, "t2")), "train", "bit depth", WARNING, "t2.jpg has 16 bits"),
    "an absent class": (lambda voc: remove_class(voc, 7), "train", "classes", WARNING, "absent: car"),
    "a mask of ignored pixels only": (
        lambda voc: Image.new("L", (COLS, ROWS), 255).save(mask(voc, "t1")), "train", "ignored pixels", WARNING,
        "t1.png contains only ignored pixels"),
}  # fmt: skip


def test_a_clean_data_set_has_no_findings(clean):
    findings = findings_of(clean)
    assert [finding for finding in findings if finding.verdict != OK] == []
    assert len({(finding.about, finding.check) for finding in findings}) == len(findings) > 20


@pytest.mark.parametrize("kind", DEFECTS)
def test_only_the_planted_defect_is_reported(voc, kind):
    plant, about, check, verdict, message = DEFECTS[kind]
    plant(voc)
    wrong = [finding for finding in findings_of(voc.parents[1]) if finding.verdict != OK]
    assert [(finding.about.partition(":")[0], finding.check, finding.verdict) for finding in wrong] == [
        (about, check, verdict)
    ]
    (finding,) = wrong
    assert message in f"{finding.found} {finding.each}" and (check == "classes" or len(finding.each) >= 1)


@pytest.mark.parametrize(
    "kind", [kind for kind, (_, about, _, bad, _) in DEFECTS.items() if bad == ERROR and about in NAMES]
)
def test_training_refuses_the_same_defects(voc, kind):
    plant, about, _, _, message = DEFECTS[kind]
    plant(voc)
    with pytest.raises(DataError) as caught:
        open_voc(str(voc.parents[1]), about).check()
    assert message in str(caught.value)


def test_all_broken_files_are_listed(voc):
    for name in NAMES["train"]:
        image(voc, name).unlink()
    relabel(mask(voc, "t1"), 3, 99)
    findings = {finding.check: finding for finding in findings_of(voc.parents[1]) if finding.about.startswith("train:")}
    assert len(findings["files"].each) == 6 and findings["files"].found == "6 missing"
    assert findings["labels"].each[0].startswith(str(mask(voc, "t1")))


def test_damage_inside_an_image_is_found_by_decoding(voc):
    """Header and end are intact, so training fails when it reads the image; the check decodes every image."""
    cut_out(image(voc, "t1"))
    dataset = open_voc(str(voc.parents[1]), "train")
    with pytest.raises(DataError, match=r"t1\.jpg is truncated or damaged"):
        dataset.image(1)
    findings = {finding.check: finding for finding in inspect_split("train", dataset, list(inspect_images(dataset)))}
    assert findings["whole files"].verdict == ERROR and "t1.jpg" in findings["whole files"].each[0]


def test_a_split_without_masks_is_checked(clean):
    images = replace(open_voc(str(clean), "val"), masks=())
    findings = inspect_split("test", images, list(inspect_images(images)))
    assert {finding.verdict for finding in findings} == {OK} and "classes" not in {
        finding.check for finding in findings
    }


def test_images_of_one_colour_are_not_reported_as_look_alikes(voc):
    for place, name in enumerate(("t1", "t2")):
        Image.new("RGB", (COLS, ROWS), (100 * place, 50, 50)).save(image(voc, name))
    assert {finding.verdict for finding in findings_of(voc.parents[1])} == {OK}


def test_perceptual_code_compares_each_pixel_with_its_neighbour():
    places = np.random.default_rng(0).permutation(72).reshape(8, 9).astype(np.uint8)
    image = places.repeat(10, 0).repeat(10, 1)[..., None].repeat(3, 2) * 3
    lighter = [1.0 if places[row, col + 1] > places[row, col] else -1.0 for row, col in product(range(8), range(8))]
    code = perceptual_code(image)
    assert code is not None and code.tolist() == lighter


@pytest.mark.parametrize("earlier_only", [False, True])
def test_nearest_equals_a_count_of_differing_bits(earlier_only):
    codes = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (1500, 64))
    places, distances = nearest(codes, codes[:1200] if not earlier_only else codes, earlier_only)
    for index in (0, 1, 700, 1023, 1024, 1499):
        others = range(index) if earlier_only else range(1200)
        counted = [int((codes[index] != codes[other]).sum()) for other in others]
        assert distances[index] == min(counted, default=65)
        assert not counted or places[index] == counted.index(min(counted))


def test_nearest_without_candidates():
    assert nearest(np.ones((2, 64), np.float32), np.ones((0, 64), np.float32))[1].tolist() == [65, 65]


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
def test_class_frequencies_of_real_images_equal_numpy_counts(shared, split):
    dataset = open_voc(str(shared / "data"), split)
    frequencies = class_frequencies(dataset, list(inspect_images(dataset)))
    masks = [np.array(Image.open(path)) for path in dataset.masks]
    for label in range(21):
        assert frequencies.pixels[label] == sum(int((mask == label).sum()) for mask in masks)
        assert frequencies.images[label] == sum(bool((mask == label).any()) for mask in masks)
    assert frequencies.ignored_pixels == sum(int((mask == 255).sum()) for mask in masks)
    assert frequencies.images_with_ignored == len(dataset)  # official masks all have void borders
