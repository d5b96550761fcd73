"""Figures in the headers of experiments are what the nets have."""

import re

import pytest
import torch
from hydra.utils import instantiate

from fcnlab.config import CONF
from fcnlab.tasks.scoring import macs

COST = re.compile(r"^# Cost: .*?([\d.]+) GMACs forward(?:,| each) at (\d+)x(\d+)", re.MULTILINE)
PAPERS = sorted((CONF / "experiment" / "paper").glob("*.yaml"))
COSTED = [path.stem for path in PAPERS if "GMACs" in path.read_text()]


@pytest.mark.slow
@pytest.mark.parametrize("name", COSTED)
def test_an_experiment_s_header_says_what_a_forward_pass_costs(composed, name):
    """In whole GMACs, of a net without values, at the size that the header names."""
    text = (CONF / "experiment" / "paper" / f"{name}.yaml").read_text()
    found = COST.search(text)
    assert found, f"{name}: '# Cost: ... N GMACs forward each at ROWSxCOLS'"
    stated, rows, cols = found.groups()
    verb = "eval" if re.search(r"^# fcnlab eval ", text, re.MULTILINE) else "train"
    cfg = composed(f"experiment=paper/{name}", "model.weights=none", "model.backbone.weights=none", name=verb)
    with torch.device("meta"):
        net = instantiate(cfg.model, _convert_="all")
    assert f"{macs(net, int(rows), int(cols)) / 1e9:.{len(stated.partition('.')[2])}f}" == stated


PERFORMANCE = {
    "FCN-8s on VGG16, `padding=paper`": "model/backbone=vgg16_caffe",
    "FCN-8s on VGG16": "model/backbone=vgg16",
    "FCN-8s on ResNet-50": "model/backbone=resnet50",
}


@pytest.mark.slow
@pytest.mark.parametrize("row", PERFORMANCE)
def test_the_work_in_docs_is_what_the_nets_have(composed, repository, row):
    """Rounded once: 21.047 is 21.0, though 21.05 would be 21.1."""
    text = (repository / "docs" / "performance.md").read_text()
    (stated,) = (line.split("|")[2:5] for line in text.splitlines() if line.startswith(f"| {row} | "))
    with torch.device("meta"):
        net = instantiate(composed("model=fcn8s", PERFORMANCE[row], "model.backbone.weights=none").model)
    found = [f"{macs(net, *size) / 1e9:.1f}" for size in ((375, 500), (500, 500), (512, 512))]
    assert [re.findall(r"\(([\d.]+)\)", cell) for cell in stated] == [[value] for value in found]
