"""Which images meet in a batch, how they are drawn, and what is checked before."""

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
    # Python 3.12 on warns of forks beside threads, which is how torch's loaders start workers on Linux.
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
    """As if Lightning had attached it to a trainer: one of several processes, or one that goes on after a stop."""
    epochs = SimpleNamespace(current=SimpleNamespace(started=started, processed=processed))
    batches = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(processed=done)))
    loop = SimpleNamespace(epoch_progress=epochs, epoch_loop=batches)
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=world_size, fit_loop=loop, accumulate_grad_batches=1, strategy=strategy
    )
    return data


def epochs(data: DataModule, count: int = 1) -> list[list[dict[str, torch.Tensor]]]:
    """The batches of some epochs, as Lightning asks for them: one loader, told of each epoch."""
    loader, found = data.train_dataloader(), []
    for epoch in range(count):
        loader.batch_sampler.set_epoch(epoch)
        found.append(list(loader))
    return found


def as_bytes(batch: dict[str, torch.Tensor]) -> bytes:
    return b"".join(batch[key].numpy().tobytes() for key in sorted(batch))


def indices(loader) -> list[int]:
    return [int(index) for batch in loader for index in batch["index"]]


def test_batches_travel_as_uint8(make):
    ((batch, *_),) = epochs(make())
    kinds = {key: (value.dtype, tuple(value.shape)) for key, value in batch.items()}
    byte, whole = torch.uint8, torch.int64
    assert kinds == {"image": (byte, (2, 3, 16, 16)), "mask": (byte, (2, 16, 16)), "index": (whole, (2,))}


def test_seed_epoch_and_nothing_else_make_the_batches(make):
    first = [[as_bytes(batch) for batch in epoch] for epoch in epochs(make(), 2)]
    for workers in (0, 1, 4):
        assert [[as_bytes(batch) for batch in epoch] for epoch in epochs(make(num_workers=workers), 2)] == first
    assert not set(first[0]) & set(first[1])
    assert not set(first[0]) & {as_bytes(batch) for batch in epochs(make(seed=1))[0]}


def test_epochs_differ_in_order(make):
    one, other = ([batch["index"].tolist() for batch in epoch] for epoch in epochs(make(augment=none), 2))
    assert one != other and sorted(chain(*one)) == sorted(chain(*other)) == list(range(8))


def test_workers_draw_different_augmentations(make, voc_root):
    """albumentations' own random state is copied by the fork: two workers would draw alike, and each epoch again."""
    folder = voc_root / "VOCdevkit" / "VOC2012"
    for kind in ("JPEGImages", "SegmentationClass"):
        first, *others = sorted((folder / kind).glob("t*"))
        for path in others:
            path.write_bytes(first.read_bytes())
    found = epochs(make(batch_size=1, num_workers=2), 2)
    assert len({batch["image"].numpy().tobytes() for epoch in found for batch in epoch}) == 2 * 8


def test_loading_leaves_the_runs_random_stream_alone(make):
    state = torch.get_rng_state()
    epochs(make())
    list(make().val_dataloader())
    assert torch.equal(torch.get_rng_state(), state)


def global_batches(count: int, batch_size: int, world_size: int, epoch: int = 0, accumulate: int = 1) -> list[set[int]]:
    """What the ranks take together, by global batch."""
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


def test_those_that_fill_no_batch_have_their_turn_later():
    seen = [set.union(*global_batches(5, 2, 1, epoch)) for epoch in range(20)]
    assert {len(epoch) for epoch in seen} == {4} and set.union(*seen) == set(range(5))


def test_keys_name_the_epoch():
    batches = TrainingBatches(4, 2, seed=0)
    batches.set_epoch(7)
    assert {epoch for batch in batches for epoch, _ in batch} == {7}


def test_resumed_batches_are_the_rest_of_the_epoch():
    whole, resumed = TrainingBatches(10, 2, 0), TrainingBatches(10, 2, 0)
    whole.set_epoch(3)
    resumed.resume(3, 2)
    assert list(resumed) == list(whole)[2:]
    resumed.set_epoch(3)  # Lightning says so again, before the epoch's next use
    assert list(resumed) == list(whole)[2:]
    for batches in (whole, resumed):
        batches.set_epoch(4)
    assert list(resumed) == list(whole) and len(resumed) == 5


