"""Atomic writes, never through a link."""

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
    """Write a record as indented JSON, with non-ASCII letters unescaped."""
    with atomic_write(path) as part:
        part.write_text(as_json(record), encoding="utf-8")


def as_json(record: Mapping[str, Any]) -> str:
    """Return indented JSON; control characters and surrogates are escaped, other non-ASCII letters are not."""
    lines = json.dumps(record, indent=2, ensure_ascii=False).split("\n")
    return "\n".join(CONTROL_CHARACTERS.sub(lambda match: f"\\u{ord(match[0]):04x}", line) for line in lines) + "\n"


def number(value: float) -> float | None:
    """Return a number, or None for nan, which JSON lacks."""
    return None if math.isnan(value) else float(value)


@contextmanager
def atomic_write(path: Path, keep_suffix: bool = False) -> Iterator[Path]:
    """Yield a temporary path that replaces the real one if no error occurs; libraries may need its suffix.

    The file is synced before the replacement, and its folder after it: a kill or a power failure leaves the old or the
    new file. An existing link at the path is replaced, not followed.
    """
    part = path.with_name(path.name + ".part" + (path.suffix if keep_suffix else ""))
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
    """Return the temporary file of this process in a folder that others write to as well."""
    return folder / f".{os.getpid()}@{platform.node()}.part{suffix}"


def remove_own_parts(folder: Path) -> None:
    """Remove temporary files that killed processes of this machine left in a folder or below it."""
    for place, _, names in os.walk(folder):
        for name in names:
            match = OWN_PART.fullmatch(name)
            if match and match[2] == platform.node() and _has_ended(int(match[1])):
                with suppress(OSError):
                    Path(place, name).unlink()


def _has_ended(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # a process of another user
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
