"""Test that numbers in the headers of experiments and backbones, and in docs, are those of the networks."""

import re

import pytest
import torch
from hydra.utils import instantiate
from torch.utils.flop_counter import FlopCounterMode

from fcnlab.config.locations import CONF
from fcnlab.evaluation.cost import count_macs
from fcnlab.models import FCN

COST = re.compile(r"^# Cost: .*?([\d.]+) GMACs forward(?:,| each) at (\d+)x(\d+)", re.MULTILINE)
BACKBONES = CONF / "model" / "backbone"
PAPERS = sorted((CONF / "experiment" / "paper").glob("*.yaml"))
COSTED = [path.stem for path in PAPERS if "GMACs" in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("name", COSTED)
def test_experiment_headers_state_the_cost_of_a_forward_pass(composed, name):
    """In whole GMACs, of a network on the meta device, at the size in the header."""
    text = (CONF / "experiment" / "paper" / f"{name}.yaml").read_text()
    match = COST.search(text)
    assert match, f"{name}: '# Cost: ... N GMACs forward each at ROWSxCOLS'"
    stated, rows, cols = match.groups()
    verb = "eval" if re.search(r"^# fcnlab eval ", text, re.MULTILINE) else "train"
    cfg = composed(f"experiment=paper/{name}", "model.weights=none", "model.backbone.weights=none", name=verb)
    with torch.device("meta"):
        model = instantiate(cfg.model, _convert_="all")
    assert f"{count_macs(model, int(rows), int(cols)) / 1e9:.{len(stated.partition('.')[2])}f}" == stated


PERFORMANCE = {
    "FCN-8s on VGG16, `padding=paper`": "model/backbone=vgg16_caffe",
    "FCN-8s on VGG16": "model/backbone=vgg16",
    "FCN-8s on ResNet-50": "model/backbone=resnet50",
}


def built(composed, *words: str) -> FCN:
    """Build a network on the meta device."""
    with torch.device("meta"):
        return instantiate(composed(*words, "model.backbone.weights=none").model, _convert_="all")


def gflop_of_a_step(model: FCN, rows: int, cols: int) -> float:
    with FlopCounterMode(display=False) as counter:
        model(torch.empty(1, 3, rows, cols, device="meta")).sum().backward()
    return counter.get_total_flops() / 1e9


@pytest.mark.slow
@pytest.mark.parametrize("row", PERFORMANCE)
def test_docs_state_the_work_of_the_networks(composed, repository, row):
    """Rounded once: 21.047 becomes 21.0, although 21.05 would become 21.1."""
    text = (repository / "docs/explanation/performance.md").read_text()
    (stated,) = (line.split("|")[2:5] for line in text.splitlines() if line.startswith(f"| {row} | "))
    model = built(composed, "model=fcn8s", PERFORMANCE[row])
    sizes = ((375, 500), (500, 500), (512, 512))
    measured = [f"{gflop_of_a_step(model, *size):,.0f} ({count_macs(model, *size) / 1e9:.1f})" for size in sizes]
    assert [cell.strip() for cell in stated] == measured


HEADERS = {path.stem: re.search(r"([\d.]+) M parameters", path.read_text()) for path in BACKBONES.glob("*.yaml")}


@pytest.mark.parametrize("name", sorted(name for name, stated in HEADERS.items() if stated))
def test_backbone_headers_state_the_number_of_parameters(composed, name):
    """Counted as in the papers for FCN-32s with 21 classes; rounded once."""
    stated = HEADERS[name][1]
    model = built(composed, "model=fcn32s", "data=voc", f"model/backbone={name}")
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert f"{count:.{len(stated.partition('.')[2])}f}" == stated


@pytest.mark.slow
def test_docs_state_the_cost_of_pad_100(composed, repository):
    text = (repository / "docs/explanation/fcn.md").read_text()
    padded, rows, cols, same = re.search(
        r"(\d+) GMACs for an image of (\d+)x(\d+), of which (\d+) are for", text
    ).groups()
    for stated, padding in ((padded, "paper"), (same, "same")):
        model = built(composed, "model=fcn8s", "model/backbone=vgg16", f"model.backbone.padding={padding}")
        assert f"{count_macs(model, int(rows), int(cols)) / 1e9:.0f}" == stated
