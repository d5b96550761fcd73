"""A cache returns the files' values, is created once, notices every change, and is never partial."""

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
forks = pytest.mark.filterwarnings(
    "ignore:.*use of fork:DeprecationWarning"
)  # Python 3.12 and later warn if threads exist


@pytest.fixture
def images(voc_root) -> SegmentationDataset:
    """Ten images of ten sizes."""
    return open_voc(str(voc_root), "trainaug")


@pytest.fixture
def decoded(monkeypatch) -> list[int]:
    """Record which images are decoded from their files from now on."""
    indices, read = [], SegmentationDataset.image
    monkeypatch.setattr(SegmentationDataset, "image", lambda self, index: indices.append(index) or read(self, index))
    return indices


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


def check_equal(cached: SegmentationDataset, target: SegmentationDataset) -> None:
    assert (cached.title, cached.names, cached.classes, len(cached)) == (
        target.title,
        target.names,
        target.classes,
        len(target),
    )
    for index in range(len(target)):
        np.testing.assert_array_equal(cached.image(index), target.image(index), strict=True)
        np.testing.assert_array_equal(cached.mask(index), target.mask(index), strict=True)
        assert cached.size(index) == target.size(index) == target.mask(index).shape


def pixels_of(folder: Path) -> Path:
    (path,) = folder.glob("*.pixels")
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_cached_values_equal_the_files(images, folder, kind):
    check_equal(with_cache(images, kind, folder), images)


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_pixels_and_classes_follow_the_data_set(voc_root, folder, kind):
    """Values are cached after checks and mapping: other settings for the same files give another cache."""
    target = open_voc(str(voc_root), "val")
    for dataset in (target, replace(target, ignore_index=20, ids={7: 0, 0: 1, 255: 255}, classes=("a", "b"))):
        check_equal(with_cache(dataset, kind, folder), dataset)
    assert (with_cache(dataset, kind, folder).mask(0) == 255).sum() > (target.mask(0) == 255).sum()


@pytest.mark.parametrize("kind", KINDS)
def test_class_colours_give_another_cache(voc_root, folder, kind):
    plain = open_voc(str(voc_root), "val")
    greys = {(0, 0, 0): 2, (7, 7, 7): 1, (20, 20, 20): 0, (255, 255, 255): 255}
    for dataset in (plain, replace(plain, colours=greys), replace(plain, colours={**greys, (7, 7, 7): 255})):
        check_equal(with_cache(dataset, kind, folder), dataset)
    assert not (dataset.mask(0) == plain.mask(0)).all()


def test_a_cache_of_an_older_layout_is_recreated(images, folder, monkeypatch):
    """Layout 1 ignored palettes and had no mapping of ids."""
    monkeypatch.setattr(cache, "LAYOUT", 1)
    with_cache(images, "disk", folder)
    monkeypatch.undo()
    made = pixels_of(folder).stat().st_mtime_ns
    check_equal(with_cache(images, "disk", folder), images)
    assert pixels_of(folder).stat().st_mtime_ns > made


def test_skipped_files_do_not_change_the_cache(images, folder, decoded):
    with_cache(images, "disk", folder)
    with_cache(replace(images, left_out=(folder / "a.JPG",)), "disk", folder)
    assert len(decoded) == len(images)


class Inverted(SegmentationDataset):
    """Read the same files in another way, without a field that shows it."""

    def image(self, index):
        return 255 - super().image(index)


def test_another_dataset_class_gives_another_cache(images, folder):
    inverted = Inverted(**vars(images))
    for target in (images, inverted, images):
        check_equal(with_cache(target, "disk", folder), target)


@pytest.mark.parametrize("kind", KINDS)
def test_images_without_masks_are_cached(images, folder, kind):
    cached = with_cache(replace(images, masks=()), kind, folder)
    for index in range(len(images)):
        np.testing.assert_array_equal(cached.image(index), images.image(index))


@pytest.mark.parametrize("kind", KINDS)
def test_cached_images_are_not_decoded_again(images, folder, decoded, kind):
    cached = with_cache(images, kind, folder)
    assert sorted(decoded) == list(range(10))
    for index in (0, 3, 3):
        cached.image(index)
    assert len(decoded) == 10


def test_without_a_cache_the_dataset_is_returned_unchanged(images, folder):
    assert with_cache(images, "none", folder) is images and not folder.exists()


def test_the_next_run_reuses_the_cache(images, folder, decoded):
    with_cache(images, "disk", folder)
    check_equal(with_cache(images, "disk", folder), images)
    assert len(decoded) == 10 + 10 and len(list(folder.glob("*.pixels"))) == 1  # check_equal decodes 10


def test_an_existing_cache_in_a_read_only_folder_is_used(images, folder, monkeypatch):
    with_cache(images, "disk", folder)
    monkeypatch.setattr(Path, "mkdir", lambda *args, **kwargs: pytest.fail("written to"))
    check_equal(with_cache(images, "disk", folder), images)


