"""Evaluation of an image, from its files to the confusion matrix: FCN-8s on VGG16 against pytorch-fcn's ``validate``.

python benchmarks/evaluation_step.py       a minute; more --rounds for a smaller spread

The rival is its data set (PIL, float64 minus the mean), model, loss, best class on the CPU and histogram, without the
images that it draws and the checkpoint that it writes, in its favour. Ours is a validation step, also with the loss.
Each round takes the next image of VOC val, or a generated image of the same size if VOC is missing.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

import ours
import rivals
from fcnlab.data import SegmentationDataset
from fcnlab.data.samples import EvaluationSamples, collate
from fcnlab.metrics.confusion import ImageConfusions
from input_pipeline import open_images

CLASSES = 21
THEIRS = "pytorch-fcn, fp32"
Evaluation = Callable[[int], np.ndarray]  # from the index of an image to its confusion matrix


def their_evaluation(rival: rivals.PyTorchFCN, dataset: SegmentationDataset, device: torch.device) -> Evaluation:
    """Return pytorch-fcn's evaluation, with random weights."""
    net = rivals.drawn(rival.net(CLASSES)).to(device).eval()
    loader = torch.utils.data.default_collate
    data_set = rival.images(dataset.images, dataset.masks)

    def once(index: int) -> np.ndarray:
        image, target = (part.to(device) for part in loader([data_set[index]]))
        with torch.no_grad():
            scores = net(image)
        assert rival.cross_entropy(scores, target, size_average=False).item() >= 0
        prediction = scores.max(1)[1].cpu().numpy()
        return rival.count(target[0].cpu().numpy().flatten(), prediction[0].flatten(), CLASSES)

    return once


def our_evaluations(words: Sequence[str], dataset: SegmentationDataset, device: torch.device) -> dict[str, Evaluation]:
    """Return fcnlab's evaluations, with random weights, in both memory formats and each precision."""
    found = {}
    for layout in ("", ", channels_last"):
        built = ours.build(*words, f"speed.channels_last={bool(layout)}", device=device)
        for name, precision in ours.PRECISIONS.items():
            found[f"fcnlab, {name}{layout}"] = our_evaluation(built, dataset, precision)
    return found


def our_evaluation(built: ours.Ours, dataset: SegmentationDataset, precision: torch.dtype) -> Evaluation:
    samples, device = EvaluationSamples(dataset), built.segmenter.device
    built.segmenter.eval()

    def once(index: int) -> np.ndarray:
        built.segmenter.confusions = ImageConfusions(len(dataset), CLASSES).to(device)
        batch = {key: value.to(device) for key, value in collate([samples[index]]).items()}
        assert built.evaluate(batch, precision)["loss"].item() >= 0
        return built.segmenter.confusions.matrices[index].cpu().numpy()

    return once


def measure(
    rival: rivals.PyTorchFCN, words: Sequence[str], dataset: SegmentationDataset, device: torch.device
) -> dict[str, dict[str, float]]:
    """Return fcnlab's speed relative to pytorch-fcn over all images; all must count the same ground truth."""
    evaluations = {THEIRS: their_evaluation(rival, dataset, device)} | our_evaluations(words, dataset, device)
    targets = [once(0).sum(1) for once in evaluations.values()]
    assert all(np.array_equal(target, targets[0]) for target in targets)
    return measuring.summary(measuring.in_turns(evaluations, len(dataset), measuring.clock(device)), THEIRS, items=1)


def main() -> None:
    args = measuring.options(__doc__, root="../shared/data", rounds=5)
    measuring.on_cores(args.threads)
    device, rival = measuring.chosen_device(args.device), rivals.pytorch_fcn()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        images = open_images(args.root, args.rounds, Path(folder), "val")
        found = measure(rival, ours.VGG16, images, device) if rival else {}
    absent = [] if rival else [rivals.NO_PYTORCH_FCN]
    title = f"{len(images)} images of {images.title}, FCN-8s on VGG16; {device}"
    measuring.report(title, found, args.json, not_measured=absent)


if __name__ == "__main__":
    main()
