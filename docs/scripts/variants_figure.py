"""Draw figure 4 of CVPR 2015 on VOC images: image, prediction of each checkpoint, ground truth.

    python docs/scripts/variants_figure.py DATA_ROOT OUT.png NAME,NAME,... RUN RUN RUN

Nothing of it is committed: the images are others'.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from fcnlab.data import open_voc
from fcnlab.runs.drawing import colours
from fcnlab.training.checkpoints import read_checkpoint, rebuild_model

HEIGHT = 160  # pixels of a row
TITLE = 14


def tile(image: np.ndarray, title: str) -> Image.Image:
    """An image of one height under its title."""
    resized = Image.fromarray(image)
    resized = resized.resize((round(resized.width * HEIGHT / resized.height), HEIGHT), Image.Resampling.NEAREST)
    framed = Image.new("RGB", (resized.width + 4, HEIGHT + TITLE), "white")
    framed.paste(resized, (2, TITLE))
    ImageDraw.Draw(framed).text((3, 1), title, fill="black")
    return framed


def beside(tiles: list[Image.Image], vertically: bool = False) -> Image.Image:
    size = [sum(one.size[axis] for one in tiles) for axis in (0, 1)]
    largest = [max(one.size[axis] for one in tiles) for axis in (0, 1)]
    sheet = Image.new("RGB", (largest[0], size[1]) if vertically else (size[0], largest[1]), "white")
    place = 0
    for one in tiles:
        sheet.paste(one, (0, place) if vertically else (place, 0))
        place += one.size[1 if vertically else 0]
    return sheet


@torch.inference_mode()
def main(root: str, out: str, names: str, *runs: str) -> None:
    dataset = open_voc(root, "val")
    checkpoints = {Path(run).name: read_checkpoint(Path(run) / "checkpoints" / "best.ckpt") for run in runs}
    models = {name: rebuild_model(checkpoint, name, []).eval() for name, checkpoint in checkpoints.items()}
    rows = []
    for name in names.split(","):
        place = dataset.names.index(name)
        image, mask = dataset.image(place), dataset.mask(place)
        batch = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        predictions = {title: model(batch).argmax(1)[0].numpy() for title, model in models.items()}
        shown = {
            title: colours(labels, dataset.palette) for title, labels in (predictions | {"ground truth": mask}).items()
        }
        rows.append(beside([tile(image, name), *(tile(values, title) for title, values in shown.items())]))
    beside(rows, vertically=True).save(out)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
