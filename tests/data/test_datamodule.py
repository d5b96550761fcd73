"""The data module: composition of batches, loader workers, and checks before training."""

import hashlib
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fcnlab.data import DataError, DataModule, datamodule, loader_workers, open_voc
from fcnlab.data.cache import CachedDataset
from fcnlab.data.duplicates import find_duplicates
from fcnlab.data.image_files import UnreadableFile, read_image
from fcnlab.data.loader_workers import readers
from fcnlab.data.samplers import TrainingBatches
from fcnlab.data.samples import collate
from fcnlab.data.transforms import FILL, none, standard, strong
from fcnlab.metrics.confusion import ImageConfusions
from fcnlab.models import FCN
from fcnlab.models.tiny import Tiny
from fcnlab.training.segmenter import class_map

pytestmark = [
    # Python 3.12 and later warn of forks if threads exist; torch's loaders fork workers on Linux.
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
]


@pytest.fixture
def make(voc_root):
    """A data module of the tiny VOC."""

    def build(**changes) -> DataModule:
        settings = {
            "dataset": open_voc,
            "root": str(voc_root),
            "train_list": "train",
            "val_list": "val",
            "num_classes": 21,
            "augment": standard,
            "crop_size": 16,
            "batch_size": 2,
            "num_workers": 0,
            "cache_dir": str(voc_root / "cache"),
        }
        return DataModule(**settings | changes)

    return build


def on_rank(data: DataModule, rank: int, world_size: int, started=0, processed=0, done=0) -> DataModule:
    """Simulate a trainer's rank: one of several processes, or a process that resumes."""
    epochs = SimpleNamespace(current=SimpleNamespace(started=started, processed=processed))
    batches = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(processed=done)))
    loop = SimpleNamespace(epoch_progress=epochs, epoch_loop=batches)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=world_size, fit_loop=loop, accumulate_grad_batches=1, strategy=strategy
    )
    return data


def epochs(data: DataModule, count: int = 1) -> list[list[dict[str, torch.Tensor]]]:
    """Return the batches of some epochs as Lightning requests them: one loader, and set_epoch for each."""
    loader, batches = data.train_dataloader(), []
    for epoch in range(count):
        loader.batch_sampler.set_epoch(epoch)
        batches.append(list(loader))
    return batches


def as_bytes(batch: dict[str, torch.Tensor]) -> bytes:
    return b"".join(batch[key].numpy().tobytes() for key in sorted(batch))


def indices(loader) -> list[int]:
    return [int(index) for batch in loader for index in batch["index"]]


def test_batches_are_uint8(make):
    ((batch, *_),) = epochs(make())
    kinds = {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()}
    byte, whole = torch.uint8, torch.int64
    assert kinds == {"image": (byte, (2, 3, 16, 16)), "mask": (byte, (2, 16, 16)), "index": (whole, (2,))}


def test_batches_depend_on_seed_and_epoch_only(make):
    first = [[as_bytes(batch) for batch in epoch] for epoch in epochs(make(), 2)]
    for workers in (0, 1, 4):
        assert [[as_bytes(batch) for batch in epoch] for epoch in epochs(make(num_workers=workers), 2)] == first
    assert not set(first[0]) & set(first[1])
    assert not set(first[0]) & {as_bytes(batch) for batch in epochs(make(seed=1))[0]}


def test_epochs_differ_in_order(make):
    first, second = ([batch["index"].tolist() for batch in epoch] for epoch in epochs(make(augment=none), 2))
    assert first != second and sorted(chain(*first)) == sorted(chain(*second)) == list(range(8))


def test_workers_draw_different_augmentations(make, voc_root):
    """Forked workers copy albumentations' random state: two workers, and all epochs, would draw the same."""
    folder = voc_root / "VOCdevkit" / "VOC2012"
    for kind in ("JPEGImages", "SegmentationClass"):
        first, *others = sorted((folder / kind).glob("t*"))
        for path in others:
            path.write_bytes(first.read_bytes())
    drawn = epochs(make(batch_size=1, num_workers=2), 2)
    assert len({batch["image"].numpy().tobytes() for epoch in drawn for batch in epoch}) == 2 * 8