@pytest.mark.parametrize(
    ("progress", "epoch", "skip"),
    [
        ({}, 0, 0),
        ({"started": 1, "done": 3}, 0, 3),
        ({"started": 1, "done": 4}, 1, 0),  # all 4 of the epoch are done
        ({"started": 2, "processed": 2, "done": 4}, 2, 0),  # saved at the epoch's end
        ({"started": 3, "processed": 2, "done": 1}, 2, 1),
    ],
)
def test_loader_goes_on_where_the_checkpoint_was(make, progress, epoch, skip):
    batches = on_rank(make(), 0, 1, **progress).train_dataloader().batch_sampler
    assert (batches.epoch, batches.skip) == (epoch, skip)


def test_loader_takes_its_ranks_share(make):
    shares = [indices(on_rank(make(augment=none), rank, 2).train_dataloader()) for rank in (0, 1)]
    assert len(shares[0]) == len(shares[1]) == 4 and sorted(chain(*shares)) == list(range(8))


@pytest.mark.parametrize(
    ("batch_size", "world_size", "message"),
    [(9, 1, "data.batch_size=9 is larger than the 8"), (3, 3, "data.batch_size=3 on each of 3 devices is larger than")],
)
def test_batch_larger_than_the_set(make, batch_size, world_size, message):
    with pytest.raises(DataError, match=message):
        on_rank(make(batch_size=batch_size), 0, world_size).train_dataloader()


@pytest.mark.parametrize("world_size", [1, 3, 7])
def test_evaluation_counts_each_image_once(make, world_size):
    """Also where some processes get one fewer, or none."""
    shares = [indices(on_rank(make(), rank, world_size).val_dataloader()) for rank in range(world_size)]
    assert sorted(chain(*shares)) == list(range(5))


def test_evaluation_takes_whole_images_one_by_one(make):
    data = make(num_workers=2)
    for batch in data.val_dataloader():
        index = int(batch["index"])
        np.testing.assert_array_equal(batch["image"][0].permute(1, 2, 0), data.split("val").image(index))
        np.testing.assert_array_equal(batch["mask"][0], data.split("val").mask(index))


@pytest.mark.parametrize(("test_list", "title"), [(None, "VOC2012 val"), ("train", "VOC2012 train")])
def test_test_list_is_val_unless_given(make, test_list, title):
    data = make(test_list=test_list)
    for loader in (data.test_dataloader(), data.predict_dataloader()):
        assert loader.dataset.images.title == title


@pytest.mark.parametrize("cache", ["ram", "disk"])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", [standard, strong, none])
def test_a_cache_changes_no_batch(make, tmp_path, cache, workers, augment):
    plain, cached = (
        make(augment=augment),
        make(augment=augment, cache=cache, cache_dir=str(tmp_path / "cache"), num_workers=workers),
    )
    for one, other in zip(epochs(plain)[0], epochs(cached)[0], strict=True):
        assert as_bytes(one) == as_bytes(other)
    for one, other in zip(plain.val_dataloader(), cached.val_dataloader(), strict=True):
        assert as_bytes(one) == as_bytes(other)
    assert isinstance(cached.decoded("train"), CachedDataset) and cached.decoded("test") is cached.decoded("val")


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_predicting_needs_no_masks_whatever_the_cache(make, voc_root, tmp_path, cache):
    """VOC's test set has none."""
    shutil.rmtree(voc_root / "VOCdevkit/VOC2012/SegmentationClass")
    data = make(cache=cache, cache_dir=str(tmp_path / "cache"))
    assert indices(data.predict_dataloader()) == list(range(5))


SIZES = [(40, 50), (50, 40), (40, 50), (40, 50), (32, 32), (50, 40), (40, 50)]


@pytest.fixture
def of_some_sizes(make, voc_root, save_pair):
    """The tiny VOC, where several images of val have one size."""
    folder = voc_root / "VOCdevkit" / "VOC2012"
    names = [f"s{place}" for place in range(len(SIZES))]
    (folder / "ImageSets/Segmentation/val.txt").write_text("\n".join(names))
    for name, (rows, cols) in zip(names, SIZES, strict=True):
        save_pair(folder / "JPEGImages" / f"{name}.jpg", folder / "SegmentationClass" / f"{name}.png", rows, cols)
    return make


