"""The id of a recorded run in W&B: the recorded one, or one that follows from the record."""

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

from fcnlab.files.reading import bytes_of, path_inside, read_json
from fcnlab.runs.origins import nested_map
from fcnlab.runs.score_record import ID

EVALUATION_FILES = (".hydra/hydra.yaml", "metrics.json")  # an evaluation has no run.json, and so no id of its own
FILE_BYTES = 8 << 20


class RunId(NamedTuple):
    """An id; ``is_recorded`` means that a live run had it."""

    text: str
    is_recorded: bool


def run_id(folder: Path) -> RunId:
    """Return the id of a folder's run in W&B, always the same for the same record.

    It is the id of the live run, if that was recorded. Otherwise it is a hash: of the id that a training run gets at
    its first start, or of the files of an evaluation.

    Raises
    ------
    OSError, Unreadable
        A file cannot be read, or is over a limit.
    """
    facts = read_json(folder, "run.json") or {}
    scores = read_json(folder, "metrics.json") or {}
    recorded = _valid(facts, "wandb") or _valid(nested_map(scores, "wandb_run"), "id")
    if recorded:
        return RunId(recorded, True)
    own = _valid(facts, "id")
    parts = [own.encode()] if own else [_content(folder, name) for name in ("run.json", *EVALUATION_FILES)]
    digest = blake2b(digest_size=6)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return RunId(digest.hexdigest(), False)


def _valid(facts: Mapping[str, Any], name: str) -> str | None:
    value = facts.get(name)
    return value if isinstance(value, str) and ID.fullmatch(value) else None


def _content(folder: Path, name: str) -> bytes:
    try:
        return bytes_of(path_inside(folder, name), FILE_BYTES)
    except FileNotFoundError:
        return b""
