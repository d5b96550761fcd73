"""predictions.zip: what is written is plain, and what is read is checked."""

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

from fcnlab.evaluation.evaluation import save_predictions
from fcnlab.files.reading import Unreadable
from fcnlab.runs import prediction_archive
from fcnlab.runs.prediction_archive import EncodedImage, encode, open_archive, worst_and_random, write_archive

PALETTE = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0)], np.uint8)
TARGET, PREDICTION = np.array([[0, 1, 255], [2, 2, 0]], np.uint8), np.array([[0, 2, 1], [2, 1, 0]], np.uint8)
IMAGE = np.random.default_rng(0).integers(0, 256, (3, 2, 3), dtype=np.uint8)


@pytest.fixture
def written(tmp_path):
    def write(*names: str):
        write_archive(
            tmp_path / "predictions.zip", {name: encode(IMAGE, TARGET, PREDICTION, PALETTE) for name in names}
        )
        return tmp_path

    return write


def test_members_are_stored_palette_images(written):
    """Any program reads the class ids back; a large image is stored as a small copy."""
    large = encode(np.zeros((3, 400, 800), np.uint8), *np.zeros((2, 400, 800), np.uint8), PALETTE)
    assert Image.open(io.BytesIO(large.image)).size == (320, 160)
    with zipfile.ZipFile(written("city/a b") / "predictions.zip") as archive:
        assert archive.namelist() == [
            "class_maps/city/a%20b.png",
            "ground_truth/city/a%20b.png",
            "images/city/a%20b.jpg",
        ]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        prediction, target, image = (Image.open(io.BytesIO(archive.read(name))) for name in archive.namelist())
        np.testing.assert_array_equal(np.array(prediction), PREDICTION)
        np.testing.assert_array_equal(np.array(target), TARGET)
        assert prediction.mode == "P" and prediction.getpalette()[:9] == PALETTE.flatten().tolist()
        assert image.format == "JPEG" and image.size == (3, 2)


@pytest.mark.parametrize("name", ["2007_000033", "ü/../x", "not utf-8 \udcff", "a:b\\c\n"])
def test_any_name_is_found_again(written, name):
    with open_archive(written(name, "other"), 3) as archive:
        assert name in archive and "missing" not in archive
        kept = archive.read(name)
    np.testing.assert_array_equal(kept.prediction, PREDICTION)
    np.testing.assert_array_equal(kept.target, TARGET)
    np.testing.assert_array_equal(kept.palette, PALETTE)
    assert kept.image.shape == (2, 3, 3)


def test_equal_predictions_give_equal_files(written):
    first = (written("a", "b") / "predictions.zip").read_bytes()
    assert (written("a", "b") / "predictions.zip").read_bytes() == first


def saved(image: Image.Image, kind: str, **settings) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def palette_png(labels) -> bytes:
    image = Image.fromarray(np.array(labels, np.uint8))
    image.putpalette(bytes(768))
    return saved(image, "PNG")


SMALL = Image.new("RGB", (8, 8))
DAMAGE = {
    "a class that does not exist": ("class_maps/a.png", palette_png([[0, 0, 0], [0, 0, 3]]), "no class"),
    "a prediction of ignored pixels": ("class_maps/a.png", palette_png([[0, 0, 255], [0, 0, 0]]), "no class"),
    "a class in the ground truth": ("ground_truth/a.png", palette_png([[0, 0, 0], [0, 0, 9]]), "no class"),
    "another size": ("ground_truth/a.png", palette_png([[0, 0, 0]]), "another size"),
    "no palette": ("class_maps/a.png", saved(SMALL, "PNG"), "no palette"),
    "another format": ("class_maps/a.png", saved(SMALL, "GIF"), "cannot identify"),
    "a progressive JPEG": ("images/a.jpg", saved(SMALL, "JPEG", progressive=True), "not a plain JPEG"),
    "a large image": ("images/a.jpg", saved(Image.new("RGB", (321, 8)), "JPEG"), "at most 320 pixels"),
    "a large member": ("images/a.jpg", bytes(300_000), "more than 262,144 bytes"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_foreign_members_are_refused(written, tmp_path, kind):
    path, (damaged, content, message) = written("a") / "predictions.zip", DAMAGE[kind]
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (members | {damaged: content}).items():
            archive.writestr(name, data)
    with (
        pytest.raises(Unreadable, match=rf"predictions\.zip is damaged: .*{message}"),
        open_archive(tmp_path, 3) as kept,
    ):
        kept.read("a")


def test_foreign_archives_are_refused(written, tmp_path, monkeypatch):
    path = written("a") / "predictions.zip"
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    with pytest.raises(Unreadable, match="is compressed"), open_archive(tmp_path, 3) as kept:
        kept.read("a")
    monkeypatch.setattr("fcnlab.files.reading.ZIP_MEMBERS", 100)
    with pytest.raises(Unreadable, match="too many members"), open_archive(tmp_path, 3):
        pass
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(Unreadable, match="truncated"), open_archive(tmp_path, 3):
        pass


def test_an_archive_that_is_too_large_to_read_is_not_written(written, tmp_path, monkeypatch, caplog):
    images = {name: encode(IMAGE, TARGET, PREDICTION, PALETTE) for name in ("a", "b", "c")}
    path = tmp_path / "predictions.zip"
    size = write_archive(path, images)
    for limit, most, kept in (
        ("ZIP_COUNT", 6, "ab"),
        ("ZIP_COUNT", 9, "abc"),
        ("ZIP_MEMBERS", 300, "a"),
        ("ZIP_BYTES", size, "ab"),
        ("ZIP_BYTES", size + 1, "abc"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(prediction_archive, limit, most)
            assert "".join(prediction_archive.readable(images)) == kept
    monkeypatch.setattr(prediction_archive, "ZIP_COUNT", 6)
    save_predictions(path, images, 3)
    with zipfile.ZipFile(path) as archive:
        assert len(archive.namelist()) == 6
    assert "keeps only the first 2 images" in caplog.text


def test_an_archive_with_too_many_members_is_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    write_archive(tmp_path / "predictions.zip", {"a": EncodedImage(b"", b"", b"")})
    with pytest.raises(Unreadable, match=r"predictions\.zip is too large"), open_archive(tmp_path, 3):
        pass


def test_the_worst_and_some_random_images_are_chosen(monkeypatch):
    """Two runs choose the same random images, and an image without a score is never among the worst."""
    monkeypatch.setattr(prediction_archive, "WORST", 2)
    monkeypatch.setattr(prediction_archive, "RANDOM", 3)
    first = {f"{place}": place / 100 for place in range(100)} | {"ignored": float("nan")}
    second = {name: -miou for name, miou in first.items()}
    chosen = worst_and_random(first), worst_and_random(second)
    assert {"0", "1"} <= chosen[0] and {"98", "99"} <= chosen[1]
    random = chosen[0] - {"0", "1"}
    assert len(chosen[0]) == 5 and chosen[1] == random | {"98", "99"}