@pytest.mark.parametrize("cache", ["none", "ram"])
@pytest.mark.parametrize("size", [1, 2, 3, 9])
@pytest.mark.parametrize("world_size", [1, 2, 9])
def test_images_that_are_evaluated_together_have_one_size(of_some_sizes, size, world_size, cache):
    data, seen = of_some_sizes(eval_batch_size=size, cache=cache), []
    for rank in range(world_size):
        shapes = []
        for batch in on_rank(data, rank, world_size).val_dataloader():
            found = batch["index"].tolist()
            seen += found
            assert len(found) <= size and {SIZES[index] for index in found} == {tuple(batch["mask"].shape[1:])}
            shapes.append((len(found), SIZES[found[0]]))
        share = Counter(SIZES[rank::world_size])
        assert Counter(shape for _, shape in shapes) == {shape: -(-count // size) for shape, count in share.items()}
    assert sorted(seen) == list(range(len(SIZES)))


def test_evaluating_several_together_counts_the_same(of_some_sizes):
    """But for pixels whose two best scores differ by rounding."""
    torch.manual_seed(0)
    net, found = FCN(Tiny(width=4), 21, (32, 16, 8)).eval(), []
    for head in net.heads.values():
        torch.nn.init.normal_(head.weight)
    for size in (1, 3):
        confusions = ImageConfusions(len(SIZES), 21)
        for batch in of_some_sizes(eval_batch_size=size).val_dataloader():
            confusions.update(class_map(net(batch["image"] / 255)), batch["mask"], batch["index"])
        found.append(confusions.compute()[1])
    one, several = found
    assert torch.equal(one.sum((1, 2)), several.sum((1, 2))) and (one - several).abs().sum() <= 4
    assert len({tuple(matrix.sum(0).tolist()) for matrix in one}) > 1  # the images are not all alike to the net


@pytest.mark.parametrize(
    ("wanted", "workers", "megabytes", "found"),
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
def test_workers_and_their_batches_fit_into_half_of_the_shared_memory(
    monkeypatch, tmp_path, wanted, workers, megabytes, found
):
    monkeypatch.setattr(loader_workers, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(loader_workers.shutil, "disk_usage", lambda path: SimpleNamespace(free=64 * 10**6))
    count, ahead, lack = readers(workers, wanted, megabytes * 10**6)
    assert (count, ahead) == found and bool(lack) == (count < workers) == ("MiB free" in lack)
    if count:  # two more are in the hands of the process itself
        assert (count * ahead + 2) * megabytes <= 32


@pytest.mark.parametrize(
    ("free", "wanted", "workers", "found"),
    [
        (1004, "auto", 8, (8, 4)),  # of 1,024, as most systems have
        (1004, "auto", 64, (64, 1)),
        (236, "auto", 8, (8, 3)),
        (100, "auto", 8, (5, 1)),
        (42, "auto", 4, (1, 1)),
        (41, "auto", 4, (0, None)),
        (0, 2, 4, (0, None)),
        (60, 3, 4, (1, 3)),
    ],
)
def test_workers_and_their_batches_fit_into_half_of_the_files_that_may_be_opened(
    monkeypatch, free, wanted, workers, found
):
    """Counted by hand: four for a worker, three for a batch, of which two more are in hand, and eight besides."""
    monkeypatch.setattr(loader_workers, "free_descriptors", lambda: free)
    monkeypatch.setattr(loader_workers, "shared_memory", lambda: 2**40)
    count, ahead, lack = readers(workers, wanted, 1000)
    assert (count, ahead) == found
    assert 2 * (4 * count + 3 * (count * (ahead or 0) + 2) + 8) <= free or count == 0
    assert ("ulimit -n" in lack) == (f"may open only {free} more files" in lack) == (count < workers)


@pytest.mark.parametrize("missing", ["semaphore", "memory"])
def test_where_nothing_can_be_shared_nobody_else_reads(make, monkeypatch, missing):
    """No /dev/shm, or one that is only read: of whatever size."""

    def absent(*words):
        raise FileNotFoundError(2, "No such file or directory")

    def only_read(tensor):
        raise RuntimeError("unable to open shared memory object </torch_1> in read-write mode: Read-only file system")

    if missing == "semaphore":
        monkeypatch.setattr(loader_workers.multiprocessing, "Lock", absent)
    else:
        monkeypatch.setattr(torch.Tensor, "share_memory_", only_read)
    loader_workers.why_workers_are_unavailable.cache_clear()
    try:
        found = readers(4, "auto", 1)
        output = "No such file" if missing == "semaphore" else "Read-only file system"
        assert found[:2] == (0, None) and output in found.lack and "/dev/shm" in found.lack
        assert readers(0, "auto", 1) == (0, None, "")  # nobody asked for any
        data = make(num_workers=4)
        loaders = (data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader())
        assert [loader.num_workers for loader in loaders] == [0] * 4
    finally:
        loader_workers.why_workers_are_unavailable.cache_clear()


def test_files_that_may_be_opened_are_counted(monkeypatch):
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda which: (500, 4096))
    before = loader_workers.free_descriptors()
    with Path("/dev/null").open(), Path("/dev/null").open():
        assert before - loader_workers.free_descriptors() == 2
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY,) * 2)
    assert loader_workers.free_descriptors() == sys.maxsize


def test_a_batch_that_cannot_be_sent_is_an_error_and_no_wait(make, monkeypatch):
    """The thread that sends it fails in the worker, as where no more files may be opened."""

    def too_many(storage):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(multiprocessing.reduction, "DupFd", too_many)
    with pytest.raises(DataError, match=r"^a worker cannot transfer a batch \(.*Too many open files\).*ulimit -n"):
        next(iter(make(num_workers=1).train_dataloader()))


def test_loaders_take_no_more_workers_than_shared_memory_has_room_for(make, monkeypatch, tmp_path):
    """By the largest image: those of val have 40x60 pixels and fewer, and travel with their masks."""
    free = 2 * 3 * 4 * 2 * 32**2  # half of it: three batches of two crops
    monkeypatch.setattr(loader_workers, "shared_memory", lambda: free)
    data = make(num_workers=4, batch_size=2, crop_size=32)
    assert data.train_dataloader().num_workers == 1
    sizes = [data.split("val").size(index) for index in range(len(data.split("val")))]
    area = max(rows for rows, _ in sizes) * max(cols for _, cols in sizes)
    monkeypatch.setattr(loader_workers, "shared_memory", lambda: 2 * 4 * 4 * area)
    assert data.val_dataloader().num_workers == data.test_dataloader().num_workers == 2
    assert make(num_workers=4).readers("val", processes=2).workers == 0


def test_a_worker_that_cannot_hand_over_its_batch_says_what_to_do(make, monkeypatch):
    def full(self):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(
        DataError, match=r"cannot transfer a batch of .* MiB .*No space left.*data\.num_workers=0"
    ) as error:
        next(iter(make(num_workers=1).train_dataloader()))
    assert "Traceback" not in str(error.value) and str(error.value).startswith("a worker cannot")


def test_loaders_read_ahead_as_told(make):
    data = make(num_workers=2, prefetch_factor=3)
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()]
    assert {loader.prefetch_factor for loader in loaders} == {3}
    assert all(loader.persistent_workers for loader in loaders) and not any(loader.pin_memory for loader in loaders)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_is_pinned_where_images_go_to_a_gpu(make, device):
    data = on_rank(make(), 0, 1)
    data.trainer.strategy.root_device = torch.device(device)
    assert data.train_dataloader().pin_memory == data.val_dataloader().pin_memory == (device == "cuda")


