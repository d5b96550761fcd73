"""Draw the figures of docs/explanation/fcn.md, computed from the models.

python docs/scripts/figures.py        (make figures)
"""

import itertools
import sys
from pathlib import Path

import matplotlib as mpl
import torch

from fcnlab.models import VGG16, FeatureMap, Grid, Upsample, receptive_field
from fcnlab.models.geometry import IMAGE

mpl.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parents[1] / "images"
PIXELS = 500  # rows of the image


def vgg16(padding: str) -> VGG16:
    with torch.device("meta"):
        return VGG16(padding=padding).eval()


def unpadded() -> tuple[Grid, int]:
    """Return the grid and the number of cells with the classifier's padding: 1 in each 3x3 convolution, none in fc6."""
    model = vgg16("paper")
    model.features[0].padding = (1, 1)
    cells = model(torch.empty(1, 3, PIXELS, PIXELS, device="meta"))[32].data.shape[2]
    return IMAGE.through(model.chain(32)), cells


def padding_figure() -> None:
    """Draw the positions of the stride-32 map and their receptive field."""
    cases = {"fc6 unpadded, as in the classifier": unpadded()}
    for name, padding in (("padding=paper: 100 around the image", "paper"), ("padding=same", "same")):
        model = vgg16(padding)
        cells = model(torch.empty(1, 3, PIXELS, PIXELS, device="meta"))[32].data.shape[2]
        cases[name] = (model.levels[32].grid, cells)
    field = receptive_field(vgg16("same").chain(32))
    figure, ax = plt.subplots(figsize=(9, 3), dpi=100)
    ax.axvspan(0, PIXELS, color="0.9")
    for place, (name, (grid, cells)) in enumerate(cases.items()):
        centres = [grid.origin + grid.stride * cell for cell in range(cells)]
        height = -float(place)
        ax.plot(centres, [height] * cells, "o", ms=4, color=f"C{place}")
        for centre in (centres[0], centres[-1]):
            ax.plot([centre - field / 2, centre + field / 2], [height - 0.12, height - 0.12], color=f"C{place}", lw=1.5)
        ax.text(-220, height + 0.22, f"{name}: {cells} positions at {grid.stride}i + {grid.origin:g}", fontsize=9)
    ax.set(xlim=(-230, PIXELS + 230), ylim=(-2.5, 0.7), yticks=[], xlabel="row of pixels; the image is grey")
    ax.set_title(
        f"Positions of VGG16's stride-32 map on {PIXELS} pixels; lines: the {field} pixels that the outer ones see",
        fontsize=10,
    )
    save(figure, "fcn_padding")


def border_figure() -> None:
    """The sum of the weights with which a pixel gets scores."""
    figure, ax = plt.subplots(figsize=(6, 2.6), dpi=100)
    for padding in ("paper", "same"):
        grid = vgg16(padding).levels[32].grid
        line = Upsample(1, grid, IMAGE)(FeatureMap(torch.ones(1, 1, 16, 16), *grid))
        first, middle = round(-line.origin), line.data.shape[3] // 2
        rows = line.data[0, 0, first : first + 120, middle]
        ax.plot(rows, label=f"padding={padding}: {rows[0]:.2f} in row 0")
    ax.set(xlabel="row of pixels", ylabel="sum of weights", ylim=(0, 1.05))
    ax.legend(fontsize=8)
    save(figure, "fcn_border")


def impulse_figure() -> None:
    """Draw how the score of one position of the stride-32 map spreads over the pixels."""
    figure, ax = plt.subplots(figsize=(6, 2.6), dpi=100)
    for levels, name in (((32,), "FCN-32s"), ((32, 16), "FCN-16s"), ((32, 16, 8), "FCN-8s")):
        ax.plot(impulse(levels), label=name)
    ax.axvline(268.5, color="0.6", lw=0.8)
    ax.set(
        xlim=(225, 312),
        xlabel="row of pixels",
        ylabel="weight",
        title="position 8 of the coarsest level, at 32 * 8 + 12.5",
    )
    ax.legend(fontsize=8)
    save(figure, "fcn_impulse")


def impulse(levels: tuple[int, ...]) -> torch.Tensor:
    """Return the weights of the pixels in the row through one coarse cell, for the model with pad 100."""
    backbone = vgg16("paper")
    grids = [*(backbone.levels[level].grid for level in levels), IMAGE]
    coarse = torch.zeros(1, 1, 16, 16)
    coarse[..., 8, 8] = 1
    x = FeatureMap(coarse, *grids[0])
    for source, target in itertools.pairwise(grids):
        x = Upsample(1, source, target)(x)
    first = round(-x.origin)
    return x.data[0, 0, first : first + PIXELS].max(1).values


def save(figure, name: str) -> None:
    figure.tight_layout()
    figure.savefig(HERE / f"{name}.png", metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    padding_figure()
    border_figure()
    impulse_figure()


if __name__ == "__main__":
    sys.exit(main())
