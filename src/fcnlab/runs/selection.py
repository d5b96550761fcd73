"""How the weights that are scored were selected: the part ``selection`` of metrics.json and of a checkpoint's record.

A checkpoint that was selected for its score on some images scores higher on them than on other images, and the more
checkpoints there were to choose from, the larger this effect is. So a run records which images those were, and every
report of its scores states it.

In a checkpoint:

``checkpoint``
    "best" (kept for its score) or "last" (the latest state, whatever its score).
``monitor``, ``mode``
    What it was selected by, "val/miou" and "max"; None where nothing was selected.
``set``, ``list``
    The title and the list of the validation images.
``among``
    How many validations there had been.
``step``
    Of the checkpoint.
``val_miou``
    Mean IoU on the validation images; None where these weights were not validated.
``images``
    The fingerprints of the images validated on, one behind the other.

In metrics.json, instead of ``images``: ``shared_images``, how many of the scored images are among these, and
``same_images``, whether all are; ``stopped_early``, whether early stopping ended the training. An evaluation has no
``val_miou``. Its ``at_least`` is true where the run's own record is missing: the run may then have had more validations
than its checkpoint knows of.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

FINGERPRINT = 16  # characters
KINDS: dict[str, tuple[type, ...]] = {
    "checkpoint": (str,),
    "monitor": (str, type(None)),
    "mode": (str, type(None)),
    "set": (str,),
    "list": (str,),
    "among": (int,),
    "step": (int,),
}
OF_A_CHECKPOINT: dict[str, tuple[type, ...]] = KINDS | {"val_miou": (float, type(None)), "images": (str,)}
OF_A_RECORD: dict[str, tuple[type, ...]] = KINDS | {"same_images": (bool,), "shared_images": (int,)}
OPTIMISTIC = "Scores on images that a checkpoint was selected on are optimistic"
Facts = Mapping[str, Any]


def is_one(found: Any, kinds: Mapping[str, tuple[type, ...]]) -> bool:
    """Whether a file that may be foreign holds a selection of these values."""
    return isinstance(found, dict) and all(key in found and type(found[key]) in kinds[key] for key in kinds)


def recorded_selection(record: Facts) -> Facts | None:
    """The selection that a metrics.json tells; None where it is not known."""
    found = record.get("selection")
    return found if is_one(found, OF_A_RECORD) else None


def selection_of_scored(selected: Facts | None, fingerprints: Sequence[str]) -> dict[str, Any] | None:
    """What metrics.json says of a checkpoint that was scored on images with these fingerprints."""
    if selected is None:
        return None
    known = count_validated(selected)
    shared = sum(one in known for one in fingerprints)
    facts = {key: value for key, value in selected.items() if key != "images"}
    return facts | {"same_images": shared == len(fingerprints), "shared_images": shared}


def count_validated(selected: Facts) -> set[str]:
    """The fingerprints of the validation images."""
    text = selected["images"]
    return {text[start : start + FINGERPRINT] for start in range(0, len(text), FINGERPRINT)}


def describe_selection(selection: Facts | None) -> str:
    """A selection in words that follow "The weights were"."""
    if selection is None:
        return "selected in an unknown way (by other software)"
    return _selected(selection, validations([selection]))


def notes(selections: Iterable[Facts | None]) -> list[str]:
    """How the weights of compared runs were selected: one sentence or two for all runs that were selected alike."""
    alike: dict[str, list[Facts | None]] = {}
    for selection in selections:
        alike.setdefault(describe_selection(selection and {**selection, "among": 0}), []).append(selection)
    every = sum(map(len, alike.values()))
    return [_note(found, every) for found in alike.values()]


def _note(alike: list[Facts | None], every: int) -> str:
    known = [selection for selection in alike if selection is not None]
    words = _selected(known[0], validations(known)) if known else describe_selection(None)
    whose = "all runs" if len(alike) == every > 1 else "the run" if every == 1 else f"{len(alike)} of {every} runs"
    uneven = len({one["among"] for one in known}) > 1 and known[0]["monitor"] and known[0]["shared_images"]
    more = ", and more so after more validations" if uneven else ""
    warning = f" {OPTIMISTIC}{more}." if any(map(is_optimistic, known)) else ""
    return f"The weights of {whose} were {words}.{warning}"


def is_optimistic(selection: Facts | None) -> bool:
    """Whether the checkpoint was selected, from more than one, on images that were scored."""
    if selection is None or not selection["monitor"] or not selection["shared_images"]:
        return False
    return selection["among"] > 1 or bool(selection.get("at_least"))


def _selected(selection: Facts, among: str) -> str:
    if not selection["monitor"]:
        stopped = (
            ", but early stopping on validation scores ended the training" if selection.get("stopped_early") else ""
        )
        return f"those of the last step: no checkpoint was selected{stopped}"
    by = "" if selection["monitor"] == "val/miou" else f" by {selection['monitor']}"
    if selection["same_images"]:
        return f"selected{by} on this set, among {among}"
    title, shared = selection["set"], selection["shared_images"] or "none"
    return f"selected{by} on {title}, among {among}; {title} contains {shared} of the scored images"


def validations(selections: Sequence[Facts]) -> str:
    """How many there were to choose from: "4 validations", "4 to 8 validations", "at least 4 validations"."""
    counts = sorted({one["among"] for one in selections})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    least = "at least " if any(one.get("at_least") for one in selections) else ""
    return f"{least}{number} validation{'' if counts == [1] else 's'}"