@pytest.mark.parametrize("name", ["eval_batch_size", "prefetch_factor"])
def test_counts_are_one_or_more(make, name):
    with pytest.raises(DataError, match=f"data.{name}=0 must be at least 1"):
        make(**{name: 0})


def test_collate_pads_with_the_fill_colour_and_void():
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


def test_unaugmented_images_are_padded_to_the_largest(make):
    data = make(augment=none)
    for batch in epochs(data)[0]:
        sizes = [data.split("train").mask(int(index)).shape for index in batch["index"]]
        assert batch["mask"].shape[1:] == tuple(np.max(sizes, axis=0))


def test_only_splits_that_are_asked_for_are_opened(make, voc_root):
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
def test_check_finds(make, changes, message):
    with pytest.raises(DataError, match=message):
        make(**changes).check("train", "val")


@pytest.mark.parametrize("splits", [("train", "val"), ("val", "train")])
def test_one_list_for_both_is_checked_for_both(make, splits):
    """To overfit on: whole images must be large enough for the net, and enough for a batch."""
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
def test_images_both_trained_on_and_scored_are_refused(changes, splits, message, make):
    with pytest.raises(DataError, match=message):
        make(**changes).check(*splits)
    make(**changes, allow_overlap=True).check(*splits)


def test_overlap_is_of_files_not_of_names(make, voc_root):
    """Equal names in two folders are two images; a link to an image is that image."""
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
    """Two files of a terabyte, which take no room on the disk, would be compared for hours."""
    images = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for image in images:
        image.write_bytes(b"\xff\xd8\xff")
        os.truncate(image, 1 << 40)
    with pytest.raises(UnreadableFile, match="more than 1,073,741,824 bytes"):
        read_image(images[0])
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was read"))
    assert find_duplicates(images[:1], images[1:]) == []


def test_a_copy_is_the_same_image(make, voc_root):
    """Another image of as many bytes is not, and broken files of none are told as broken."""
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


