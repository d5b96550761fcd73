"""``fcnlab export`` as a user types it, with the checkpoint of a real run."""

import json

import numpy as np
import onnx
import pytest
import torch

import fcnlab as public
from fcnlab.config.schemas import ExportFormat
from fcnlab.publication import export_formats
from fcnlab.publication.onnx_file import OPSET

pytestmark = pytest.mark.unchecked  # torch.export cannot trace the checks of annotations


@pytest.fixture
def run(trained_once):
    return trained_once()


@pytest.fixture
def checkpoint(run):
    return f"checkpoint={run}/checkpoints/best.ckpt"


def description(path) -> dict:
    return json.loads(path.with_name(path.name + ".json").read_text())


def photo(rows: int, cols: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (rows, cols, 3), dtype=np.uint8)


def test_every_format_can_be_typed():
    (meaning,) = ExportFormat.__metadata__
    assert all(map(meaning.holds, export_formats.FORMATS)) and not meaning.holds("tflite")


def test_safetensors_have_the_scores_of_the_checkpoint(fcnlab, run, checkpoint, tmp_path, capsys, shapes_root):
    """And facts for readers; fcnlab.load, eval and card take the file."""
    assert fcnlab("export", checkpoint, "format=safetensors", "output=rel/model.safetensors", "scores=true") == 0
    output = capsys.readouterr().out
    assert "scores has no effect with format=safetensors" in output and "100 % of" in output
    facts, record = description(tmp_path / "rel/model.safetensors"), json.loads((run / "metrics.json").read_text())
    assert facts["scores"][0]["miou"] == pytest.approx(record["miou"], abs=1e-6)
    assert facts["classes"] == list(record["iou"]) and facts["parity"]["equal"] == 1
    assert facts["parity"]["largest_difference"] == 0 and facts["license"].startswith("not stated")
    original = public.load(run / "checkpoints/best.ckpt", device="cpu")
    loaded = public.load(tmp_path / "rel/model.safetensors", device="cpu")
    image = photo(50, 61)
    assert np.array_equal(loaded.probabilities(image), original.probabilities(image))
    assert loaded.classes == original.classes and np.array_equal(loaded.palette, original.palette)


def test_an_exported_file_that_is_exported_again_keeps_licence_and_scores(fcnlab, checkpoint, tmp_path, capsys):
    words = ["format=safetensors", "output=first/model.safetensors", "license=mit"]
    assert fcnlab("export", checkpoint, *words) == 0
    assert "states" not in capsys.readouterr().out
    words = ["checkpoint=first/model.safetensors", "format=safetensors", "output=second.safetensors"]
    assert fcnlab("export", *words) == 0
    output = capsys.readouterr().out
    assert "The licence is the one that first/model.safetensors states: mit" in output and "The scores are" in output
    first, second = (description(tmp_path / name) for name in ("first/model.safetensors", "second.safetensors"))
    assert second["license"] == "mit" and second["scores"] == first["scores"] and first["scores"][0]["miou"] > 0


def test_an_export_without_scores_says_why(fcnlab, run, tmp_path, capsys):
    (run / "checkpoints/best.ckpt").rename(tmp_path / "best.ckpt")
    assert fcnlab("export", "checkpoint=best.ckpt", "format=safetensors", "output=net.safetensors") == 0
    expected = "the exported file has no scores: the checkpoint is not in the folder of its run"
    assert expected in capsys.readouterr().out and description(tmp_path / "net.safetensors")["scores"] == []


