"""Test training on user images in five lines, and fine-tuning on them from a model with other classes."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from fcnlab.config.validation import ConfigError, validate_config


@pytest.fixture
def photos(tmp_path):
    """Write 20 images in one folder, with masks of two classes."""
    rng = np.random.default_rng(0)
    for place in range(20):
        for folder, pixels in (("photos", (48, 64, 3)), ("labels", (48, 64))):
            path = tmp_path / "mine" / folder / f"{place}.{'jpg' if folder == 'photos' else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 2 if folder == "labels" else 256, pixels, np.uint8)).save(path)
    return tmp_path / "mine"


def test_the_example_of_the_docs_fine_tunes_from_another_checkpoint(train, fcnlab, photos, repository, tmp_path):
    text = (repository / "docs/how-to/own-data.md").read_text()
    (lines,) = re.findall(r"```yaml\n# mine/data/leaves.yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "conf/data").mkdir(parents=True)
    own = re.sub(r"root: .*", f"root: {photos}", lines)
    (tmp_path / "conf/data/leaves.yaml").write_text(own)
    before = train()  # on 21 classes of shapes
    words = ("train", "--config-dir", tmp_path / "conf", "data=leaves", f"model.weights={before}/checkpoints/best.ckpt")
    few = ("model.backbone.width=4", "trainer=smoke", "trainer.accelerator=cpu", "trainer.max_steps=4", "logger=none")
    few += ("trainer.val_check_interval=4", "data.crop_size=32", "data.num_workers=0", "model.reset_heads=true")
    assert fcnlab(*words, *few, f"hydra.run.dir={tmp_path}/after") == 0
    record = json.loads((tmp_path / "after/metrics.json").read_text())
    assert list(record["iou"]) == ["soil", "leaf"] and record["protocol"]["set"] == "mine val"
    assert fcnlab("eval", f"checkpoint={tmp_path}/after/checkpoints/best.ckpt", "trainer.accelerator=cpu") == 0


def test_classes_are_counted(composed):
    words = ("data=folder", "data.dataset.classes={ground: [0, 0, 0], cat: [9, 0, 0], dog: [0, 9, 0]}")
    cfg = composed(*words)
    validate_config(cfg)
    assert cfg.data.num_classes == cfg.model.num_classes == 3


def test_classes_listed_in_a_file_are_counted(composed, tmp_path):
    (tmp_path / "names.txt").write_text("ground\ncat\n")
    words = ("data=folder", f"data.root={tmp_path}", "data.dataset.classes=names.txt")
    assert composed(*words).model.num_classes == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), r"^Invalid configuration: data\.dataset\.classes is not set\. Set it as data\.dataset\.classes=VALUE\.$"),
        (
            ("data.dataset.classes=no.txt",),
            r"num_classes cannot be resolved: data\.dataset\.classes=no\.txt: .*cannot be",
        ),
    ],
)
def test_classes_that_cannot_be_counted_are_reported(composed, words, message):
    with pytest.raises(ConfigError) as caught:
        validate_config(composed("data=folder", *words))
    assert re.search(message, str(caught.value), re.MULTILINE)