def test_without_truth_masks_need_not_be_there(make, voc_root):
    shutil.rmtree(voc_root / "VOCdevkit/VOC2012/SegmentationClass")
    make().check("test", target=False)
    with pytest.raises(DataError, match=r"VOC2012 val has no masks \(such as .*v0\.png\).*submission=FILE"):
        make().check("test")


@pytest.mark.parametrize(("augment", "fits"), [(standard, True), (none, False)])
def test_crops_may_be_of_small_images(make, voc_root, augment, fits):
    Image.new("RGB", (9, 9)).save(voc_root / "VOCdevkit/VOC2012/JPEGImages/t0.jpg")
    Image.new("L", (9, 9)).save(voc_root / "VOCdevkit/VOC2012/SegmentationClass/t0.png")
    if fits:
        make(augment=augment).check("train", min_size=16)
    else:
        with pytest.raises(DataError, match=r"t0\.jpg has 9x9 pixels, but at least 16 are required on each side"):
            make(augment=augment).check("train", min_size=16)


def test_workers_by_default_are_at_most_eight(make):
    assert 1 <= make(num_workers="auto").num_workers <= 8


def test_a_batch_comes_to_its_device_but_for_its_indices(make):
    """Lightning's own way, on what is no GPU; on a CPU nothing is copied."""
    (batch, *_), data = epochs(make())[0], make()
    same = data.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert same.keys() == batch.keys() and all(same[key] is batch[key] for key in batch)
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["image"].is_meta and moved["mask"].is_meta and moved["index"] is batch["index"]
    assert not batch["image"].is_meta


class OnGpu:
    """A tensor that tells what is done with it, and on which stream."""

    def __init__(self, name: str, shown: list[str], stream: list[str]):
        self.name, self.shown, self.stream = name, shown, stream

    def to(self, device: torch.device, non_blocking: bool) -> "OnGpu":
        self.shown.append(f"{self.name} to {device} on {self.stream[-1]}, waiting: {not non_blocking}")
        return OnGpu(f"copy of {self.name}", self.shown, self.stream)

    def record_stream(self, stream) -> None:
        self.shown.append(f"{self.name} is kept for {stream.name}")


@pytest.mark.unchecked  # stand-ins, so that no GPU is needed
def test_a_copy_to_a_gpu_is_made_beside_the_work(make, monkeypatch):
    """The order of calls, as CUDA's guides have it for memory of one stream that is used on another."""
    shown, stream = [], ["work"]

    class Stream:
        def __init__(self, device):
            self.name = "copying" if device == torch.device("cuda", 1) else "of another device"

        def __enter__(self):
            stream.append(self.name)

        def __exit__(self, *error):
            stream.pop()

    work = SimpleNamespace(name="work", wait_stream=lambda other: shown.append(f"work waits for {other.name}"))
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda given: given)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: work)
    datamodule._copying_stream.cache_clear()
    batch = {"image": OnGpu("image", shown, stream), "mask": OnGpu("mask", shown, stream), "index": torch.tensor([3])}
    moved = make().transfer_batch_to_device(batch, torch.device("cuda", 1), 0)
    datamodule._copying_stream.cache_clear()
    assert shown == [
        "image to cuda:1 on copying, waiting: False",
        "mask to cuda:1 on copying, waiting: False",
        "work waits for copying",
        "copy of image is kept for work",
        "copy of mask is kept for work",
    ]
    assert [moved[key].name for key in ("image", "mask")] == ["copy of image", "copy of mask"]
    assert moved["index"] is batch["index"] and stream == ["work"]


def test_images_that_augmentation_would_scale_to_nothing_are_named_before_training(make, voc_root):
    Image.new("RGB", (9, 1)).save(voc_root / "VOCdevkit/VOC2012/JPEGImages/t0.jpg")
    Image.new("L", (9, 1)).save(voc_root / "VOCdevkit/VOC2012/SegmentationClass/t0.png")
    with pytest.raises(DataError, match=r"t0\.jpg has 1x9 pixels, but at least 2 are required"):
        make(augment=standard).check("train")
    make(augment=none).check("train")


@pytest.mark.parametrize("name", ["train", "val", "predict"])
def test_more_workers_than_cores_are_the_users_choice(make, monkeypatch, name):
    """Warnings are errors here, and torch has one when a loader is made, and another when it is read."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    loader = getattr(on_rank(make(num_workers=2), 0, 1), f"{name}_dataloader")()
    assert loader.num_workers == 2 and next(iter(loader))


def test_every_loader_is_ours(repository):
    calls = [path.name for path in (repository / "src").rglob("*.py") if " DataLoader(" in path.read_text()]
    assert not calls
