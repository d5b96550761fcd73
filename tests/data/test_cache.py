"""A cache gives the files' own values, is made once, notices every change, and is never half of one."""

import fcntl
import multiprocessing as mp
import os
import pickle
import resource
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fcnlab.data import DataError, SegmentationDataset, cache, open_voc
from fcnlab.data.cache import with_cache
from fcnlab.errors import WriteError

KINDS = ["ram", "disk"]
forks = pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")  # Python 3.12 on warns beside threads


@pytest.fixture
def images(voc_root) -> SegmentationDataset:
    """Ten images, no two of one size."""
    return open_voc(str(voc_root), "trainaug")


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Which images are read from their files, from now on."""
    found, read = [], SegmentationDataset.image
    monkeypatch.setattr(SegmentationDataset, "image", lambda self, index: found.append(index) or read(self, index))
    return found


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


def check_equal(found: SegmentationDataset, target: SegmentationDataset) -> None:
    assert (found.title, found.names, found.classes, len(found)) == (
        target.title,
        target.names,
        target.classes,
        len(target),
    )
    for index in range(len(target)):
        np.testing.assert_array_equal(found.image(index), target.image(index), strict=True)
        np.testing.assert_array_equal(found.mask(index), target.mask(index), strict=True)
        assert found.size(index) == target.size(index) == target.mask(index).shape


def pixels_of(folder: Path) -> Path:
    (path,) = folder.glob("*.pixels")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_the_files(images, folder, kind):
    check_equal(with_cache(images, kind, folder), images)


@pytest.mark.parametrize("kind", KINDS)
def test_void_and_classes_are_the_sets_own(voc_root, folder, kind):
    """The values are those after checks and void: another reading of the same files is another cache."""
    target = open_voc(str(voc_root), "val")
    for other in (target, replace(target, ignore_index=20, ids={7: 0, 0: 1, 255: 255}, classes=("a", "b"))):
        check_equal(with_cache(other, kind, folder), other)
    assert (with_cache(other, kind, folder).mask(0) == 255).sum() > (target.mask(0) == 255).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_class_colours_are_another_reading(voc_root, folder, kind):
    plain = open_voc(str(voc_root), "val")
    greys = {(0, 0, 0): 2, (7, 7, 7): 1, (20, 20, 20): 0, (255, 255, 255): 255}
    for other in (plain, replace(plain, colours=greys), replace(plain, colours={**greys, (7, 7, 7): 255})):
        check_equal(with_cache(other, kind, folder), other)
    assert not (other.mask(0) == plain.mask(0)).all()


def test_what_an_older_reading_left_is_made_anew(images, folder, monkeypatch):
    """A palette was ignored, and ids had no mapping."""
    monkeypatch.setattr(cache, "LAYOUT", 1)
    with_cache(images, "disk", folder)
    monkeypatch.undo()
    made = pixels_of(folder).stat().st_mtime_ns
    check_equal(with_cache(images, "disk", folder), images)
    assert pixels_of(folder).stat().st_mtime_ns > made


def test_what_was_left_out_of_a_set_makes_it_no_other(images, folder, decoded):
    with_cache(images, "disk", folder)
    with_cache(replace(images, left_out=(folder / "a.JPG",)), "disk", folder)
    assert len(decoded) == len(images)


class Inverted(SegmentationDataset):
    """Reads the same files in another way, with no field that says so."""

    def image(self, index):
        return 255 - super().image(index)


def test_another_reader_of_the_same_files_is_another_cache(images, folder):
    other = Inverted(**vars(images))
    for target in (images, other, images):
        check_equal(with_cache(target, "disk", folder), target)


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_masks(images, folder, kind):
    found = with_cache(replace(images, masks=()), kind, folder)
    for index in range(len(images)):
        np.testing.assert_array_equal(found.image(index), images.image(index))


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_decoded_again(images, folder, decoded, kind):
    found = with_cache(images, kind, folder)
    assert sorted(decoded) == list(range(10))
    for index in (0, 3, 3):
        found.image(index)
    assert len(decoded) == 10


def test_no_cache_is_the_images_themselves(images, folder):
    assert with_cache(images, "none", folder) is images and not folder.exists()


def test_the_next_run_takes_what_is_there(images, folder, decoded):
    with_cache(images, "disk", folder)
    check_equal(with_cache(images, "disk", folder), images)
    assert len(decoded) == 10 + 10 and len(list(folder.glob("*.pixels"))) == 1  # those of check_equal


def test_a_folder_that_cannot_be_written_to_serves_what_it_holds(images, folder, monkeypatch):
    with_cache(images, "disk", folder)
    monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: pytest.fail("written to"))
    check_equal(with_cache(images, "disk", folder), images)


@pytest.mark.parametrize("kind", KINDS)
def test_views_cannot_be_written_to(images, folder, kind):
    """Or an augmentation in place would change the image for every epoch to come."""
    found = with_cache(images, kind, folder)
    for part in (found.image(1), found.mask(1)):
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 0


def rewrite(path: Path, change) -> None:
    """Change a file's content, and nothing else that a listing shows."""
    before = path.stat()
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES = {
    "image": lambda p: Image.new("RGB", p.size(2)[::-1]).save(p.images[2]),
    "mask": lambda p: Image.new("L", p.size(2)[::-1]).save(p.masks[2]),
    "same size and time": lambda p: rewrite(p.images[2], lambda data: data[:-40] + bytes(38) + data[-2:]),
    "touched": lambda p: os.utime(p.masks[2]),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_a_changed_file_makes_it_anew(images, folder, kind):
    with_cache(images, "disk", folder)
    time.sleep(0.02)  # the clock of a file's times ticks every few milliseconds
    CHANGES[kind](images)
    check_equal(with_cache(images, "disk", folder), images)
    assert len(list(folder.glob("*.pixels"))) == 1  # the old one is not left to fill the disk


def test_other_lists_are_other_caches(images, folder):
    half = replace(images, names=images.names[:5], images=images.images[:5], masks=images.masks[:5])
    for part in (images, half, images):
        check_equal(with_cache(part, "disk", folder), part)
    assert len(list(folder.glob("*.pixels"))) == 2


def test_newer_decoders_make_it_anew(images, folder, decoded, monkeypatch):
    with_cache(images, "disk", folder)
    monkeypatch.setattr(cache, "PIL", SimpleNamespace(__version__="99"))
    with_cache(images, "disk", folder)
    assert len(decoded) == 20


def test_half_a_file_is_never_taken_for_a_whole_one(images, folder, decoded):
    with_cache(images, "disk", folder)
    path = pixels_of(folder)
    whole = path.read_bytes()
    head = whole.index(b"\n") + 1
    for length in (0, 1, head - 1, head, head + 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with_cache(images, "disk", folder)
        assert path.read_bytes() == whole
    for other in (b"\n", b"null\n", b"{}\n", b"\xff" * 99, whole + b"x"):
        path.write_bytes(other)
        with_cache(images, "disk", folder)
        assert path.read_bytes() == whole
    assert len(decoded) == 10 * 13


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_full_disk_leaves_nothing(images, folder, share):
    """A limit on the size of files stands for it: the system refuses to write on, in the same way."""
    size = sum(4 * rows * cols for rows, cols in map(images.size, range(10)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * size), limits[1]))
    try:
        with pytest.raises(WriteError, match=r"data\.cache=disk: .*trainaug.*cannot be written.*File too large"):
            with_cache(images, "disk", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.suffix for path in folder.iterdir()} == {".lock"}
    check_equal(with_cache(images, "disk", folder), images)


def test_too_little_room_is_told_before_any_work(images, folder, decoded, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(cache, "_free_memory", lambda: 1000)
    for kind in KINDS:
        with pytest.raises(WriteError, match=rf"data\.cache={kind}.* needs 0\.00 GB for VOC2012 trainaug"):
            with_cache(images, kind, folder)
    assert decoded == []


def test_free_memory_is_some_of_the_machines():
    assert 2**20 < cache._free_memory() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(("limit", "free"), [("50000\n", 50_000 - 49_000 + 30_000 + 8000), ("max\n", None)])
def test_a_containers_files_in_memory_are_free_for_others(tmp_path, monkeypatch, limit, free):
    """What reading a data set leaves there counts as used, and is given up when memory is asked for."""
    stat = "anon 9000\nfile 40000\nshmem 2000\ninactive_anon 2000\ninactive_file 30000\nactive_file 8000\n"
    for name, text in {"max": limit, "current": "49000\n", "stat": stat}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(cache, "CONTAINER", tmp_path)
    assert cache._free_memory() == free if free else cache._free_memory() > 2**20


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_image_is_named_and_nothing_is_left(images, folder, kind):
    image = images.images[4]
    image.write_bytes(image.read_bytes()[:-30])
    with pytest.raises(DataError, match=rf"{image.name} is truncated or damaged"):
        with_cache(images, kind, folder)
    images.masks[4].unlink()
    with pytest.raises(DataError, match=rf"{images.masks[4].name} is missing"):
        with_cache(images, kind, folder)
    assert not list(folder.glob("*.p*"))


def test_another_size_than_its_mask_is_an_error(images, folder):
    Image.new("L", (3, 3)).save(images.masks[4])
    with pytest.raises(DataError, match=rf"{images.images[4].name} has .*, but its mask 3x3"):
        with_cache(images, "disk", folder)


def test_a_file_that_changes_meanwhile_is_an_error(images, folder, monkeypatch):
    read = SegmentationDataset.mask

    def late(self, index):
        found = read(self, index)
        if index == 9:
            os.utime(images.images[0], (1, 1))
        return found

    monkeypatch.setattr(SegmentationDataset, "mask", late)
    with pytest.raises(DataError, match="changed while they were cached"):
        with_cache(images, "disk", folder)
    assert not list(folder.glob("*.p*"))


def in_another_process(work, *arguments) -> mp.Process:
    process = mp.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def make(dataset: SegmentationDataset, folder: Path, log: Path) -> None:
    """Make or find the cache; note each image that was decoded."""
    read = SegmentationDataset.image

    def noted(self, index):
        with log.open("a") as file:
            file.write(f"{index}\n")
        time.sleep(0.02)
        return read(self, index)

    SegmentationDataset.image = noted
    with_cache(dataset, "disk", folder)


@forks
def test_of_two_at_once_one_makes_it_and_the_other_takes_it(images, folder, tmp_path):
    log = tmp_path / "decoded"
    both = [in_another_process(make, images, folder, log) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert sorted(map(int, log.read_text().split())) == list(range(10))
    check_equal(with_cache(images, "disk", folder), images)


@forks
def test_a_kill_leaves_nothing_that_is_taken_for_a_cache(images, folder, tmp_path):
    log = tmp_path / "decoded"
    process = in_another_process(make, images, folder, log)
    while not log.exists() or not log.read_text().count("\n"):
        time.sleep(0.002)
    process.kill()
    process.join()
    assert len(set(log.read_text().split())) < 10 and not list(folder.glob("*.pixels"))
    check_equal(with_cache(images, "disk", folder), images)
    assert not list(folder.glob("*.part"))


def test_one_that_waits_takes_what_the_other_made(images, folder, decoded):
    with_cache(images, "disk", folder)
    path = pixels_of(folder)
    made = path.read_bytes()
    path.unlink()
    found = []
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waits = threading.Thread(target=lambda: found.append(with_cache(images, "disk", folder)))
        waits.start()
        waits.join(0.2)
        assert waits.is_alive() and not found
        path.write_bytes(made)
    waits.join()
    assert len(found) == 1 and len(decoded) == 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_for_a_worker_opens_the_same_memory(images, folder, kind):
    """Workers that are spawned get it pickled: by its name, not by its pixels."""
    found = with_cache(images, kind, folder)
    travelling = pickle.dumps(found)
    assert len(travelling) < 20_000 < sum(4 * np.prod(found.size(index)) for index in range(10))
    check_equal(pickle.loads(travelling), images)


def test_memory_is_given_back(images, folder):
    def held() -> int:
        return sum("memfd:fcnlab" in str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.exists())

    before = held()
    found = with_cache(images, "ram", folder)
    assert held() > before
    del found
    assert held() == before


@forks
def test_forked_workers_share_the_memory(images, folder):
    """Seen from outside: a page that a worker changed through the file is changed for the others."""
    found = with_cache(images, "ram", folder)
    found.image(3)  # which compares it with its checksum, once

    def scribble() -> None:
        with found.store.path.open("r+b") as file:
            file.seek(found.store._starts[3])
            file.write(bytes([1, 2, 3]))

    process = in_another_process(scribble)
    process.join()
    assert process.exitcode == 0 and found.image(3)[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("part", ["image", "mask", "checksum"])
def test_a_flipped_bit_is_noticed_when_it_is_first_read(images, folder, part):
    """Of the third image, by places that are counted here anew."""
    sizes = [images.size(index) for index in range(len(images))]
    with_cache(images, "disk", folder)
    path = pixels_of(folder)
    data = bytearray(path.read_bytes())
    start = data.index(b"\n") + 1 + sum(4 * rows * cols for rows, cols in sizes[:2])
    rows, cols = sizes[2]
    data[{"image": start + 5, "mask": start + 3 * rows * cols, "checksum": len(data) - 4 * (len(sizes) - 2)}[part]] ^= 1
    path.write_bytes(data)
    found = with_cache(images, "disk", folder)
    for read in (found.image, found.mask, found.image):
        with pytest.raises(DataError, match=r"image 2 in .*pixels is wrong.*Remove the file"):
            read(2)
    np.testing.assert_array_equal(found.image(1), images.image(1))
    path.unlink()
    check_equal(with_cache(images, "disk", folder), images)


def test_sizes_that_were_exchanged_are_noticed(images, folder):
    """The file is as long as before, and each image as large: only rows are columns."""
    with_cache(images, "disk", folder)
    path = pixels_of(folder)
    rows, cols = images.size(0)
    data = path.read_bytes().replace(f"[{rows}, {cols}]".encode(), f"[{cols}, {rows}]".encode(), 1)
    path.write_bytes(data)
    if rows != cols:
        with pytest.raises(DataError, match="the checksum of image"):
            with_cache(images, "disk", folder).image(0)


def test_a_image_is_checked_once_in_a_process(images, folder, monkeypatch):
    found, sums = with_cache(images, "disk", folder), []
    counted = cache._sum
    monkeypatch.setattr(cache, "_sum", lambda *args: sums.append(1) or counted(*args))
    for _ in range(3):
        found.image(0), found.mask(0)
    assert len(sums) == 1