@pytest.mark.slow
def test_eval_and_card_take_a_safetensors_file(fcnlab, run, checkpoint, tmp_path, capsys):
    assert fcnlab("export", checkpoint, "format=safetensors", f"output={run}/checkpoints/model.safetensors") == 0
    for name in ("best.ckpt", "model.safetensors"):
        words = [f"checkpoint={run}/checkpoints/{name}", "trainer.accelerator=cpu", "logger=csv", "num_images=0"]
        assert fcnlab("eval", *words, f"hydra.run.dir={name}") == 0
    first, second = (
        json.loads((tmp_path / n / "metrics.json").read_text()) for n in ("best.ckpt", "model.safetensors")
    )
    for key in ("miou", "pixel_acc", "iou", "selection", "protocol"):
        assert first[key] == second[key]
    assert fcnlab("card", f"checkpoint={run}/checkpoints/model.safetensors", "output=README.md") == 0
    assert "fcnlab.load('model.safetensors')" in (tmp_path / "README.md").read_text()
    assert fcnlab("train", f"checkpoint={run}/checkpoints/model.safetensors", "hydra.run.dir=again") == 1
    assert "it does not contain the state of a training run" in capsys.readouterr().err


def test_an_onnx_file_of_one_size_predicts_what_fcnlab_does(fcnlab, run, checkpoint, tmp_path):
    import onnxruntime

    words = ["format=onnx", "static=40x56", "output=net.onnx", "license=mit"]
    assert fcnlab("export", checkpoint, *words) == 0
    model = onnx.load(tmp_path / "net.onnx")
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    loaded = public.load(run / "checkpoints/best.ckpt", device="cpu")
    assert json.loads(metadata["classes"]) == list(loaded.classes) and metadata["license"] == "mit"
    assert json.loads(metadata["palette"]) == loaded.palette.tolist()
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
    assert str(tmp_path).encode() not in (tmp_path / "net.onnx").read_bytes()
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    image = photo(40, 56)
    (class_map,) = session.run(None, {"image": image.transpose(2, 0, 1)[None]})
    assert class_map.dtype == np.uint8 and np.array_equal(class_map[0], loaded.predict(image))
    facts = description(tmp_path / "net.onnx")
    assert facts["inputs"]["image"]["shape"] == [1, 3, 40, 56] and facts["parity"]["sizes"] == 1


@pytest.mark.slow
def test_an_onnx_file_takes_any_size_and_batch(fcnlab, run, checkpoint, tmp_path, capsys):
    import onnxruntime

    assert fcnlab("export", checkpoint, "format=onnx", "output=net.onnx", "scores=true") == 0
    assert "onnx_ir" not in (output := capsys.readouterr().out) and "Replaced" not in output
    facts = description(tmp_path / "net.onnx")
    assert facts["parity"]["sizes"] == 20 and facts["parity"]["equal"] > 0.999
    assert facts["inputs"]["image"]["shape"] == ["batch", 3, "rows", "cols"]
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    assert [value.shape for value in session.get_outputs()] == [
        ["batch", "rows", "cols"],
        ["batch", 21, "rows", "cols"],
    ]
    loaded = public.load(run / "checkpoints/best.ckpt", device="cpu")
    images = [photo(71, 133), photo(71, 133)[::-1]]
    batch = np.stack(images).transpose(0, 3, 1, 2)
    class_maps, scores = session.run(None, {"image": batch})
    probabilities = torch.from_numpy(scores).softmax(1).numpy()
    for image, own, own_probabilities in zip(images, class_maps, probabilities, strict=True):
        assert np.array_equal(own, loaded.predict(image))
        np.testing.assert_allclose(own_probabilities, loaded.probabilities(image), atol=1e-5)


@pytest.mark.slow
def test_a_program_takes_any_size(fcnlab, run, checkpoint, tmp_path):
    assert fcnlab("export", checkpoint, "format=torch_export", "output=net.pt2") == 0
    module = torch.export.load(tmp_path / "net.pt2", extra_files=(extra := {"fcnlab.json": ""})).module()
    image = photo(90, 131)
    class_map = module(torch.from_numpy(image).permute(2, 0, 1)[None])
    loaded = public.load(run / "checkpoints/best.ckpt", device="cpu")
    assert np.array_equal(class_map[0].numpy(), loaded.predict(image))
    assert json.loads(extra["fcnlab.json"])["classes"] == list(loaded.classes)


