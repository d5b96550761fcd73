"""Test the command fcnlab doctor: its table, files and exit code; and the machine checks separately."""

import json
import re
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fcnlab.data import DataModule, loader_workers, open_folder
from fcnlab.data.checks.class_weights import Frequencies
from fcnlab.data.checks.machine import disk_finding, gpu_finding, readers_finding
from fcnlab.data.checks.report import Verdict
from fcnlab.data.loader_workers import readers
from fcnlab.data.transforms import standard
from fcnlab.tasks.doctor import frequency_facts, inspect_all, inspect_data, suggestions

GIB = 2**30


def test_a_valid_data_set_passes_and_a_broken_file_fails(fcnlab, small, tmp_path, capsys):
    data = [word for word in small if word.startswith("data.")]
    words = ("doctor", f"data.root={tmp_path / 'drawn'}", *data, "samples=6")
    assert fcnlab(*words, f"hydra.run.dir={tmp_path}/first") == 0
    output = capsys.readouterr().out
    assert "✓ overlap" in output and "✗" not in output and "train images" in output
    record = json.loads((tmp_path / "first/doctor.json").read_text())
    assert record["verdict"] == "warning"  # no GPU here
    assert record["splits"]["val"]["images"] == 8 and len(record["splits"]["train"]["classes"]) == 21
    assert set(record["splits"]["train"]["ignored"]) == {"images", "pixels"}
    assert len(record["class_weights"]["median frequency"]) == 21
    sheet = np.array(Image.open(tmp_path / "first/samples.png"))
    assert sheet.shape[1] == 4 * 460 and 2 * 200 < sheet.shape[0] < 3 * 250  # two rows of four pairs, and the legend

    (image,) = (tmp_path / "drawn").glob("*/VOCdevkit/VOC2012/JPEGImages/train_000003.jpg")
    image.write_bytes(image.read_bytes()[:-400])
    assert fcnlab(*words, f"hydra.run.dir={tmp_path}/second") == 1
    reported = capsys.readouterr()
    assert (
        "✗ whole files" in reported.out and "✓ two epochs" in reported.out
    )  # the whole table first, then the exit code
    assert "these errors would cause wrong scores or make training fail: train: whole files" in reported.err
    assert str(image) in (tmp_path / "second/doctor.md").read_text()
    assert (tmp_path / "second/samples.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("data=voc", "data.root=nowhere"), "no VOC2012 in data.root=nowhere"),
        (("samples=-1",), "samples must be 0 to 200, got -1"),
        (("alike_bits=40",), "alike_bits must be 0 to 16"),
        (("data.crop_size=big",), "data.crop_size must be a number of pixels from 1 to"),
    ],
)
def test_user_errors_are_reported_as_by_other_commands(fcnlab, words, message, capsys):
    assert fcnlab("doctor", *words) == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err


@pytest.fixture
def verdicts(tmp_path):
    """Return the findings on the settings and the loader, for six images of one colour each, except the last."""

    def inspect(**changes) -> dict[tuple[str, str], Verdict]:
        for place in range(6):
            colour = np.full((40, 40, 3), 20 * place, np.uint8)
            if place == 5 and changes.pop("last_is_distinct", True):
                colour = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
            for folder, pixels in (("images", colour), ("masks", np.zeros((40, 40), np.uint8))):
                (tmp_path / folder).mkdir(exist_ok=True)
                Image.fromarray(pixels).save(tmp_path / folder / f"{place}.png")
        opened = partial(
            open_folder,
            images="images/{name}.png",
            masks="masks/{name}.png",
            classes=["a", "b"],
            fractions=changes.pop("fractions", {"all": 1.0}),
        )
        settings = {"root": str(tmp_path), "train_list": "all", "val_list": "all", "num_classes": 2, "batch_size": 2}
        data = DataModule(opened, augment=standard, crop_size=32, num_workers=0, **settings | changes)
        return {(finding.about, finding.check): finding.verdict for finding in inspect_data(data, inspect_all(data), 4)}

    return inspect


def test_the_loader_is_judged_by_an_image_with_distinct_crops(verdicts):
    """All crops of a uniform image are equal, whatever the random numbers are."""
    assert verdicts()["augmentation", "two workers"] == Verdict.OK
    assert verdicts(last_is_distinct=False)["augmentation", "draws"] == Verdict.WARNING


