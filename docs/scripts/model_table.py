"""Every variant on every backbone, computed from the models: writes the table of docs/reference/networks.md.

python docs/scripts/model_table.py        (make table)
"""

import re
import sys
from pathlib import Path

import torch
from hydra.utils import instantiate

import fcnlab
from fcnlab.evaluation.cost import count_macs
from fcnlab.models import FCN, receptive_field
from fcnlab.models.measured_backbone import MeasuredBackbone

PAGE = Path(__file__).parents[1] / "reference/networks.md"
BEGIN, END = "<!-- made by: make table -->", "<!-- end of table -->"
SIDE = 500  # pixels, the side of an image
BACKBONES = {  # its pretrained weights
    "tiny": "none",
    "caffenet": "Caffe's, by PATH",
    "alexnet": "`imagenet`",
    "vgg16": "`imagenet`",
    "vgg16_caffe": "pytorch-fcn's `.pth`",
    "vgg16_bn": "`imagenet`",
    "googlenet": "BVLC's, by PATH",
    "googlenet_bn": "`imagenet`",
    "resnet50": "`imagenet`",
    "resnet101": "`imagenet`",
    "timm": "`imagenet` (timm's), some as packages (`pypi`)",
    "torchvision": "`imagenet`",
}
EXAMPLES = {"timm": "convnext_tiny", "torchvision": "efficientnet_b0"}  # of the options that build any net of a library
VARIANTS = ("fcn32s", "fcn16s", "fcn8s")  # fcn8s_atonce is fcn8s but for two factors


def build(variant: str, backbone: str) -> FCN:
    words = [f"model={variant}", f"model/backbone={backbone}", "model.backbone.weights=none"]
    words += [f"model.backbone.name={EXAMPLES[backbone]}"] if backbone in EXAMPLES else []
    with torch.device("meta"):
        return instantiate(fcnlab.compose(words).model, _convert_="all")


def row(backbone: str) -> str:
    models = [build(variant, backbone) for variant in VARIANTS]
    millions = [sum(value.numel() for value in model.parameters()) / 1e6 for model in models]
    work = [count_macs(model, SIDE, SIDE) / 1e9 for model in models]
    trunk = models[0].backbone
    if isinstance(trunk, MeasuredBackbone):
        field = trunk.measured.levels[32].receptive_field
    else:
        field = receptive_field(trunk.chain(32))
    stride, name = trunk.levels[32].grid.stride, f"`{backbone}`"
    if backbone in EXAMPLES:
        name += f", such as `{EXAMPLES[backbone]}`"
    numbers = [each_or_one([f"{value:.2f}" for value in millions]), each_or_one([f"{value:.1f}" for value in work])]
    return "| " + " | ".join([name, *numbers, str(field), str(stride), BACKBONES[backbone]]) + " |"


def each_or_one(values: list[str]) -> str:
    """Return the values of the variants, once if they are equal."""
    return " / ".join(values if len(set(values)) > 1 else values[:1])


def table() -> str:
    rows = [row(backbone) for backbone in BACKBONES]
    return "\n".join(
        [
            f"| backbone | parameters, M: 32s / 16s / 8s | GMACs at {SIDE}x{SIDE} | receptive field | stride"
            " | pretrained weights |",
            "|---|---:|---:|---:|---:|---|",
            *rows,
        ]
    )


def main() -> None:
    text = PAGE.read_text()
    PAGE.write_text(re.sub(f"{BEGIN}.*?{END}", f"{BEGIN}\n{table()}\n{END}", text, flags=re.DOTALL))


if __name__ == "__main__":
    sys.exit(main())
