"""``fcnlab.load``, and the other public names."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fcnlab as public
from fcnlab.data import DataError
from fcnlab.errors import UserError
from fcnlab.inference import Flip, GuidedFilter


@pytest.fixture
def photo(tmp_path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (70, 83, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def checkpoint(trained_once) -> Path:
    return trained_once() / "checkpoints" / "best.ckpt"


@pytest.fixture
def model(checkpoint) -> "public.TrainedModel":
    return public.load(checkpoint, device="cpu")


def test_predictions_equal_those_of_the_command(model, checkpoint, photo, fcnlab, tmp_path):
    assert fcnlab("predict", f"checkpoint={checkpoint}", f"input={photo}", "output=out", "trainer.accelerator=cpu") == 0
    with Image.open(tmp_path / "out" / "labels" / "photo.png") as file:
        assert np.array_equal(model.predict(str(photo)), np.array(file))
        assert file.getpalette()[: model.palette.size] == model.palette.ravel().tolist()


@pytest.mark.parametrize("settings", [{}, {"inference": Flip()}, {"postprocess": GuidedFilter()}], ids=str)
def test_predictions_are_the_classes_of_the_highest_probabilities(checkpoint, photo, settings):
    model = public.load(checkpoint, "cpu", **settings)
    probabilities = model.probabilities(photo)
    assert probabilities.dtype == np.float32 and probabilities.shape == (21, 70, 83)
    assert np.array_equal(model.predict(photo), probabilities.argmax(0))


def test_probabilities_are_the_softmax_of_the_scores(model, photo):
    """The expected values are computed by hand from the image file."""
    image = torch.tensor(np.array(Image.open(photo)) / 255, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        scores = model.net(image)[0].numpy().astype(np.float64)
    expected = np.exp(scores - scores.max(0)) / np.exp(scores - scores.max(0)).sum(0)
    np.testing.assert_allclose(model.probabilities(photo), expected, atol=1e-5)


def test_files_images_and_arrays_give_equal_predictions(model, photo):
    expected = model.predict(photo)
    assert expected.dtype == np.uint8 and expected.shape == (70, 83)
    pixels = np.array(Image.open(photo))
    negative_strides = pixels[::-1].copy()[::-1]
    read_only = np.frombuffer(pixels.tobytes(), np.uint8).reshape(pixels.shape)
    several = [str(photo), Image.open(photo), pixels, negative_strides, read_only, Image.open(photo).convert("RGBA")]
    assert all(np.array_equal(labels, expected) for labels in model.predict(several))
    assert model.predict([]) == []


def test_classes_and_palette(model):
    assert model.classes[:2] == ("background", "aeroplane") and len(model.classes) == 21
    assert model.palette.shape == (21, 3) and model.palette.dtype == np.uint8
    assert isinstance(model.net, public.FCN) and not model.net.training


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((70, 83, 3)), r"got float64 of \(70, 83, 3\)"),
        (np.zeros((3, 70, 83), np.uint8), r"got uint8 of \(3, 70, 83\)"),
        (np.zeros((0, 83, 3), np.uint8), "at least 1 pixels on each side, but has 0x83"),
        pytest.param(torch.zeros(70, 83, 3), "got Tensor", marks=pytest.mark.unchecked),
    ],
)
def test_invalid_images_are_refused(model, image, message):
    with pytest.raises(ValueError, match=message):
        model.predict(image)


def test_unreadable_files_are_named(model, tmp_path):
    with pytest.raises(DataError, match="is missing"):
        model.predict(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="the image has pixels of mode I"):
        model.predict(Image.new("I", (80, 80)))
    with pytest.raises(UserError, match=r"none\.ckpt is not a file"):
        public.load(tmp_path / "none.ckpt")


def test_all_public_names_exist():
    assert all(getattr(public, name) is not None for name in public.__all__)
    assert set(public.__all__) <= set(dir(public))
    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        _ = public.lod


def test_importing_fcnlab_does_not_import_torch():
    code = "import fcnlab, sys; print(sorted({'torch', 'lightning', 'hydra', 'numpy'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_lists_give_lists_and_a_model_names_its_network(model, photo):
    image = np.array(Image.open(photo))
    both = model.probabilities([photo, image])
    assert len(both) == 2 and np.array_equal(both[0], model.probabilities(image)) and np.array_equal(*both)
    assert repr(model) == "<TrainedModel: FCN-8s on Tiny, 21 classes, cpu>"


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"inference": "flip"},
            r"inference='flip' is no InferenceMethod: give an object such as fcnlab\.inference\.Flip",
        ),
        ({"postprocess": "crf"}, "postprocess='crf' is no Postprocess"),
        ({"device": "gpu"}, "device=gpu is no device of torch: choose cpu, cuda"),
        ({"device": "cuda:7"}, "device=cuda:7: torch finds 0 GPUs here"),
    ],
)
def test_an_argument_of_another_kind_is_refused_before_the_file_is_read(arguments, message):
    with pytest.raises(UserError, match=message):
        public.load("none.ckpt", **arguments)


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (np.zeros((40, 50), np.uint8), "np.stack"),
        (np.zeros((3, 40, 50), np.uint8), "transpose"),
        (np.zeros((40, 50, 3), np.float32), "astype"),
        (np.zeros((40, 50, 4), np.uint8), r"uint8 of \(40, 50, 4\)$"),
    ],
)
def test_an_array_of_another_kind_is_refused_with_the_conversion(model, array, advice):
    with pytest.raises(ValueError, match=advice):
        model.predict(array)


def test_a_notebook_shows_the_message_of_a_users_error_alone():
    assert UserError("seed=x is no number")._render_traceback_() == ["UserError: seed=x is no number"]
