"""What an exported file says about itself: input, outputs, classes, normalisation, scores, licence."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from fcnlab.comparison.runs import Run
from fcnlab.escaping import without_secrets
from fcnlab.metrics.scores import SCORES
from fcnlab.models.backbone import InputConvention
from fcnlab.publication.card_records import CardRecords
from fcnlab.publication.exported_program import CLASS_MAP, INPUT, ImageSize
from fcnlab.publication.exported_program import SCORES as SCORE_MAP
from fcnlab.publication.model_card import PROTOCOL, Model
from fcnlab.version import __version__

DECISION = "argmax of the scores; the first class where several are equal. inference=whole, postprocess=none"
NO_LICENSE = "not stated; the licences of the training images and of the initial weights may restrict it"


def export_facts(
    model: Model,
    net: nn.Module,
    palette: Sequence[Sequence[int]],
    records: CardRecords,
    checkpoint: Mapping[str, Any],
    license: str | None,
) -> dict[str, Any]:
    """Return the facts that every format has; ``checkpoint`` are name and hash of the exported file."""
    return {
        "producer": f"fcnlab {__version__}",
        "network": {"title": without_secrets(model.title), "parameters": model.parameters},
        "classes": list(model.classes),
        "palette": [list(colour) for colour in palette],
        "normalisation": normalisation(net),
        "checkpoint": {**checkpoint, "step": records.step, "trained_with": _version(model)},
        "scores": [_scores(run) for run in records.evaluations],
        "license": license or NO_LICENSE,
    }


def _version(model: Model) -> str:
    return f"fcnlab {model.version}" if model.version else "an unknown version of fcnlab"


def normalisation(net: nn.Module) -> dict[str, Any] | None:
    """Return what the network does to RGB in 0..1, ``(pixel * scale - mean) / std``; None where it is unknown."""
    found = next((module for module in net.modules() if isinstance(module, InputConvention)), None)
    if found is None:
        return None
    mean, std = (values.flatten().tolist() for values in (found.mean, found.std))
    return {
        "inside": True,
        "of": "pixels in 0..1",
        "order": found.order,
        "scale": found.scale,
        "mean": mean,
        "std": std,
    }


def interface(smallest: int, static: ImageSize | None, num_classes: int, with_scores: bool) -> dict[str, Any]:
    """Return input and outputs of a program; a side is a number where it is fixed."""
    batch, rows, cols = (1, *static) if static else ("batch", "rows", "cols")
    image = {"type": "uint8", "shape": [batch, 3, rows, cols], "colours": "RGB, 0..255", "smallest": smallest}
    outputs: dict[str, Any] = {CLASS_MAP: {"type": "uint8", "shape": [batch, rows, cols], "decision": DECISION}}
    if with_scores:
        outputs[SCORE_MAP] = {"type": "float32", "shape": [batch, num_classes, rows, cols]}
    return {"inputs": {INPUT: image}, "outputs": outputs}


def _scores(run: Run) -> dict[str, Any]:
    """Return the scores of an evaluation, as ratios, and its protocol."""
    protocol = {key: run.protocol[key] for key in PROTOCOL if run.protocol.get(key) is not None}
    texts = {key: without_secrets(str(value)) for key, value in protocol.items()}
    scores = {name: round(run.score(name), 6) for name in SCORES if run.score(name) == run.score(name)}
    return {"images": len(run.names), "protocol": texts, **scores}