def test_a_file_that_computes_something_else_is_removed(fcnlab, checkpoint, tmp_path, capsys, monkeypatch):
    def save_with_a_wrong_weight(program, path, facts, with_scores):
        save(program, path, facts, with_scores)
        model = onnx.load(path)
        weights = next(each for each in model.graph.initializer if each.name == "net.heads.32.weight")
        wrong = onnx.numpy_helper.to_array(weights).copy()
        wrong[2] *= 1.1
        weights.CopyFrom(onnx.numpy_helper.from_array(wrong, weights.name))
        onnx.save(model, path)

    save = export_formats.save_onnx
    monkeypatch.setattr(export_formats, "save_onnx", save_with_a_wrong_weight)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/net.onnx").write_text("the file before")
    assert fcnlab("export", checkpoint, "format=onnx", "static=40x56", "output=mine/net.onnx", "overwrite=true") == 1
    output = capsys.readouterr().err
    assert "the exported network computes something else than checkpoint=" in output and "Traceback" not in output
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["net.onnx"]
    assert (tmp_path / "mine/net.onnx").read_text() == "the file before"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["format=tflite"], "format must be onnx, torch_export or safetensors, got 'tflite'"),
        (
            ["format=onnx", "output=net.pt2"],
            "output must end in .onnx for format=onnx, got net.pt2",
        ),
        (["format=onnx", "output=mine.onnx"], "output=mine.onnx exists: choose another file, or add overwrite=true"),
        (["format=torch_export", "output=new.pt2"], "output=new.pt2.json exists"),
        (["format=onnx", "static=9x0"], "static must be ROWSxCOLS such as 375x500"),
        (["format=onnx", "static=375"], "static must be"),
        (["format=onnx", "output=mine.onnx/net.onnx"], "is not a folder"),
        (["format=onnx", "license="], "license= is empty: set a text, or leave it out"),
        (["format=onnx", "license='  '"], "license= is empty"),
    ],
)
def test_what_cannot_be_written_is_refused_first(fcnlab, tmp_path, capsys, words, message):
    for name in ("mine.onnx", "new.pt2.json"):
        (tmp_path / name).write_text("mine")
    assert fcnlab("export", "checkpoint=none.ckpt", *words) == 1
    output = capsys.readouterr().err
    assert message in output and "Traceback" not in output
    assert all((tmp_path / name).read_text() == "mine" for name in ("mine.onnx", "new.pt2.json"))


@pytest.mark.parametrize(("verb", "reason"), [("export", "ensembles are not exported"), ("card", "one network")])
def test_an_ensemble_is_refused_in_one_sentence(fcnlab, capsys, verb, reason):
    words = ["format=onnx"] if verb == "export" else []
    assert fcnlab(verb, "checkpoint=[a.ckpt,b.ckpt]", *words) == 1
    output = capsys.readouterr().err
    expected = "Invalid configuration: checkpoint must be the path of one checkpoint of fcnlab train, got ['a.ckpt',"
    assert expected in output and reason in output and "is not set" not in output


def test_missing_packages_are_named(fcnlab, capsys, monkeypatch):
    monkeypatch.setattr("fcnlab.publication.onnx_file.find_spec", lambda name: None)
    assert fcnlab("export", "checkpoint=none.ckpt", "format=onnx") == 1
    assert "format=onnx needs onnx and onnxscript: pip install 'fcnlab[export]'" in capsys.readouterr().err


def test_a_static_size_below_that_of_the_network_is_refused(fcnlab, checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("fcnlab.models.Tiny.min_size", 31)
    assert fcnlab("export", checkpoint, "format=onnx", "static=30x40") == 1
    assert "static must have at least 31 pixels on each side, which this network needs, got 30x40" in (
        capsys.readouterr().err
    )


def test_without_onnxruntime_a_warning_says_that_nothing_was_compared(
    fcnlab, checkpoint, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(export_formats, "open_onnx", lambda path: None)
    monkeypatch.setattr(export_formats, "save_onnx", lambda program, path, facts, with_scores: path.write_text("net"))
    assert fcnlab("export", checkpoint, "format=onnx", "static=40x56", "output=net.onnx") == 0
    assert "Warning: the file was not compared with the checkpoint, because onnxruntime" in capsys.readouterr().out
    assert description(tmp_path / "net.onnx")["parity"] is None
