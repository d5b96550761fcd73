"""Evaluating a picture, from its files to the confusion matrix: FCN-8s on VGG16 against pytorch-fcn's ``validate``.

python benchmarks/evaluation_step.py       a minute; more --rounds for a smaller spread

Theirs is its data set (PIL, float64 less the mean), its net, its loss, the best class on the CPU and its histogram;
without the pictures that it draws and the checkpoint that it writes, in its favour. Ours is a validation step, with the
loss, too. Each round takes VOC's next picture (val), or a drawn one of its size where VOC is not there.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

import ours
import rivals
from fcnlab.data import Pictures
from fcnlab.data.module import EvaluationSamples, collate
from fcnlab.metrics import PictureConfusions
from input_pipeline import open_pictures

CLASSES = 21
THEIRS = "pytorch-fcn, fp32"
Evaluation = Callable[[int], np.ndarray]  # of a picture, by its place: the confusion matrix


def their_evaluation(rival: rivals.PyTorchFCN, pictures: Pictures, device: torch.device) -> Evaluation:
    """With weights drawn."""
    net = rivals.drawn(rival.net(CLASSES)).to(device).eval()
    loader = torch.utils.data.default_collate
    data_set = rival.pictures(pictures.images, pictures.masks)

    def once(index: int) -> np.ndarray:
        image, truth = (part.to(device) for part in loader([data_set[index]]))
        with torch.no_grad():
            scores = net(image)
        assert rival.cross_entropy(scores, truth, size_average=False).item() >= 0
        prediction = scores.max(1)[1].cpu().numpy()
        return rival.count(truth[0].cpu().numpy().flatten(), prediction[0].flatten(), CLASSES)

    return once


def our_evaluations(words: Sequence[str], pictures: Pictures, device: torch.device) -> dict[str, Evaluation]:
    """With weights drawn, in both memory formats and each precision."""
    found = {}
    for layout in ("", ", channels_last"):
        built = ours.build(*words, f"speed.channels_last={bool(layout)}", device=device)
        for name, precision in ours.PRECISIONS.items():
            found[f"fcnlab, {name}{layout}"] = our_evaluation(built, pictures, precision)
    return found


def our_evaluation(built: ours.Ours, pictures: Pictures, precision: torch.dtype) -> Evaluation:
    samples, device = EvaluationSamples(pictures), built.segmenter.device
    built.segmenter.eval()

    def once(index: int) -> np.ndarray:
        built.segmenter.confusions = PictureConfusions(len(pictures), CLASSES).to(device)
        batch = {key: value.to(device) for key, value in collate([samples[index]]).items()}
        assert built.evaluate(batch, precision)["loss"].item() >= 0
        return built.segmenter.confusions.matrices[index].cpu().numpy()

    return once


def measure(
    rival: rivals.PyTorchFCN, words: Sequence[str], pictures: Pictures, device: torch.device
) -> dict[str, dict[str, float]]:
    """How many times as fast as theirs ours is, over all pictures; all must have counted the same truth."""
    evaluations = {THEIRS: their_evaluation(rival, pictures, device)} | our_evaluations(words, pictures, device)
    truths = [once(0).sum(1) for once in evaluations.values()]
    assert all(np.array_equal(truth, truths[0]) for truth in truths)
    return measuring.summary(measuring.in_turns(evaluations, len(pictures), measuring.clock(device)), THEIRS, items=1)


def main() -> None:
    asked = measuring.options(__doc__, root="../shared/data", rounds=5)
    measuring.on_cores(asked.threads)
    device, rival = measuring.chosen_device(asked.device), rivals.pytorch_fcn()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        pictures = open_pictures(asked.root, asked.rounds, Path(folder), "val")
        found = measure(rival, ours.VGG16, pictures, device) if rival else {}
    absent = [] if rival else [rivals.NO_PYTORCH_FCN]
    title = f"{len(pictures)} pictures of {pictures.title}, FCN-8s on VGG16; {device}"
    measuring.report(title, found, asked.json, not_measured=absent)


if __name__ == "__main__":
    main()
