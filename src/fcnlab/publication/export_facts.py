"""What an exported file says about itself: input, outputs, classes, normalisation, scores, licence."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from fcnlab.comparison.runs import Run
from fcnlab.escaping import escape_line, without_secrets
from fcnlab.metrics.scores import SCORES
from fcnlab.models.backbone import InputConvention
from fcnlab.publication.card_records import CardRecords
from fcnlab.publication.exported_program import CLASS_MAP, INPUT, ImageSize
from fcnlab.publication.exported_program import SCORES as SCORE_MAP
from fcnlab.publication.model_card import PROTOCOL, Model, fold_of
from fcnlab.runs.selection import notes
from fcnlab.version import __version__

DECISION = "argmax of the scores; the first class where several are equal. inference=whole, postprocess=none"
NO_LICENSE = "not stated; the licences of the training images and of the initial weights may restrict it"

LONGEST, MOST_SCORES = 500, 20  # characters of a text, and evaluations, that are copied from another exported file


class Stated(NamedTuple):
    """What the exported file that is exported again states: a licence, None without one, and scores of its weights."""

    license: str | None
    scores: list[dict[str, Any]]


def export_facts(
    model: Model,
    net: nn.Module,
    palette: Sequence[Sequence[int]],
    records: CardRecords,
    checkpoint: Mapping[str, Any],
    license: str | None,
    stated: Stated,
) -> dict[str, Any]:
    """Return the facts that every format has; ``checkpoint`` are name and hash of the exported file.

    ``stated`` are used where neither ``license`` nor ``records`` have something.
    """
    return {
        "producer": f"fcnlab {__version__}",
        "network": {"title": without_secrets(model.title), "parameters": model.parameters},
        "classes": list(model.classes),
        "palette": [list(colour) for colour in palette],
        "normalisation": normalisation(net),
        "checkpoint": {**checkpoint, "step": records.step, "trained_with": _version(model)},
        "scores": [_scores(run) for run in records.evaluations] or stated.scores,
        "license": license or stated.license or NO_LICENSE,
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


def stated_in(facts: Mapping[str, Any]) -> Stated:
    """Return licence and scores in the facts of an exported file, which is foreign: only what we write, as one line."""
    license, scores = _text(facts.get("license")), facts.get("scores")
    known = scores[:MOST_SCORES] if isinstance(scores, list) else []
    return Stated(
        license if license != NO_LICENSE else None, [_stated_scores(each) for each in known if isinstance(each, dict)]
    )


def _stated_scores(entry: Mapping[str, Any]) -> dict[str, Any]:
    counts = {key: entry[key] for key in ("images", "of") if type(entry.get(key)) is int and 0 <= entry[key] < 2**40}
    protocol = entry.get("protocol")
    protocol = protocol if isinstance(protocol, dict) else {}
    texts = {key: text for key in PROTOCOL if (text := _text(protocol.get(key)))}
    more = {key: text for key in ("fold", "selection") if (text := _text(entry.get(key)))}
    scores = {name: entry[name] for name in SCORES if type(entry.get(name)) in (int, float) and 0 <= entry[name] <= 1}
    return {**counts, "protocol": texts, **more, **scores}


def _text(value: object) -> str | None:
    """Return foreign text as one short line; None for what is no text or has no characters."""
    if not isinstance(value, str):
        return None
    return escape_line(without_secrets(value[:LONGEST].strip())) or None


def _scores(run: Run) -> dict[str, Any]:
    """Return the scores of an evaluation, as ratios, its protocol, its fold and how the weights were selected."""
    protocol = {key: run.protocol[key] for key in PROTOCOL if run.protocol.get(key) is not None}
    texts = {key: without_secrets(str(value)) for key, value in protocol.items()}
    scores = {name: round(run.score(name), 6) for name in SCORES if run.score(name) == run.score(name)}
    listed, fold = run.protocol.get("of"), fold_of(run)
    return {
        "images": len(run.names),
        **({"of": listed} if isinstance(listed, int) and listed > len(run.names) else {}),
        "protocol": texts,
        **({"fold": fold} if fold else {}),
        "selection": without_secrets(" ".join(notes([run.selection]))),
        **scores,
    }
