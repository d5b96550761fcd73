"""Evaluate a checkpoint as it is, and with its features taken to lie where they lie in images of one size only.

    python scripts/alignment.py CHECKPOINT [key=value ...]

The second evaluation leaves out the padding of a backbone of timm or torchvision (docs/how-to/backbones.md), and lets
timm pad by the size of the image: the grids of its levels are then right for some sizes only. Settings are those of
fcnlab eval, such as data=voc data.root=FOLDER.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

from hydra.core.hydra_config import HydraConfig

from fcnlab.cli import main as fcnlab
from fcnlab.models import timm_backbone
from fcnlab.models.measured_grids import Frame


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", help="of a model whose backbone pads its images")
    parser.add_argument("settings", nargs="*", help="settings of fcnlab eval")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="alignment-") as name:
        aligned = mean_iou(args.checkpoint, args.settings, Path(name, "aligned"))
        with patch.object(Frame, "padding", lambda *_: (0, 0)), patch.object(timm_backbone, "_fix_padding"):
            shifted = mean_iou(args.checkpoint, args.settings, Path(name, "shifted"))
    print(f"mIoU: {aligned:.2%} aligned, {shifted:.2%} without padding, {100 * (shifted - aligned):+.2f} points")


def mean_iou(checkpoint: str, settings: list[str], folder: Path) -> float:
    words = ["eval", f"checkpoint={checkpoint}", f"hydra.run.dir={folder}", "logger=csv", *settings]
    HydraConfig.instance().cfg = None  # like a new process
    with patch.object(sys, "argv", ["fcnlab", *words]):
        fcnlab()
    return json.loads((folder / "metrics.json").read_text())["miou"]


if __name__ == "__main__":
    main()