@pytest.mark.parametrize("kind", KINDS)
def test_cached_images_are_read_only(images, folder, kind):
    """Otherwise an augmentation in place would change the image for all later epochs."""
    cached = with_cache(images, kind, folder)
    for part in (cached.image(1), cached.mask(1)):
        with pytest.raises(ValueError, match="read-only"):
            part[0] = 0


def rewrite(path: Path, change) -> None:
    """Change a file's content but not its modification time."""
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
def test_a_changed_file_recreates_the_cache(images, folder, kind):
    with_cache(images, "disk", folder)
    time.sleep(0.02)  # file times have a resolution of a few milliseconds
    CHANGES[kind](images)
    check_equal(with_cache(images, "disk", folder), images)
    assert len(list(folder.glob("*.pixels"))) == 1  # the old cache is removed


def test_another_list_gives_another_cache(images, folder):
    half = replace(images, names=images.names[:5], images=images.images[:5], masks=images.masks[:5])
    for part in (images, half, images):
        check_equal(with_cache(part, "disk", folder), part)
    assert len(list(folder.glob("*.pixels"))) == 2


def test_a_newer_decoder_recreates_the_cache(images, folder, decoded, monkeypatch):
    with_cache(images, "disk", folder)
    monkeypatch.setattr(cache, "PIL", SimpleNamespace(__version__="99"))
    with_cache(images, "disk", folder)
    assert len(decoded) == 20


