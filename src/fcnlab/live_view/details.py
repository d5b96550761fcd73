"""What the view shows of one selected run: its settings, the end of its log, and the images that it has drawn."""

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from fcnlab.comparison.runs import JOB_LOG
from fcnlab.escaping import escape_line, without_secrets
from fcnlab.files.reading import bytes_of, path_inside
from fcnlab.live_view.run_state import RunState, number, shown, whole_number
from fcnlab.runs.origins import nested_map
from fcnlab.sweeps.sweep_table import last_lines

LOGS = (JOB_LOG, "train.log", "eval.log")  # a job's log also has what its process printed, such as tracebacks
LOG_LINES = 300
MOST_IMAGES, IMAGES_LOOKED_AT = 8, 1000
IMAGE_BYTES = 16 << 20
PNG = b"\x89PNG\r\n\x1a\n"


def details(run: RunState, images: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the details of a run as plain values; ``images`` are its images by the numbers given out for them."""
    facts = run.facts
    overrides = facts.get("overrides")
    settings = overrides if isinstance(overrides, list) else run.job.overrides if run.job else []
    cost = nested_map(run.scores, "cost")
    return {
        "settings": [shown(word) for word in settings[:200] if not str(word).startswith("sweep.")],
        "started": shown(facts.get("started")),
        "ended": shown(facts.get("ended")),
        "starts": whole_number(facts.get("starts")),
        "host": shown(facts.get("host")),
        "commit": shown(facts.get("commit"))[:10],
        "wandb": shown(facts.get("wandb")),
        "images_per_second": number(cost.get("images_per_second")),
        "log": log_tail(run.folder),
        "images": images,
    }


def log_tail(folder: Path) -> list[str]:
    """Return the last lines of a run's log, escaped and without secrets."""
    for name in LOGS:
        try:
            path = path_inside(folder, name)
        except (OSError, ValueError):
            continue
        if lines := last_lines(path, LOG_LINES):
            return [without_secrets(escape_line(line)) for line in lines]
    return []


class Images:
    """The images of runs by numbers that are given out here, so that no request names a file."""

    def __init__(self):
        self._numbers: dict[tuple[Path, int], int] = {}
        self._paths: list[tuple[Path, str]] = []

    def of(self, folder: Path) -> list[dict[str, Any]]:
        """Return the numbers and names of the latest images of a run, those of one evaluation by name."""
        files = islice(_image_files(folder / "predictions"), IMAGES_LOOKED_AT)
        dated = sorted((path.stat().st_mtime_ns, path) for path in files if path.is_file())
        latest = sorted(dated[-MOST_IMAGES:], key=lambda each: each[1])
        return [{"number": self._number(folder, path, when), "name": _name(folder, path)} for when, path in latest]

    def _number(self, folder: Path, path: Path, when: int) -> int:
        if (path, when) not in self._numbers:
            self._numbers[path, when] = len(self._paths)
            self._paths.append((folder, str(path.relative_to(folder))))
        return self._numbers[path, when]

    def content(self, number: int) -> bytes:
        """Return a PNG file.

        Raises
        ------
        LookupError, OSError, ValueError
            No image has this number; it cannot be read; it is no PNG, is too large, or a link leads out of the run.
        """
        folder, name = self._paths[number]
        data = bytes_of(path_inside(folder, name), IMAGE_BYTES)
        if not data.startswith(PNG):
            raise ValueError(f"{name} is no PNG")
        return data


def _image_files(folder: Path) -> Iterator[Path]:
    for place, _, names in islice(os.walk(folder), IMAGES_LOOKED_AT):
        yield from (Path(place, name) for name in names if name.endswith(".png"))


def _name(folder: Path, path: Path) -> str:
    return escape_line(str(path.relative_to(folder / "predictions").with_suffix("")))
