# pyright: strict
"""A user's file that uses everything that ``import fcnlab`` offers; make lint checks its types, and a test runs it."""

from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from PIL import Image

import fcnlab

SMALL = ["trainer=smoke", "trainer.max_steps=4", "trainer.val_check_interval=4", "data.dataset.size=64", "logger=csv"]


def trained(folder: Path) -> list[fcnlab.TrainedRun]:
    """Train two networks."""
    words = [*SMALL, f"data.root={folder / 'shapes'}"]
    return [fcnlab.train([*words, f"model={model}"], folder=folder / model) for model in ("fcn32s", "fcn8s")]


def predicted(run: fcnlab.TrainedRun, photo: Path) -> dict[str, int]:
    """Return the number of pixels of each class in a photo."""
    model: fcnlab.TrainedModel = run.load(device="cpu")
    image = Image.open(photo)
    labels = model.predict(image)
    from_file, from_array = model.predict([photo, np.asarray(image)])
    assert (labels == from_file).all() and (labels == from_array).all()
    colours = model.palette[labels]
    shares = model.probabilities(photo)
    assert colours.shape == (*labels.shape, 3) and shares.shape == (len(model.classes), *labels.shape)
    return {name: int((labels == index).sum()) for index, name in enumerate(model.classes)}


def scored(run: fcnlab.TrainedRun, dataset: fcnlab.SegmentationDataset) -> fcnlab.Scores:
    """Score a model on the images of a data set."""
    model = run.load("cpu")
    classes = len(dataset.classes)
    matrices = [
        fcnlab.confusion_matrix(
            torch.as_tensor(model.predict(dataset.image(index))), torch.as_tensor(dataset.mask(index)), classes
        ).numpy()
        for index in range(len(dataset))
    ]
    return fcnlab.scores(np.sum(matrices, axis=0))


def compared(runs: list[fcnlab.TrainedRun], folder: Path) -> list[tuple[str, float]]:
    """Compare runs, and return their groups with their mean IoU."""
    report: fcnlab.ComparisonReport = fcnlab.compare([run.folder for run in runs])
    page = report.save(folder / "comparison")
    assert page.is_file() and report.markdown()
    return [(group.name, group.mean()) for group in report.groups]


def composed() -> fcnlab.FCN:
    """Build a network from the configuration of a command."""
    cfg = fcnlab.compose(["model=fcn16s", "model.backbone.width=4"])
    network = instantiate(cfg.model)
    assert isinstance(network, fcnlab.FCN)
    return network


def losses(network: fcnlab.FCN) -> list[float]:
    """Return some losses of a network on noise."""
    scores = network(torch.rand(2, 3, 64, 64))
    target = torch.randint(network.num_classes, (2, 64, 64))
    kinds = (fcnlab.CrossEntropy(), fcnlab.OHEM(), fcnlab.Focal(), fcnlab.Dice(), fcnlab.Lovasz())
    return [float(loss(scores, target)) for loss in kinds]


def mistakes() -> str:
    """Return the message about invalid settings."""
    try:
        fcnlab.compose(["model=fcn7s", "optim.lr=fast"])
    except fcnlab.UserError as error:
        return str(error)
    return ""


def main(folder: Path) -> None:
    """Use everything once."""
    photo = folder / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)).save(photo)
    runs = trained(folder)
    dataset = fcnlab.open_shapes(str(folder / "shapes"), "val", num_val=4, size=64)
    print(predicted(runs[1], photo), scored(runs[1], dataset).miou, compared(runs, folder))
    print(losses(composed()), mistakes())