def test_a_truncated_or_damaged_cache_is_recreated(images, folder, decoded):
    with_cache(images, "disk", folder)
    path = pixels_of(folder)
    whole = path.read_bytes()
    head = whole.index(b"\n") + 1
    for length in (0, 1, head - 1, head, head + 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with_cache(images, "disk", folder)
        assert path.read_bytes() == whole
    for content in (b"\n", b"null\n", b"{}\n", b"\xff" * 99, whole + b"x"):
        path.write_bytes(content)
        with_cache(images, "disk", folder)
        assert path.read_bytes() == whole
    assert len(decoded) == 10 * 13


@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_a_full_disk_leaves_no_cache(images, folder, share):
    """A limit on the file size simulates it: the system refuses to write in the same way."""
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


def test_too_little_space_is_reported_before_decoding(images, folder, decoded, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(cache, "_free_memory", lambda: 1000)
    for kind in KINDS:
        with pytest.raises(WriteError, match=rf"data\.cache={kind}.* needs 0\.00 GB for VOC2012 trainaug"):
            with_cache(images, kind, folder)
    assert decoded == []


def test_free_memory_is_below_the_memory_of_the_machine():
    assert 2**20 < cache._free_memory() < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(("limit", "free"), [("50000\n", 50_000 - 49_000 + 30_000 + 8000), ("max\n", None)])
def test_the_page_cache_of_a_container_counts_as_free_memory(tmp_path, monkeypatch, limit, free):
    """Files that were read count as used memory, but the kernel frees it on demand."""
    stat = "anon 9000\nfile 40000\nshmem 2000\ninactive_anon 2000\ninactive_file 30000\nactive_file 8000\n"
    for name, text in {"max": limit, "current": "49000\n", "stat": stat}.items():
        (tmp_path / f"memory.{name}").write_text(text)
    monkeypatch.setattr(cache, "CONTAINER", tmp_path)
    assert cache._free_memory() == free if free else cache._free_memory() > 2**20


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_image_is_named_and_leaves_no_cache(images, folder, kind):
    image = images.images[4]
    image.write_bytes(image.read_bytes()[:-30])
    with pytest.raises(DataError, match=rf"{image.name} is truncated or damaged"):
        with_cache(images, kind, folder)
    images.masks[4].unlink()
    with pytest.raises(DataError, match=rf"{images.masks[4].name} is missing"):
        with_cache(images, kind, folder)
    assert not list(folder.glob("*.p*"))


def test_an_image_and_mask_of_different_sizes_are_an_error(images, folder):
    Image.new("L", (3, 3)).save(images.masks[4])
    with pytest.raises(DataError, match=rf"{images.images[4].name} has .*, but its mask 3x3"):
        with_cache(images, "disk", folder)


def test_a_file_that_changes_while_it_is_cached_is_an_error(images, folder, monkeypatch):
    read = SegmentationDataset.mask

    def late(self, index):
        labels = read(self, index)
        if index == 9:
            os.utime(images.images[0], (1, 1))
        return labels

    monkeypatch.setattr(SegmentationDataset, "mask", late)
    with pytest.raises(DataError, match="changed while they were cached"):
        with_cache(images, "disk", folder)
    assert not list(folder.glob("*.p*"))


def start_process(work, *arguments) -> mp.Process:
    process = mp.get_context("fork").Process(target=work, args=arguments)
    process.start()
    return process


def make(dataset: SegmentationDataset, folder: Path, log: Path) -> None:
    """Create or open the cache; log each decoded image."""
    read = SegmentationDataset.image

    def logged(self, index):
        with log.open("a") as file:
            file.write(f"{index}\n")
        time.sleep(0.02)
        return read(self, index)

    SegmentationDataset.image = logged
    with_cache(dataset, "disk", folder)


@forks
def test_two_processes_at_once_create_one_cache(images, folder, tmp_path):
    log = tmp_path / "decoded"
    both = [start_process(make, images, folder, log) for _ in range(2)]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert sorted(map(int, log.read_text().split())) == list(range(10))
    check_equal(with_cache(images, "disk", folder), images)


@forks
def test_a_killed_process_leaves_no_valid_cache(images, folder, tmp_path):
    log = tmp_path / "decoded"
    process = start_process(make, images, folder, log)
    while not log.exists() or not log.read_text().count("\n"):
        time.sleep(0.002)
    process.kill()
    process.join()
    assert len(set(log.read_text().split())) < 10 and not list(folder.glob("*.pixels"))
    check_equal(with_cache(images, "disk", folder), images)
    assert not list(folder.glob("*.part"))


def test_a_waiting_process_uses_the_cache_of_the_other(images, folder, decoded):
    with_cache(images, "disk", folder)
    path = pixels_of(folder)
    made = path.read_bytes()
    path.unlink()
    caches = []
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waits = threading.Thread(target=lambda: caches.append(with_cache(images, "disk", folder)))
        waits.start()
        waits.join(0.2)
        assert waits.is_alive() and not caches
        path.write_bytes(made)
    waits.join()
    assert len(caches) == 1 and len(decoded) == 10


@pytest.mark.parametrize("kind", KINDS)
def test_a_pickled_dataset_opens_the_same_memory(images, folder, kind):
    """Spawned workers receive it pickled: its file name, not its pixels."""
    cached = with_cache(images, kind, folder)
    pickled = pickle.dumps(cached)
    assert len(pickled) < 20_000 < sum(4 * np.prod(cached.size(index)) for index in range(10))
    check_equal(pickle.loads(pickled), images)


def test_memory_is_released(images, folder):
    def memory_files() -> int:
        return sum("memfd:fcnlab" in str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.exists())

    before = memory_files()
    cached = with_cache(images, "ram", folder)
    assert memory_files() > before
    del cached
    assert memory_files() == before


@forks
def test_forked_workers_share_the_memory(images, folder):
    """A page that a worker changes through the file is changed for all processes."""
    cached = with_cache(images, "ram", folder)
    cached.image(3)  # compares the image with its checksum, once

    def scribble() -> None:
        with cached.store.path.open("r+b") as file:
            file.seek(cached.store._starts[3])
            file.write(bytes([1, 2, 3]))

    process = start_process(scribble)
    process.join()
    assert process.exitcode == 0 and cached.image(3)[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize("part", ["image", "mask", "checksum"])
def test_a_flipped_bit_is_an_error_at_the_first_read(images, folder, part):
    """The bit is in the third image; the test computes its position independently."""
    sizes = [images.size(index) for index in range(len(images))]
    with_cache(images, "disk", folder)
    path = pixels_of(folder)
    data = bytearray(path.read_bytes())
    start = data.index(b"\n") + 1 + sum(4 * rows * cols for rows, cols in sizes[:2])
    rows, cols = sizes[2]
    data[{"image": start + 5, "mask": start + 3 * rows * cols, "checksum": len(data) - 4 * (len(sizes) - 2)}[part]] ^= 1
    path.write_bytes(data)
    cached = with_cache(images, "disk", folder)
    for read in (cached.image, cached.mask, cached.image):
        with pytest.raises(DataError, match=r"image 2 in .*pixels is wrong.*Remove the file"):
            read(2)
    np.testing.assert_array_equal(cached.image(1), images.image(1))
    path.unlink()
    check_equal(with_cache(images, "disk", folder), images)


def test_exchanged_rows_and_columns_are_an_error(images, folder):
    """File and image have the same number of bytes: only rows and columns are exchanged."""
    with_cache(images, "disk", folder)
    path = pixels_of(folder)
    rows, cols = images.size(0)
    data = path.read_bytes().replace(f"[{rows}, {cols}]".encode(), f"[{cols}, {rows}]".encode(), 1)
    path.write_bytes(data)
    if rows != cols:
        with pytest.raises(DataError, match="the checksum of image"):
            with_cache(images, "disk", folder).image(0)


def test_an_image_is_checked_once_per_process(images, folder, monkeypatch):
    cached, sums = with_cache(images, "disk", folder), []
    counted = cache._sum
    monkeypatch.setattr(cache, "_sum", lambda *args: sums.append(1) or counted(*args))
    for _ in range(3):
        cached.image(0), cached.mask(0)
    assert len(sums) == 1