def test_loading_does_not_change_the_global_random_state(make):
    state = torch.get_rng_state()
    epochs(make())
    list(make().val_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def global_batches(count: int, batch_size: int, world_size: int, epoch: int = 0, accumulate: int = 1) -> list[set[int]]:
    """Return the images of all ranks for each global batch."""
    ranks = [TrainingBatches(count, batch_size, 3, rank, world_size, accumulate) for rank in range(world_size)]
    for rank in ranks:
        rank.set_epoch(epoch)
    shares = [[[index for _, index in batch] for batch in rank] for rank in ranks]
    assert all(len(share) == len(ranks[0]) for share in shares)
    together = [set(chain(*batches)) for batches in zip(*shares, strict=True)]
    return [set.union(*together[first : first + accumulate]) for first in range(0, len(together), accumulate)]


@pytest.mark.parametrize("count", [20, 23])
@pytest.mark.parametrize("epoch", [0, 5])
def test_global_batches_do_not_depend_on_the_number_of_devices(count, epoch):
    alone = global_batches(count, 4, 1, epoch)
    assert alone == global_batches(count, 2, 2, epoch) == global_batches(count, 1, 4, epoch)
    assert alone == global_batches(count, 2, 1, epoch, accumulate=2) == global_batches(count, 1, 2, epoch, accumulate=2)
    assert Counter(map(len, alone)) == {4: 5} and len(set.union(*alone)) == 20  # no image twice


def test_images_dropped_from_an_incomplete_batch_occur_in_later_epochs():
    seen = [set.union(*global_batches(5, 2, 1, epoch)) for epoch in range(20)]
    assert {len(epoch) for epoch in seen} == {4} and set.union(*seen) == set(range(5))


def test_sample_keys_contain_the_epoch():
    batches = TrainingBatches(4, 2, seed=0)
    batches.set_epoch(7)
    assert {epoch for batch in batches for epoch, _ in batch} == {7}


def test_resumed_batches_are_the_remaining_batches_of_the_epoch():
    whole, resumed = TrainingBatches(10, 2, 0), TrainingBatches(10, 2, 0)
    whole.set_epoch(3)
    resumed.resume(3, 2)
    assert list(resumed) == list(whole)[2:]
    resumed.set_epoch(3)  # Lightning calls it again before it uses the epoch
    assert list(resumed) == list(whole)[2:]
    for batches in (whole, resumed):
        batches.set_epoch(4)
    assert list(resumed) == list(whole) and len(resumed) == 5


@pytest.mark.parametrize(
    ("progress", "epoch", "skip"),
    [
        ({}, 0, 0),
        ({"started": 1, "done": 3}, 0, 3),
        ({"started": 1, "done": 4}, 1, 0),  # all 4 batches of the epoch are done
        ({"started": 2, "processed": 2, "done": 4}, 2, 0),  # saved at the epoch's end
        ({"started": 3, "processed": 2, "done": 1}, 2, 1),
    ],
)
def test_loader_resumes_at_the_position_of_the_checkpoint(make, progress, epoch, skip):
    batches = on_rank(make(), 0, 1, **progress).train_dataloader().batch_sampler
    assert (batches.epoch, batches.skip) == (epoch, skip)


def test_loader_takes_the_images_of_its_rank(make):
    shares = [indices(on_rank(make(augment=none), rank, 2).train_dataloader()) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == 4 and sorted(chain(*shares)) == list(range(8))


@pytest.mark.parametrize(
    ("batch_size", "world_size", "message"),
    [(9, 1, "data.batch_size=9 is larger than the 8"), (3, 3, "data.batch_size=3 on each of 3 devices is larger than")],
)
def test_a_batch_larger_than_the_data_set_is_an_error(make, batch_size, world_size, message):
    with pytest.raises(DataError, match=message):
        on_rank(make(batch_size=batch_size), 0, world_size).train_dataloader()


@pytest.mark.parametrize("world_size", [1, 3, 7])
def test_evaluation_counts_each_image_once(make, world_size):
    """This also holds if some processes get one image fewer, or none."""
    shares = [indices(on_rank(make(), rank, world_size).val_dataloader()) for rank in range(world_size)]
    assert sorted(chain(*shares)) == list(range(5))


def test_evaluation_reads_whole_images_one_by_one(make):
    data = make(num_workers=2)
    for batch in data.val_dataloader():
        index = int(batch["index"])
        np.testing.assert_array_equal(batch["image"][0].permute(1, 2, 0), data.split("val").image(index))
        np.testing.assert_array_equal(batch["mask"][0], data.split("val").mask(index))


@pytest.mark.parametrize(("test_list", "title"), [(None, "VOC2012 val"), ("train", "VOC2012 train")])
def test_test_list_defaults_to_val(make, test_list, title):
    data = make(test_list=test_list)
    for loader in (data.test_dataloader(), data.predict_dataloader()):
        assert loader.dataset.dataset.title == title


@pytest.mark.parametrize("cache", ["ram", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", [standard, strong, none])
def test_a_cache_does_not_change_batches(make, tmp_path, cache, workers, augment):
    plain, cached = (
        make(augment=augment),
        make(augment=augment, cache=cache, cache_dir=str(tmp_path / "cache"), num_workers=workers),
    )
    for expected, actual in zip(epochs(plain)[0], epochs(cached)[0], strict=True):
        assert as_bytes(expected) == as_bytes(actual)
    for expected, actual in zip(plain.val_dataloader(), cached.val_dataloader(), strict=True):
        assert as_bytes(expected) == as_bytes(actual)
    assert isinstance(cached.decoded("train"), CachedDataset) and cached.decoded("test") is cached.decoded("val")


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_predict_needs_no_masks_with_any_cache(make, voc_root, tmp_path, cache):
    """VOC's test set has no masks."""
    shutil.rmtree(voc_root / "VOCdevkit/VOC2012/SegmentationClass")
    data = make(cache=cache, cache_dir=str(tmp_path / "cache"))
    assert indices(data.predict_dataloader()) == list(range(5))


SIZES = [(40, 50), (50, 40), (40, 50), (40, 50), (32, 32), (50, 40), (40, 50)]


@pytest.fixture
def make_repeated_sizes(make, voc_root, save_pair):
    """The tiny VOC, where several images of val have the same size."""
    folder = voc_root / "VOCdevkit" / "VOC2012"
    names = [f"s{place}" for place in range(len(SIZES))]
    (folder / "ImageSets/Segmentation/val.txt").write_text("\n".join(names))
    for name, (rows, cols) in zip(names, SIZES, strict=True):
        save_pair(folder / "JPEGImages" / f"{name}.jpg", folder / "SegmentationClass" / f"{name}.png", rows, cols)
    return make


@pytest.mark.parametrize("cache", ["none", "ram"])
@pytest.mark.parametrize("size", [1, 2, 3, 9])
@pytest.mark.parametrize("world_size", [1, 2, 9])
def test_images_evaluated_in_one_batch_have_the_same_size(make_repeated_sizes, size, world_size, cache):
    data, seen = make_repeated_sizes(eval_batch_size=size, cache=cache), []
    for rank in range(world_size):
        shapes = []
        for batch in on_rank(data, rank, world_size).val_dataloader():
            chosen = batch["index"].tolist()
            seen += chosen
            assert len(chosen) <= size and {SIZES[index] for index in chosen} == {tuple(batch["mask"].shape[1:])}
            shapes.append((len(chosen), SIZES[chosen[0]]))
        share = Counter(SIZES[rank::world_size])
        assert Counter(shape for _, shape in shapes) == {shape: -(-count // size) for shape, count in share.items()}
    assert sorted(seen) == list(range(len(SIZES)))


def test_eval_batch_size_does_not_change_confusion_matrices(make_repeated_sizes):
    """Except for pixels whose two best scores differ by rounding only."""
    torch.manual_seed(0)
    model, matrices = FCN(Tiny(width=4), 21, (32, 16, 8)).eval(), []
    for head in model.heads.values():
        torch.nn.init.normal_(head.weight)
    for size in (1, 3):
        confusions = ImageConfusions(len(SIZES), 21)
        for batch in make_repeated_sizes(eval_batch_size=size).val_dataloader():
            confusions.update(class_map(model(batch["image"] / 255)), batch["mask"], batch["index"])
        matrices.append(confusions.compute()[1])
    single, several = matrices
    assert torch.equal(single.sum((1, 2)), several.sum((1, 2))) and (single - several).abs().sum() <= 4
    assert (
        len({tuple(matrix.sum(0).tolist()) for matrix in single}) > 1
    )  # the model does not give all images the same scores


@pytest.mark.parametrize(
    ("prefetch_factor", "workers", "megabytes", "expected"),
    [
        ("auto", 0, 1, (0, None)),
        (3, 0, 1, (0, None)),
        (3, 8, 999, (0, None)),
        ("auto", 4, 1, (4, 4)),
        ("auto", 4, 3, (4, 2)),
        ("auto", 8, 4, (6, 1)),
        ("auto", 8, 16, (0, None)),
        (3, 4, 2, (4, 3)),
        (3, 8, 2, (4, 3)),
    ],
)
def test_workers_and_their_batches_use_at_most_half_of_the_shared_memory(
    monkeypatch, tmp_path, prefetch_factor, workers, megabytes, expected
):
    monkeypatch.setattr(loader_workers, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(loader_workers.shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * 10**6))
    count, ahead, lack = readers(workers, prefetch_factor, megabytes * 10**6)
    assert (count, ahead) == expected and bool(lack) == (count < workers) == ("MiB free" in lack)
    if count:  # the main process holds two more
        assert (count * ahead + 2) * megabytes <= 32


@pytest.mark.parametrize(
    ("free", "prefetch_factor", "workers", "expected"),
    [
        (1004, "auto", 8, (8, 4)),  # of 1,024, the usual limit
        (1004, "auto", 64, (64, 1)),
        (236, "auto", 8, (8, 3)),
        (100, "auto", 8, (5, 1)),
        (42, "auto", 4, (1, 1)),
        (41, "auto", 4, (0, None)),
        (0, 2, 4, (0, None)),
        (60, 3, 4, (1, 3)),
    ],
)
def test_workers_and_their_batches_use_at_most_half_of_the_open_files_limit(
    monkeypatch, free, prefetch_factor, workers, expected
):
    """Counted by hand: four files per worker, three per batch (and two more batches), and eight others."""
    monkeypatch.setattr(loader_workers, "free_descriptors", lambda: free)
    monkeypatch.setattr(loader_workers, "shared_memory", lambda: 2**40)
    count, ahead, lack = readers(workers, prefetch_factor, 1000)
    assert (count, ahead) == expected
    assert 2 * (4 * count + 3 * (count * (ahead or 0) + 2) + 8) <= free or count == 0
    assert ("ulimit -n" in lack) == (f"may open only {free} more files" in lack) == (count < workers)


@pytest.mark.parametrize("missing", ["semaphore", "memory"])
def test_without_shared_memory_no_workers_are_started(make, monkeypatch, missing):
    """/dev/shm is missing or read-only."""

    def absent(*words):
        raise FileNotFoundError(2, "No such file or directory")

    def read_only(tensor):
        raise RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Read-only file system")

    if missing == "semaphore":
        monkeypatch.setattr(loader_workers.multiprocessing, "Lock", absent)
    else:
        monkeypatch.setattr(torch.Tensor, "share_memory_", read_only)
    loader_workers.why_workers_are_unavailable.cache_clear()
    try:
        limits = readers(4, "auto", 1)
        output = "No such file" if missing == "semaphore" else "Read-only file system"
        assert limits[:2] == (0, None) and output in limits.lack and "/dev/shm" in limits.lack
        assert readers(0, "auto", 1) == (0, None, "")  # no workers were requested
        data = make(num_workers=4)
        loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader())
        assert [loader.num_workers for loader in loaders] == [0] * 4
    finally:
        loader_workers.why_workers_are_unavailable.cache_clear()


def test_free_descriptors_are_counted(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (500, 4096))
    before = loader_workers.free_descriptors()
    with Path("/dev/null").open(), Path("/dev/null").open():
        assert before - loader_workers.free_descriptors() == 2
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert loader_workers.free_descriptors() == sys.maxsize


def test_a_batch_that_cannot_be_sent_is_an_error_without_waiting(make, monkeypatch):
    """The sending thread of the worker fails, for example at the limit of open files."""

    def too_many(storage):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(multiprocessing.reduction, "DupFd", too_many)
    with pytest.raises(DataError, match=r"^a worker cannot transfer a batch \(.*Too many open files\).*ulimit -n"):
        next(iter(make(num_workers=1).train_dataloader()))


def test_loaders_start_no_more_workers_than_fit_into_shared_memory(make, monkeypatch, tmp_path):
    """The largest image counts: images of val have at most 40x60 pixels, and are sent with their masks."""
    free = 2 * 3 * 4 * 2 * 32**2  # half of it: three batches of two crops
    monkeypatch.setattr(loader_workers, "shared_memory", lambda: free)
    data = make(num_workers=4, batch_size=2, crop_size=32)
    assert data.train_dataloader().num_workers == 1
    sizes = [data.split("val").size(index) for index in range(len(data.split("val")))]
    area = max(rows for rows, _ in sizes) * max(cols for _, cols in sizes)
    monkeypatch.setattr(loader_workers, "shared_memory", lambda: 2 * 4 * 4 * area)
    assert data.val_dataloader().num_workers == data.test_dataloader().num_workers == 2
    assert make(num_workers=4).readers("val", processes=2).workers == 0


def test_a_worker_without_shared_memory_explains_what_to_do(make, monkeypatch):
    def full(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(
        DataError, match=r"cannot transfer a batch of .* MiB .*No space left.*data\.num_workers=0"
    ) as error:
        next(iter(make(num_workers=1).train_dataloader()))
    assert "Traceback" not in str(error.value) and str(error.value).startswith("a worker cannot")


def test_prefetch_factor_is_used_by_all_loaders(make):
    data = make(num_workers=2, prefetch_factor=3)
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()]
    assert {loader.prefetch_factor for loader in loaders} == {3}
    assert all(loader.persistent_workers for loader in loaders) and not any(loader.pin_memory for loader in loaders)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_is_pinned_for_a_gpu_only(make, device):
    data = on_rank(make(), 0, 1)
    data.trainer.strategy.root_device = torch.device(device)
    assert data.train_dataloader().pin_memory == data.val_dataloader().pin_memory == (device == "cuda")


@pytest.mark.parametrize("name", ["eval_batch_size", "prefetch_factor"])
def test_counts_below_one_are_errors(make, name):
    with pytest.raises(DataError, match=f"data.{name}=0 must be at least 1"):
        make(**{name: 0})


def test_collate_pads_with_the_fill_colour_and_ignored_pixels():
    shapes = [(2, 5), (4, 3)]
    samples = [
        {"image": torch.full((3, *shape), 9 + place), "mask": torch.full(shape, place), "index": torch.tensor(place)}
        for place, shape in enumerate(shapes)
    ]
    batch = collate(samples)
    assert batch["image"].shape == (2, 3, 4, 5) and batch["index"].tolist() == [0, 1]
    for place, (rows, cols) in enumerate(shapes):
        image, mask = batch["image"][place].clone(), batch["mask"][place].clone()
        assert (image[:, :rows, :cols] == 9 + place).all() and (mask[:rows, :cols] == place).all()
        image[:, :rows, :cols], mask[:rows, :cols] = torch.tensor(FILL).view(3, 1, 1), 255
        assert (mask == 255).all() and (image == torch.tensor(FILL).view(3, 1, 1)).all()


def test_images_without_augmentation_are_padded_to_the_largest(make):
    data = make(augment=none)
    for batch in epochs(data)[0]:
        sizes = [data.split("train").mask(int(index)).shape for index in batch["index"]]
        assert batch["mask"].shape[1:] == tuple(np.max(sizes, axis=0))


def test_only_requested_splits_are_opened(make, voc_root):
    (voc_root / "VOCdevkit/VOC2012/ImageSets/Segmentation/val.txt").unlink()
    make().check("train")
    with pytest.raises(DataError, match="no list 'val'"):
        make().check("train", "val")


def test_a_split_is_opened_once(make):
    opened = []

    def count(root, split):
        opened.append(split)
        return open_voc(root, split)

    data = make(dataset=count)
    data.check("train", "val", "test")
    epochs(data)
    data.val_dataloader()
    assert opened == ["train", "val"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_classes": 19}, "VOC2012 train has 21 classes, but the model has 19: set data.num_classes"),
        ({"batch_size": 9}, "data.batch_size=9 is larger than the 8 training images: lower it"),
        ({"train_list": "nothing"}, "no list 'nothing'.*data.train_list"),
    ],
)
def test_check_reports_invalid_settings(make, changes, message):
    with pytest.raises(DataError, match=message):
        make(**changes).check("train", "val")


@pytest.mark.parametrize("splits", [("train", "val"), ("val", "train")])
def test_one_list_for_train_and_val_is_checked_for_both(make, splits):
    """For overfitting on purpose: images must be large enough for the model, and enough for a batch."""
    with pytest.raises(DataError, match="25 are required on each side"):
        make(val_list="train", allow_overlap=True).check(*splits, min_size=25)
    with pytest.raises(DataError, match=r"data\.batch_size=9"):
        make(val_list="train", batch_size=9, allow_overlap=True).check(*splits)


@pytest.mark.parametrize(
    ("changes", "splits", "message"),
    [
        (
            {"val_list": "trainaug"},
            ("train", "val"),
            r"8 of 10 images of VOC2012 trainaug .*=train \(t0, t1, t2, …",
        ),
        (
            {"test_list": "train"},
            ("val", "test", "train"),
            r"8 of 8 .*data\.test_list\), or set data\.allow_overlap=true",
        ),
    ],
)
def test_evaluation_on_training_images_is_refused(changes, splits, message, make):
    with pytest.raises(DataError, match=message):
        make(**changes).check(*splits)
    make(**changes, allow_overlap=True).check(*splits)


def test_overlap_compares_files_not_names(make, voc_root):
    """Equal names in two folders are two images; a link to an image is the same image."""
    images = voc_root / "VOCdevkit/VOC2012/JPEGImages"

    def open_with_names_of_train(root, split):
        dataset = open_voc(root, split)
        return replace(dataset, names=tuple(f"t{index}" for index in range(len(dataset))))

    make(dataset=open_with_names_of_train).check("train", "val")
    images.rename(images.with_name("elsewhere"))
    images.symlink_to("elsewhere")
    (images / "v2.jpg").unlink()
    (images / "v2.jpg").symlink_to(images / "t3.jpg")
    with pytest.raises(DataError, match=r"1 of 5 images of VOC2012 val are also in .*\(\S+v2\.jpg is \S+t3\.jpg\)"):
        make().check("train", "val")


def test_files_larger_than_images_are_not_read(tmp_path, monkeypatch):
    """Regression: two sparse files of a terabyte were compared for hours."""
    images = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for image in images:
        image.write_bytes(b"\xff\xd8\xff")
        os.truncate(image, 1 << 40)
    with pytest.raises(UnreadableFile, match="more than 1,073,741,824 bytes"):
        read_image(images[0])
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was read"))
    assert find_duplicates(images[:1], images[1:]) == []


def test_a_copy_of_an_image_is_the_same_image(make, voc_root):
    """Another image of the same size in bytes is not a copy, and empty files are reported as broken."""
    images = voc_root / "VOCdevkit/VOC2012/JPEGImages"
    train = images / "t3.jpg"
    for name, content in {"v0": train.read_bytes()[:-3] + b"\0\xff\xd9", "v1": b"", "t1": b""}.items():
        (images / f"{name}.jpg").write_bytes(content)
    assert find_duplicates(make().split("val").images, make().split("train").images) == []
    shutil.copy(train, images / "v2.jpg")
    with pytest.raises(
        DataError, match=r"1 of 5 images of VOC2012 val are also in data\.train_list=train.*v2\.jpg is \S+t3\.jpg\)"
    ):
        make().check("train", "val")


def test_masks_are_not_required_without_ground_truth(make, voc_root):
    shutil.rmtree(voc_root / "VOCdevkit/VOC2012/SegmentationClass")
    make().check("test", target=False)
    with pytest.raises(DataError, match=r"VOC2012 val has no masks \(such as .*v0\.png\).*submission=FILE"):
        make().check("test")


@pytest.mark.parametrize(("augment", "fits"), [(standard, True), (none, False)])
def test_small_images_are_allowed_with_crops_only(make, voc_root, augment, fits):
    Image.new("RGB", (9, 9)).save(voc_root / "VOCdevkit/VOC2012/JPEGImages/t0.jpg")
    Image.new("L", (9, 9)).save(voc_root / "VOCdevkit/VOC2012/SegmentationClass/t0.png")
    if fits:
        make(augment=augment).check("train", min_size=16)
    else:
        with pytest.raises(DataError, match=r"t0\.jpg has 9x9 pixels, but at least 16 are required on each side"):
            make(augment=augment).check("train", min_size=16)


def test_default_workers_are_at_most_eight(make):
    assert 1 <= make(num_workers="auto").num_workers <= 8


def test_a_batch_moves_to_its_device_except_for_its_indices(make):
    """On other devices than GPUs, Lightning's own transfer is used; on a CPU nothing is copied."""
    (batch, *_), data = epochs(make())[0], make()
    same = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert same.keys() == batch.keys() and all(same[key] is batch[key] for key in batch)
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["image"].is_meta and moved["mask"].is_meta and moved["index"] is batch["index"]
    assert not batch["image"].is_meta


class FakeGpuTensor:
    """A fake tensor that records its operations and their stream."""

    def __init__(self, name: str, events: list[str], stream: list[str]):
        self.name, self.events, self.stream = name, events, stream

    def to(self, device: torch.device, non_blocking: bool) -> "FakeGpuTensor":
        self.events.append(f"{self.name} to {device} on {self.stream[-1]}, waiting: {not non_blocking}")
        return FakeGpuTensor(f"copy of {self.name}", self.events, self.stream)

    def record_stream(self, stream) -> None:
        self.events.append(f"{self.name} is kept for {stream.name}")


@pytest.mark.unchecked  # fakes, so that no GPU is needed
def test_a_copy_to_a_gpu_uses_its_own_stream(make, monkeypatch):
    """The order of calls is that of the CUDA guide for memory of one stream that another stream uses."""
    events, stream = [], ["work"]

    class Stream:
        def __init__(self, device):
            self.name = "copying" if device == torch.device("cuda", 1) else "of another device"

        def __enter__(self):
            stream.append(self.name)

        def __exit__(self, *error):
            stream.pop()

    work = SimpleNamespace(name="work", wait_stream=lambda stream: events.append(f"work waits for {stream.name}"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: work)
    datamodule._copying_stream.cache_clear()
    batch = {
        "image": FakeGpuTensor("image", events, stream),
        "mask": FakeGpuTensor("mask", events, stream),
        "index": torch.tensor([3]),
    }
    moved = make().transfer_batch_to_device(batch, torch.device("cuda", 1), 0)
    datamodule._copying_stream.cache_clear()
    assert events == [
        "image to cuda:1 on copying, waiting: False",
        "mask to cuda:1 on copying, waiting: False",
        "work waits for copying",
        "copy of image is kept for work",
        "copy of mask is kept for work",
    ]
    assert [moved[key].name for key in ("image", "mask")] == ["copy of image", "copy of mask"]
    assert moved["index"] is batch["index"] and stream == ["work"]


def test_images_too_small_for_the_augmentation_are_an_error(make, voc_root):
    Image.new("RGB", (9, 1)).save(voc_root / "VOCdevkit/VOC2012/JPEGImages/t0.jpg")
    Image.new("L", (9, 1)).save(voc_root / "VOCdevkit/VOC2012/SegmentationClass/t0.png")
    with pytest.raises(DataError, match=r"t0\.jpg has 1x9 pixels, but at least 2 are required"):
        make(augment=standard).check("train")
    make(augment=none).check("train")


@pytest.mark.parametrize("name", ["train", "val", "predict"])
def test_more_workers_than_cores_are_allowed(make, monkeypatch, name):
    """torch warns when a loader is created and when it is read, and warnings are errors here."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    loader = getattr(on_rank(make(num_workers=2), 0, 1), f"{name}_dataloader")()
    assert loader.num_workers == 2 and next(iter(loader))


def test_fcnlab_creates_no_plain_dataloader(repository):
    calls = [path.name for path in (repository / "src").rglob("*.py") if " DataLoader(" in path.read_text()]
    assert not calls