def test_settings_that_do_not_fit_the_data_are_errors(verdicts):
    sound = verdicts()
    assert sound["settings", "classes"] == sound["settings", "batches"] == Verdict.OK
    wrong = verdicts(num_classes=3, batch_size=7)
    assert wrong["settings", "classes"] == wrong["settings", "batches"] == Verdict.ERROR


def test_one_list_for_training_and_validation_is_an_overlap(verdicts):
    assert verdicts()["train and val", "overlap"] == Verdict.ERROR


def test_one_list_for_training_and_test_is_an_overlap(verdicts):
    seen = verdicts(fractions={"all": 0.5, "rest": 0.5}, val_list="rest", test_list="all")
    assert seen["train and val", "overlap"] == seen["val and test", "overlap"] == Verdict.OK
    assert seen["train and test", "overlap"] == Verdict.ERROR


def test_a_class_called_void_keeps_its_counts():
    """Counts of ignored pixels replaced those of such a class."""
    counted = Frequencies(np.array([5, 7]), np.array([1, 2]), np.array([12, 12]), 3, 1)
    assert frequency_facts(["void", "road"], counted) == {
        "classes": {"void": {"images": 1, "pixels": 5}, "road": {"images": 2, "pixels": 7}},
        "ignored": {"images": 1, "pixels": 3},
    }


def test_suggestions_are_valid_overrides():
    (line,) = suggestions({"some rule": [0.5, 1.0, 12.345]})
    assert line == "some rule: loss=weighted loss.class_weights=[0.5,1,12.345]"


@pytest.mark.parametrize(("free", "verdict"), [(9 * GIB, Verdict.WARNING), (11 * GIB, Verdict.OK)])
def test_little_disk_space_is_reported(tmp_path, free, verdict):
    assert disk_finding(tmp_path, free).verdict == verdict


@pytest.mark.parametrize(("free", "verdict"), [(2**26, Verdict.WARNING), (2**30, Verdict.OK)])
def test_small_shared_memory_is_reported(monkeypatch, free, verdict):
    """A container has 64 MiB by default; a batch of 16 images of 512x512 needs 16."""
    monkeypatch.setattr(loader_workers, "shared_memory", lambda: free)
    finding = readers_finding(free, readers(8, "auto", 2**24), requested=8)
    assert finding.verdict == verdict
    output = {2**26: "only 0 of 8 workers can be used, because /dev/shm", 2**30: "the batches of 8 workers"}[free]
    assert output in finding.found


def test_gpus_are_reported():
    assert gpu_finding([]).verdict == Verdict.WARNING
    finding = gpu_finding([SimpleNamespace(name="NVIDIA H200", total_memory=140 * GIB)])
    assert finding.verdict == Verdict.OK and finding.found == "NVIDIA H200 (140 GiB)"


def test_no_class_weights_if_no_mask_is_readable(fcnlab, tmp_path, capsys):
    for folder in ("images", "labels"):
        (tmp_path / "d" / folder).mkdir(parents=True)
        for place in range(4):
            path = tmp_path / "d" / folder / f"{place}.png"
            Image.new("RGB", (16, 16)).save(path)
            if folder == "labels":
                path.write_bytes(b"no image")
    words = ("data=folder", f"data.root={tmp_path}/d", "data.dataset.classes=[a,b]", "data.num_workers=0")
    words += ("data.dataset.images='images/{name}.png'", "data.dataset.masks='labels/{name}.png'")
    words += ("data.dataset.fractions={train:0.5,val:0.5}", "data.crop_size=32", "data.batch_size=1", "samples=0")
    assert fcnlab("doctor", *words, f"hydra.run.dir={tmp_path}/report") == 1
    output = capsys.readouterr()
    assert "class_weights=" not in output.out and "Traceback" not in output.err
    assert len(re.findall(r"FILE cannot be read as an image .* \(2 files: ", output.out)) == 2  # one line per split
    assert output.out.count("cannot be read as an image") == 2
    assert json.loads((tmp_path / "report" / "doctor.json").read_text())["class_weights"] == {}
