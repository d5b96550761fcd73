"""Images in any folder layout: how files are paired, masks read, and names assigned to splits."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcnlab.data import DataError, open_folder
from fcnlab.data.formats import folder
from fcnlab.data.formats.folder import count_classes, read_classes, split_of

CLASSES = ("soil", "leaf")
COLOURS = {"soil": [10, 20, 30], "leaf": [0, 255, 0]}
FLAT = {"images": "photos/{name}.*", "masks": "labels/{name}.png"}


def pair(root: Path, image: str, mask: str, labels=((0, 1, 255),)) -> None:
    for path, pixels in ((image, np.zeros((len(labels), len(labels[0]), 3), np.uint8)), (mask, np.uint8(labels))):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / path)


def flat(root: Path, names) -> None:
    for name in names:
        pair(root, f"photos/{name}.jpg", f"labels/{name}.png")


def test_splits_as_folders(tmp_path):
    for split, name in (("train", "b"), ("train", "a"), ("val", "c")):
        pair(tmp_path, f"images/{split}/{name}.jpg", f"masks/{split}/{name}.png")
    patterns = {"images": "images/{split}/{name}.jpg", "masks": "masks/{split}/{name}.png"}
    train, val = (open_folder(str(tmp_path), split, **patterns, classes=CLASSES) for split in ("train", "val"))
    assert train.names == ("a", "b") and val.names == ("c",)
    assert train.masks[1] == tmp_path / "masks/train/b.png" and train.title == f"{tmp_path.name} train"
    assert train.mask(0).tolist() == [[0, 1, 255]] and train.image(0).shape == (1, 3, 3)
    train.check()
    with pytest.raises(DataError, match=r"no images match .*test/\{name\}\.jpg: .*images contains train, val\. Set"):
        open_folder(str(tmp_path), "test", **patterns, classes=CLASSES)


def test_a_list_is_the_path_of_a_text_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flat(tmp_path / "root", ["a", "b", "train/c"])
    (tmp_path / "few.txt").write_text("train/c\n\nb\n")
    for fractions in (None, {"train": 0.5}):  # fractions apply to the other lists
        dataset = open_folder("root", "few.txt", **FLAT, classes=CLASSES, fractions=fractions)
        assert dataset.names == ("train/c", "b") and dataset.title == "root few.txt"
        dataset.check()
    with pytest.raises(DataError, match=r"the list none\.txt is not a file"):
        open_folder("root", "none.txt", **FLAT, classes=CLASSES)
    (tmp_path / "few.txt").write_text("../a\n")
    with pytest.raises(DataError, match="leads out of the data folders"):
        open_folder("root", "few.txt", **FLAT, classes=CLASSES)
    with pytest.raises(DataError, match=r"contains names only, but data\.dataset\.images=.* a value for \{split\}"):
        open_folder("root", "few.txt", images="images/{split}/{name}.*", masks="masks/{name}.png", classes=CLASSES)


def test_names_may_contain_folders(tmp_path):
    """Cityscapes has such names."""
    pair(tmp_path, "left/train/aachen/aachen_1_left.png", "fine/train/aachen/aachen_1_ids.png")
    pair(tmp_path, "left/train/ulm/ulm_1_left.png", "fine/train/ulm/ulm_1_ids.png")
    patterns = {"images": "left/{split}/{name}_left.png", "masks": "fine/{split}/{name}_ids.png"}
    dataset = open_folder(str(tmp_path), "train", **patterns, classes=CLASSES)
    assert dataset.names == ("aachen/aachen_1", "ulm/ulm_1")
    dataset.check()


def test_a_star_matches_images_of_any_format_only(tmp_path):
    flat(tmp_path, "ab")
    pair(tmp_path, "photos/c.PNG", "labels/c.png")
    for stray in ("Thumbs.db", "._a.jpg", ".hidden/d.jpg"):
        (tmp_path / "photos" / stray).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / stray).write_text("no image")
    dataset = open_folder(str(tmp_path), "all", **FLAT, classes=CLASSES, fractions={"all": 1.0})
    assert [path.name for path in dataset.images] == ["a.jpg", "b.jpg", "c.PNG"]


def left_out(root: Path, split: str = "all", **settings) -> list[str]:
    settings = {"classes": CLASSES, "fractions": {"all": 1.0}, "masks": "labels/{name}.png"} | settings
    dataset = open_folder(str(root), split, **settings)
    return sorted(path.relative_to(root).as_posix() for path in dataset.left_out)


def test_files_skipped_for_suffix_or_case_are_reported(tmp_path):
    flat(tmp_path, "ab")
    for name in ("photos/c.JPG", "photos/d.jpeg", "photos/more/e.Tif", "photos/.hidden.png", "photos/notes.txt"):
        pair(tmp_path, "photos/a.jpg", "labels/a.png")
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((tmp_path / "photos/a.jpg").read_bytes())
    assert left_out(tmp_path, images="photos/{name}.jpg") == ["photos/c.JPG", "photos/d.jpeg", "photos/more/e.Tif"]
    assert left_out(tmp_path, images="photos/{name}.*") == []
    assert left_out(tmp_path, images="photos/{name}") == []


def test_masks_next_to_their_images_are_not_reported_as_skipped(tmp_path):
    for name in "ab":
        pair(tmp_path, f"all/{name}.jpg", f"all/{name}.png")
        pair(tmp_path, f"all/{name}_im.jpg", f"all/{name}_gt.PNG")
    pair(tmp_path, "all/c.JPG", "all/c.png")
    assert left_out(tmp_path, images="{split}/{name}.jpg", masks="{split}/{name}.png", fractions=None) == ["all/c.JPG"]
    masks = {"masks": "{split}/{name}_gt.png", "fractions": None}
    assert left_out(tmp_path, images="{split}/{name}_im.jpg", **masks) == []


def test_skipped_files_are_reported_for_their_own_split(tmp_path):
    flat(tmp_path, [f"p{place}" for place in range(20)])
    for place in range(20):
        pair(tmp_path, f"photos/q{place}.JPG", f"labels/q{place}.png")
    shares = {"train": 0.5, "val": 0.5}
    skipped = {split: left_out(tmp_path, split, images="photos/{name}.jpg", fractions=shares) for split in shares}
    assert sorted(skipped["train"] + skipped["val"]) == sorted(f"photos/q{place}.JPG" for place in range(20))
    names = [Path(path).stem for path in skipped["train"]]
    assert names and all(split_of(name, shares, 0) == "train" for name in names)


def test_an_error_names_files_that_differ_only_in_suffix_or_case(tmp_path):
    pair(tmp_path, "photos/a.JPG", "labels/a.png")
    with pytest.raises(
        DataError, match=r"no images match .*\{name\}\.jpg.* 1 files differ only in suffix or case, such as a\.JPG"
    ):
        left_out(tmp_path, images="photos/{name}.jpg")


def test_linked_folders_are_searched_without_endless_loops(tmp_path):
    flat(tmp_path / "disk", ["a", "more/b"])
    for kind in ("photos", "labels"):
        (tmp_path / kind).mkdir()
        for name in ("one", "two"):  # one folder may have two names
            (tmp_path / kind / name).symlink_to(tmp_path / "disk" / kind)
    (tmp_path / "disk/photos/more/up").symlink_to("..")
    (tmp_path / "disk/photos/self").symlink_to(".")
    (tmp_path / "disk/photos/more/over").symlink_to(tmp_path / "photos")
    dataset = open_folder(str(tmp_path), "all", **FLAT, classes=CLASSES, fractions={"all": 1.0})
    assert dataset.names == ("one/a", "one/more/b", "two/a", "two/more/b")
    dataset.check()


def test_two_images_with_the_same_name_are_an_error(tmp_path):
    flat(tmp_path, "a")
    pair(tmp_path, "photos/a.png", "labels/a.png")
    with pytest.raises(DataError, match=r"a\.png and .*a\.jpg have the same name 'a'"):
        open_folder(str(tmp_path), "all", **FLAT, classes=CLASSES, fractions={"all": 1.0})


def test_splits_as_lists(tmp_path):
    flat(tmp_path, "abc")
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets/train.txt").write_text("c\na\n")
    (tmp_path / "sets/val.txt").write_text("b\nmissing\n")
    train, val = (
        open_folder(str(tmp_path), split, **FLAT, classes=CLASSES, lists="sets/{split}.txt")
        for split in ("train", "val")
    )
    assert train.names == ("c", "a") and train.images[0].name == "c.jpg"
    with pytest.raises(DataError, match=r"photos/missing\.\* is missing"):
        val.check()
    with pytest.raises(DataError, match=r"no list 'test' in .*sets: available are train, val"):
        open_folder(str(tmp_path), "test", **FLAT, classes=CLASSES, lists="sets/{split}.txt")


def test_an_image_without_a_mask_is_an_error(tmp_path):
    flat(tmp_path, "ab")
    (tmp_path / "labels/b.png").unlink()
    with pytest.raises(DataError, match=r"labels/b\.png is missing"):
        open_folder(str(tmp_path), "all", **FLAT, classes=CLASSES, fractions={"all": 1.0}).check()


def test_splits_by_fraction_are_disjoint_complete_and_close_in_size():
    names, shares = [f"p{place}" for place in range(4000)], {"train": 0.7, "val": 0.2, "test": 0.1}
    splits = [split_of(name, shares, seed=0) for name in names]
    assert None not in splits  # every name is in a split
    for split, share in shares.items():
        assert abs(splits.count(split) / 4000 - share) < 4 * (share * (1 - share) / 4000) ** 0.5
    assert splits != [split_of(name, shares, seed=1) for name in names]
    assert splits.count("train") > sum(split_of(name, {"train": 0.5}, seed=0) == "train" for name in names) > 1800


def test_adding_an_image_never_moves_existing_ones(tmp_path):
    flat(tmp_path, [f"p{place}" for place in range(30)])
    settings = {**FLAT, "classes": CLASSES, "fractions": {"train": 0.7, "val": 0.3}}
    before = {split: set(open_folder(str(tmp_path), split, **settings).names) for split in ("train", "val")}
    assert before["train"] | before["val"] == {f"p{place}" for place in range(30)}
    assert not before["train"] & before["val"] and len(before["train"]) > len(before["val"]) > 0
    flat(tmp_path, ["another"])
    after = {split: set(open_folder(str(tmp_path), split, **settings).names) for split in ("train", "val")}
    assert all(after[split] - {"another"} == before[split] for split in before)


def test_an_empty_split_is_an_error(tmp_path):
    flat(tmp_path, "a")
    shares = {"train": 0.5, "val": 0.5}
    empty = ({"train", "val"} - {split_of("a", shares, 0)}).pop()
    with pytest.raises(DataError, match=f"none of 1 images is in split {empty}: increase its share"):
        open_folder(str(tmp_path), empty, **FLAT, classes=CLASSES, fractions=shares)
    with pytest.raises(DataError, match=r"no split 'test' in .*available are train, val"):
        open_folder(str(tmp_path), "test", **FLAT, classes=CLASSES, fractions=shares)


@pytest.fixture
def coloured(tmp_path):
    """One image with a colour mask."""

    def build(pixels, **settings):
        flat(tmp_path, "a")
        Image.new("RGB", (len(pixels), 1)).save(tmp_path / "photos/a.jpg")
        Image.fromarray(np.array([pixels], np.uint8)).save(tmp_path / "labels/a.png")
        return open_folder(str(tmp_path), "all", **FLAT, fractions={"all": 1.0}, **{"classes": COLOURS} | settings)

    return build


def test_colour_masks(coloured):
    images = coloured([COLOURS["leaf"], COLOURS["soil"], (9, 9, 9), COLOURS["leaf"]], ignore_colours=[[9, 9, 9]])
    assert images.mask(0).tolist() == [[1, 0, 255, 1]]
    assert images.classes == CLASSES and images.palette.tolist() == list(COLOURS.values())
    images.check()


def test_a_colour_without_a_class_is_an_error_with_file_and_colour(coloured):
    images = coloured([COLOURS["leaf"], (0, 254, 0), (9, 9, 9), (10, 20, 30)])
    with pytest.raises(DataError, match=r"labels/a\.png contains 2 colours .*: \[0, 254, 0\], \[9, 9, 9\]\. Add each"):
        images.mask(0)


def test_coloured_masks_need_class_colours(coloured):
    with pytest.raises(DataError, match=r"a\.png is a mask of mode RGB.*set the colours of RGB masks with data"):
        coloured([COLOURS["leaf"]], classes=CLASSES).mask(0)


def test_ignore_index_may_be_another_id_or_null(tmp_path):
    pair(tmp_path, "photos/a.png", "labels/a.png", labels=[[0, 1, 2]])
    settings = {**FLAT, "fractions": {"all": 1.0}}
    assert open_folder(str(tmp_path), "all", **settings, classes=CLASSES, ignore_index=2).mask(0).tolist() == [
        [0, 1, 255]
    ]
    with pytest.raises(DataError, match=r"contains labels \[2\], .* 0 to 1 and ignore_index null"):
        open_folder(str(tmp_path), "all", **settings, classes=CLASSES, ignore_index=None).mask(0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("soil\nleaf\n", (CLASSES, [])),
        ("soil 10 20 30\n\nleaf,0,255,0\n", (CLASSES, [(10, 20, 30), (0, 255, 0)])),
        ("\ufefftraffic light\t1\t2\t3\r\n", (("traffic light",), [(1, 2, 3)])),
        ("area 51\n", (("area 51",), [])),
    ],
)
def test_classes_are_read_from_a_file(tmp_path, text, expected):
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8", newline="")
    assert read_classes("classes.txt", str(tmp_path)) == expected
    assert count_classes("classes.txt", str(tmp_path)) == len(expected[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": "photos/*.jpg"}, r"data\.dataset\.images=photos/\*\.jpg must contain \{name\} once"),
        ({"masks": "labels/{name}_{name}.png"}, r"data\.dataset\.masks=.* must contain \{name\} once"),
        ({"masks": "labels/{name}.*"}, r"must not contain \*"),
        ({"fractions": None}, r"the images of a split are defined by nothing: set exactly one of \{split\}"),
        (
            {"images": "{split}/{name}.jpg"},
            r"\{split\} in data\.dataset\.images and data\.dataset\.fractions: set exactly one",
        ),
        ({"lists": "all.txt"}, r"data\.dataset\.lists=all\.txt must contain \{split\} and end in \.txt"),
        ({"fractions": {"all": 0.8, "val": 0.3}}, r"data\.dataset\.fractions=.*above 0, with a sum of at most 1"),
        ({"fractions": {"all": -1.0}}, r"data\.dataset\.fractions=.*above 0"),
        ({"classes": []}, r"has 0 classes, but 1 to 255 are allowed"),
        ({"classes": ["a", "b", "a"]}, r"two classes have the name a"),
        ({"classes": {"a": [1, 2, 3], "b": [1, 2, 3]}}, r"two classes have the colour \(1, 2, 3\)"),
        ({"classes": {"a": [1, 2, 300]}}, r"\[1, 2, 300\] is not a colour: use red, green and blue"),
        ({"classes": "nothing.txt"}, r"nothing\.txt cannot be read"),
        ({"classes": "mixed.txt"}, r"has 2 classes but 1 colours: set all or none"),
        ({"classes": COLOURS, "ignore_colours": [[1, 2]]}, r"\[1, 2\] is not a colour"),
        ({"classes": COLOURS, "ignore_colours": [[0, 255, 0]]}, r"\[0, 255, 0\] is also the colour of a class"),
        ({"ignore_colours": [[1, 2, 3]]}, r"ignore_colours has no effect without class colours"),
    ],
)
def test_invalid_settings_are_explained(tmp_path, settings, message):
    flat(tmp_path, "a")
    (tmp_path / "mixed.txt").write_text("a 1 2 3\nb\n")
    sound = {**FLAT, "classes": CLASSES, "fractions": {"all": 1.0}}
    with pytest.raises(DataError, match=message):
        open_folder(str(tmp_path), "all", **sound | settings)


def test_a_root_that_is_not_a_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"data\.root=.*nowhere is not a folder: set data\.root"):
        open_folder(str(tmp_path / "nowhere"), "all", **FLAT, classes=CLASSES, fractions={"all": 1.0})


def test_a_pipe_or_huge_file_of_classes_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.txt")
    with (tmp_path / "large.txt").open("wb") as file:
        file.truncate(1 << 40)
    for name, output in {"pipe.txt": "not a regular file", "large.txt": "more than"}.items():
        with pytest.raises(DataError, match=rf"classes={name}: .* cannot be read \({name} .*{output}"):
            read_classes(name, str(tmp_path))


@pytest.mark.parametrize("line", ["# classes", "// classes", "0 soil", "0,soil", "0 0 0\tsoil", "12: soil"])
def test_a_line_of_classes_that_is_not_a_name_is_an_error(tmp_path, line):
    (tmp_path / "classes.txt").write_text(f"{line}\nleaf\n")
    with pytest.raises(DataError, match=r"line 1, .* starts like a comment, an id or a colour"):
        read_classes("classes.txt", str(tmp_path))


def test_a_long_line_of_classes_is_refused_at_once(tmp_path):
    """Regression: the time grew with the square of the number of spaces, to hours."""
    (tmp_path / "classes.txt").write_text(f"soil{' ' * 1_000_000}x\n")
    with pytest.raises(DataError, match=r"line 1 has more than 500 characters: write one class per line"):
        read_classes("classes.txt", str(tmp_path))


def test_a_mask_pattern_that_matches_the_images_is_refused(tmp_path):
    folder = tmp_path / "both" / "train"
    folder.mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(folder / "a.png")
    pattern = "both/{split}/{name}.png"
    with pytest.raises(DataError, match="matches the images themselves"):
        open_folder(str(tmp_path), "train", images=pattern, masks=pattern, classes=["a", "b"])


SUFFIX_MASKS = {"images": "all/{name}.png", "masks": "all/{name}_mask.png", "fractions": {"all": 1.0}}


def test_masks_next_to_their_images_are_not_read_as_images(tmp_path):
    """Regression: they were read as images without a mask, or as a second image with the same name."""
    for name in ("a", "b"):
        pair(tmp_path, f"all/{name}.png", f"all/{name}_mask.png")
    dataset = open_folder(str(tmp_path), "all", **SUFFIX_MASKS, classes=CLASSES)
    assert dataset.names == ("a", "b") and dataset.left_out == ()
    dataset.check()
    pair(tmp_path, "both/a.jpg", "both/a.png")
    beside = {"images": "both/{name}.*", "masks": "both/{name}.png", "fractions": {"all": 1.0}}
    dataset = open_folder(str(tmp_path), "all", **beside, classes=CLASSES)
    assert [path.name for path in dataset.images] == ["a.jpg"]
    dataset.check()


def test_a_mask_without_an_image_is_an_error(tmp_path):
    pair(tmp_path, "all/a.png", "all/a_mask.png")
    (tmp_path / "all/a.png").unlink()
    with pytest.raises(DataError, match=r"a_mask_mask\.png is missing"):
        open_folder(str(tmp_path), "all", **SUFFIX_MASKS, classes=CLASSES).check()


def test_one_mask_for_different_images_of_two_splits_is_refused(tmp_path):
    for split, shade in (("train", 0), ("val", 9)):
        pair(tmp_path, f"images/{split}/1.png", "masks/1.png")
        Image.new("RGB", (3, 1), (shade,) * 3).save(tmp_path / f"images/{split}/1.png")
    patterns = {"images": "images/{split}/{name}.png", "masks": "masks/{name}.png", "classes": CLASSES}
    for split in ("train", "val"):
        with pytest.raises(DataError, match=r"masks/\{name\}\.png has no \{split\}.* different images.*Add \{split\}"):
            open_folder(str(tmp_path), split, **patterns)
    Image.new("RGB", (3, 1)).save(tmp_path / "images/val/1.png")  # a copy, as in a split that is a subset of another
    open_folder(str(tmp_path), "val", **patterns).check()


def test_splits_with_different_names_may_share_a_mask_folder(tmp_path):
    for split, name in (("train", "a"), ("val", "b")):
        pair(tmp_path, f"images/{split}/{name}.png", f"masks/{name}.png")
    open_folder(str(tmp_path), "val", images="images/{split}/{name}.png", masks="masks/{name}.png", classes=CLASSES)


@pytest.mark.parametrize("images", ["photos/{name}.jpg", "photos/{name}.*"])
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("# first ones", "is missing: lists contain one name per line, without # comments"),
        ("#a/b", "without # comments"),
        ("a.jpg", r"is missing: names in lists have no suffix: write a instead of a\.jpg"),
        ("a.png", r"names in lists have no suffix: write a instead of a\.png"),
        ("nothing", r"photos/nothing\.(jpg|\*) is missing$"),
    ],
)
def test_a_line_of_a_list_that_is_not_a_name_is_explained(tmp_path, images, line, message):
    flat(tmp_path, "ab")
    (tmp_path / "all.txt").write_text(f"b\n{line}\n")
    dataset = open_folder(
        str(tmp_path), "all", images=images, masks=FLAT["masks"], classes=CLASSES, lists="{split}.txt"
    )
    with pytest.raises(DataError, match=rf"(?m){message}"):
        dataset.check()


def test_a_second_column_in_a_list_is_explained(tmp_path):
    """VOC's lists for single classes have one."""
    flat(tmp_path, "a")
    (tmp_path / "all.txt").write_text("a -1\n")
    settings = {**FLAT, "images": "photos/{name}.jpg"}
    with pytest.raises(DataError, match=r"lists contain one name per line, here a, and nothing else"):
        open_folder(str(tmp_path), "all", **settings, classes=CLASSES, lists="{split}.txt").check()


def test_files_larger_than_images_are_not_compared(tmp_path, monkeypatch):
    """Regression: two files of a terabyte were read completely, to find out whether they are copies."""
    for place in ("train/a.jpg", "val/a.jpg", "masks/a.png"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).touch()
        os.truncate(tmp_path / place, 1 << 40)
    monkeypatch.setattr(folder, "cmp", lambda *_, **__: pytest.fail("they were read"))
    dataset = open_folder(str(tmp_path), "train", "{split}/{name}.jpg", "masks/{name}.png", ["a", "b"])
    assert [path.name for path in dataset.images] == ["a.jpg"]
