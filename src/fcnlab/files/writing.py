"""Writing files whole or not at all, and never through a link."""

import json
import math
import os
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fcnlab.escaping import CONTROL_CHARACTERS

OWN_PART = re.compile(r"\.(\d+)@(.+)\.part(\.\w+)?", re.ASCII)


def write_json(path: Path, record: Mapping[str, Any]) -> None:
    """For people and programs: indented, letters as they are."""
    with atomic_write(path) as part:
        part.write_text(as_json(record), encoding="utf-8")


def as_json(record: Mapping[str, Any]) -> str:
    """Indented, letters as they are; what would act in a terminal, or what no encoding has, as JSON's own escape."""
    lines = json.dumps(record, indent=2, ensure_ascii=False).split("\n")
    return "\n".join(CONTROL_CHARACTERS.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in lines) + "\n"


def number(value: float) -> float | None:
    """JSON knows no nan."""
    return None if math.isnan(value) else float(value)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of the real one when all went well.

    It is on the disk before it does, and its folder behind it: a kill or a power failure leaves the old or the new.
    What lies there under the path's name, which may be a link to any file, is not written to.
    """
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    try:
        yield part
        _sync(part)
        part.replace(path)
        _sync(path.parent)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def own_part(folder: Path, suffix: str = "") -> Path:
    """Where a process writes aside in a folder that others write to as well; short, whatever the files are called."""
    return folder / f".{os.getpid()}@{platform.node()}.part{suffix}"


def remove_own_parts(folder: Path) -> None:
    """Remove what killed processes of this machine left half written in a folder and in those below it."""
    for place, _, names in os.walk(folder):
        for name in names:
            found = OWN_PART.fullmatch(name)
            if found and found[2] == platform.node() and _has_ended(int(found[1])):
                with suppress(OSError):
                    Path(place, name).unlink()


def _has_ended(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # another user's
        return False
    return False


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
