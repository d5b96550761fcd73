"""``fcnlab figure`` as a user types it."""

import shutil

import pytest
from PIL import Image

from fcnlab.comparison import pdf
from run_folders import write_run_with_predictions


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr("fcnlab.files.writing._sync", lambda path: None)
    for model, quality in {"fcn32s": 0.3, "fcn8s": 0.9}.items():
        write_run_with_predictions(tmp_path / model, quality, model=model, typed=[])
    return "runs=fcn32s,fcn8s"


def test_a_figure_is_written_as_pdf_and_png(fcnlab, runs, tmp_path, capsys):
    assert fcnlab("figure", runs, "images=image_001", "num_images=2", "output=paper/a.pdf", "hydra.run.dir=f") == 0
    assert (tmp_path / "paper/a.pdf").read_bytes().startswith(b"%PDF")
    with Image.open(tmp_path / "paper/a.png") as image:
        assert image.width == int(6.875 * 300)
    assert "num_images=2 has no effect with images=" in capsys.readouterr().out
    assert fcnlab("figure", runs, "output=paper/a.pdf", "hydra.run.dir=f") == 1


def test_the_message_about_a_chosen_image_says_that_it_is_not_typical(fcnlab, runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fcnlab.tasks.figure.write_figure", lambda *_, **__: None)
    assert fcnlab("figure", runs, "num_images=1", "hydra.run.dir=f") == 0
    assert "so they are not typical" in (output := capsys.readouterr().out) and "Figure: " in output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["output=there.pdf"], "output=there.png exists: choose another file, or add overwrite=true to replace it"),
        (["hydra.run.dir=."], "contains figure.pdf: choose another folder, set output=FILE, or add overwrite=true"),
        (["images=image_001,image_001"], "images must be a list that has each name once"),
        (["images=image_1"], "images=image_1 is not one of the 36 images that all runs have scored"),
        (["width=wide"], "width must be column (3.25 inches) or text (6.875 inches), got 'wide'"),
        (["runs=fcn8s,none"], "runs=none: the folder does not exist"),
    ],
)
def test_mistakes_are_reported_before_anything_is_written(fcnlab, runs, tmp_path, capsys, words, message):
    for name in ("there.png", "figure.pdf"):
        (tmp_path / name).write_text("mine")
    assert fcnlab("figure", runs, "hydra.run.dir=f", *words) == 1
    output = capsys.readouterr().err
    assert message in output and "Traceback" not in output
    assert not (tmp_path / "f").exists() and (tmp_path / "there.png").read_text() == "mine"
    assert (tmp_path / "figure.pdf").read_text() == "mine"


def test_a_run_without_the_image_is_told_how_to_keep_it(fcnlab, runs, tmp_path, capsys):
    (tmp_path / "fcn8s/predictions.zip").unlink()
    (tmp_path / "fcn8s/checkpoints").mkdir()
    (tmp_path / "fcn8s/checkpoints/best.ckpt").touch()
    command = f"fcnlab eval checkpoint={tmp_path}/fcn8s/checkpoints/best.ckpt evaluation.keep_predictions=all"
    for words in ([], ["images=image_001"]):
        assert fcnlab("figure", runs, *words) == 1
        assert command in capsys.readouterr().err


def test_predictions_of_another_evaluation_are_not_drawn(fcnlab, runs, tmp_path, capsys):
    shutil.copy(tmp_path / "fcn8s/predictions.zip", tmp_path / "fcn32s")
    assert fcnlab("figure", runs) == 1
    assert "they are of another evaluation" in capsys.readouterr().err


def test_a_named_run_is_never_left_out(fcnlab, runs, tmp_path, capsys):
    write_run_with_predictions(tmp_path / "other", 0.5, protocol={"set": "toys test"}, model="fcn16s", typed=[])
    (tmp_path / "fcn8s/run.json").write_text('{"status": "interrupted"}')
    for name in ("other", "fcn8s"):
        assert fcnlab("figure", f"runs=fcn32s,{name}") == 1
        output = capsys.readouterr().err
        assert "which cannot be drawn" in output and str(tmp_path) in output


def test_without_matplotlib_the_error_says_what_to_install(fcnlab, runs, capsys, monkeypatch):
    monkeypatch.setattr(pdf, "is_available", lambda: False)
    assert fcnlab("figure", runs) == 1
    assert "pip install 'fcnlab[paper]'" in capsys.readouterr().err
