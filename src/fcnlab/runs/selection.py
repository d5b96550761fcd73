"""How an evaluated checkpoint was selected: the part ``selection`` of metrics.json and of a checkpoint's record.

A checkpoint that was selected by its score on some images scores higher on them than on other images, and the more
checkpoints there were to choose from, the larger this effect is. So a run records these images, and every report of its
scores mentions them.

In a checkpoint:

``checkpoint``
    "best" (kept for its score) or "last" (the latest state, whatever its score).
``monitor``, ``mode``
    The selection criterion, "val/miou" and "max"; None if nothing was selected.
``set``, ``list``
    The title and the list of the validation images.
``among``
    Number of validations until then.
``step``
    Of the checkpoint.
``val_miou``
    Mean IoU on the validation images; None if these weights were not validated.
``images``
    The concatenated fingerprints of the validation images.

In metrics.json, instead of ``images``: ``shared_images``, how many of the scored images are among these, and
``same_images``, whether all are; ``stopped_early``, whether early stopping ended the training. An evaluation has no
``val_miou``. Its ``at_least`` is true if the run's own record is missing: the run may then have had more validations
than its checkpoint knows of.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
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
CHECKPOINT_TYPES: dict[str, tuple[type, ...]] = KINDS | {"val_miou": (float, type(None)), "images": (str,)}
RECORD_TYPES: dict[str, tuple[type, ...]] = KINDS | {"same_images": (bool,), "shared_images": (int,)}
OPTIMISTIC = "Scores on images that a checkpoint was selected on are optimistic"
Facts = Mapping[str, Any]


def is_valid_selection(value: Any, kinds: Mapping[str, tuple[type, ...]]) -> bool:
    """Return whether an untrusted value is a selection with entries of these types."""
    return isinstance(value, dict) and all(key in value and type(value[key]) in kinds[key] for key in kinds)


def recorded_selection(record: Facts) -> Facts | None:
    """Return the selection in a metrics.json; None if unknown."""
    selection = record.get("selection")
    return selection if is_valid_selection(selection, RECORD_TYPES) else None


def selection_of_scored(selected: Facts | None, fingerprints: Sequence[str]) -> dict[str, Any] | None:
    """Return the selection entry of metrics.json for a checkpoint evaluated on images with these fingerprints."""
    if selected is None:
        return None
    validated = validated_fingerprints(selected)
    shared = sum(fingerprint in validated for fingerprint in fingerprints)
    facts = {key: value for key, value in selected.items() if key != "images"}
    return facts | {"same_images": shared == len(fingerprints), "shared_images": shared}


def selection_of_ensemble(
    selections: Sequence[Facts | None], fingerprints: Callable[[], Sequence[str]]
) -> Facts | None:
    """Return the selection, of those in several checkpoints, that makes scores on some images most optimistic.

    None if one of them is unknown.
    """
    known = [selection for selection in selections if selection is not None]
    if not known or len(known) < len(selections):
        return None

    def optimism(selection: Facts) -> tuple[bool, int]:
        scored = selection_of_scored(selection, fingerprints())
        return is_optimistic(scored), scored["shared_images"] if scored else 0

    return max(known, key=optimism)


def validated_fingerprints(selected: Facts) -> set[str]:
    """Return the fingerprints of the validation images."""
    text = selected["images"]
    return {text[start : start + FINGERPRINT] for start in range(0, len(text), FINGERPRINT)}


def describe_selection(selection: Facts | None) -> str:
    """Describe a selection, as the end of a sentence that starts with "The weights were"."""
    if selection is None:
        return "selected in an unknown way (by other software)"
    return _selected(selection, validations([selection]))


def notes(selections: Iterable[Facts | None]) -> list[str]:
    """Describe the selection of compared runs: one or two sentences for all runs with the same kind of selection."""
    by_description: dict[str, list[Facts | None]] = {}
    for selection in selections:
        by_description.setdefault(describe_selection(selection and {**selection, "among": 0}), []).append(selection)
    every = sum(map(len, by_description.values()))
    return [_note(group, every) for group in by_description.values()]


def _note(selections: list[Facts | None], total: int) -> str:
    known = [selection for selection in selections if selection is not None]
    words = _selected(known[0], validations(known)) if known else describe_selection(None)
    whose = (
        "all runs"
        if len(selections) == total > 1
        else "the run"
        if total == 1
        else f"{len(selections)} of {total} runs"
    )
    counts_differ = len({one["among"] for one in known}) > 1 and known[0]["monitor"] and known[0]["shared_images"]
    more = ", and more so after more validations" if counts_differ else ""
    warning = f" {OPTIMISTIC}{more}." if any(map(is_optimistic, known)) else ""
    return f"The weights of {whose} were {words}.{warning}"


def is_optimistic(selection: Facts | None) -> bool:
    """Return whether the checkpoint was selected from several on images that were evaluated."""
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
    """Format the number of validations: "4 validations", "4 to 8 validations", "at least 4 validations"."""
    counts = sorted({selection["among"] for selection in selections})
    number = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    least = "at least " if any(selection.get("at_least") for selection in selections) else ""
    return f"{least}{number} validation{'' if counts == [1] else 's'}"
