"""Generated shapes: the same seed gives the same bytes, and no failure leaves a partial data set."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcnlab.data import DataError, open_shapes, temporary_folders
from fcnlab.data.formats import shapes
from fcnlab.data.formats.voc import voc_palette

SETTINGS = {"num_train": 4, "num_val": 3, "size": 32}


def opened(root: Path, split: str = "train", **changes):
    return open_shapes(str(root), split, **SETTINGS | changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_images_depend_on_the_seed_only(tmp_path):
    for root, seed in (("a", 1), ("b", 1), ("c", 2)):
        opened(tmp_path / root, drawing_seed=seed)
    (a,), (b,), (c,) = (tuple((tmp_path / root).iterdir()) for root in "abc")
    assert contents(a) == contents(b) and a.name == b.name != c.name
    assert len(contents(a)) == 2 * (4 + 3) + 2
    lists = {name for name in contents(a) if name.endswith(".txt")}
    assert {name for name, data in contents(a).items() if contents(c)[name] == data} == lists


def test_a_larger_data_set_starts_with_the_images_of_a_smaller_one(tmp_path):
    small, large = opened(tmp_path), opened(tmp_path, num_train=6)
    assert [small.images[index].read_bytes() for index in range(4)] == [p.read_bytes() for p in large.images[:4]]


def test_train_and_val_differ(tmp_path):
    images = {path.read_bytes() for split in ("train", "val") for path in opened(tmp_path, split).images}
    assert len(images) == 7


def test_an_unknown_list_is_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(
        DataError, match=r"available are train, val\. Choose one of these as split \(.*data\.test_list\)"
    ):
        opened(tmp_path, "test")
    assert not list(tmp_path.iterdir())


def test_existing_images_are_not_drawn_again(tmp_path, monkeypatch):
    opened(tmp_path)
    monkeypatch.setattr(shapes, "draw", lambda *args: pytest.fail("drawn again"))
    assert opened(tmp_path).title == "shapes train" and len(opened(tmp_path, "val")) == 3


def test_files_have_the_devkit_formats(tmp_path):
    dataset = opened(tmp_path)
    dataset.check()
    with Image.open(dataset.masks[0]) as mask:
        assert mask.mode == "P"
        assert mask.getpalette() == voc_palette(256).flatten().tolist()
    with Image.open(dataset.images[0]) as image:
        assert image.format == "JPEG" and all(24 <= side <= 40 for side in image.size)


def test_all_classes_occur_and_have_ignored_borders():
    masks = [shapes.draw(np.random.default_rng([0, 1, index]), 48)[1] for index in range(200)]
    assert set(np.concatenate([mask.flatten() for mask in masks])) == {*range(21), 255}
    for mask in masks[:20]:
        # A shape touches only its own class or ignored pixels: never another class or the background.
        for first, second in ((mask[1:], mask[:-1]), (mask[:, 1:], mask[:, :-1])):
            assert not ((first != second) & (first != 255) & (second != 255)).any()


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError("disk full")])
def test_a_failure_while_drawing_leaves_no_files(tmp_path, monkeypatch, failure):
    draw, left = shapes.draw, iter(range(3))

    def fail_later(*args):
        if next(left, None) is None:
            raise failure
        return draw(*args)

    with monkeypatch.context() as patch:
        patch.setattr(shapes, "draw", fail_later)
        with pytest.raises(failure if isinstance(failure, type) else type(failure)):
            opened(tmp_path / "root")
    assert list((tmp_path / "root").iterdir()) == []
    assert len(opened(tmp_path / "root")) == 4


def test_leftovers_of_a_killed_process_are_ignored_and_removed(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(temporary_folders.shutil, "rmtree", lambda *args, **kwargs: None)  # SIGKILL cleans nothing up
        patch.setattr(shapes, "draw", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            opened(tmp_path)
    (left,) = tmp_path.iterdir()
    opened(tmp_path).check()
    assert left.is_dir()  # another process may have just created it, and not locked it yet
    os.utime(left, (0, 0))
    opened(tmp_path)
    assert not left.exists() and len(list(tmp_path.iterdir())) == 1


def test_a_folder_in_use_by_another_process_is_not_removed(tmp_path):
    with temporary_folders.held_folder(tmp_path, ".drawing-") as folder:
        os.utime(folder, (0, 0))
        temporary_folders.remove_leftovers(tmp_path, ".drawing-")
        assert folder.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_second_process_uses_the_images_of_the_first(tmp_path, monkeypatch):
    write, first = shapes.write_data_set, []

    def overtaken(*args):
        write(*args)
        monkeypatch.undo()
        first.append(opened(tmp_path))

    monkeypatch.setattr(shapes, "write_data_set", overtaken)
    assert opened(tmp_path).images == first[0].images and len(list(tmp_path.iterdir())) == 1


def test_several_processes_may_draw_at_once(tmp_path):
    with ThreadPoolExecutor(4) as pool:
        sets = list(pool.map(lambda _: opened(tmp_path), range(4)))
    assert len({images.images for images in sets}) == len(list(tmp_path.iterdir())) == 1
    sets[0].check()


def test_other_users_may_read_the_images(tmp_path):
    plain = tmp_path / "plain"
    plain.mkdir()
    (drawn,) = opened(tmp_path / "root").images[0].parents[4].glob("train*")
    assert drawn.stat().st_mode == plain.stat().st_mode
