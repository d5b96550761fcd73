"""Values in the form that W&B accepts: UTF-8 text of limited length."""

import logging
import re
import unicodedata
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any

from fcnlab.escaping import escape_line

log = logging.getLogger("fcnlab")
# Maximum numbers of characters: W&B refuses to start a run with more.
MAX_TAG, MAX_JOB_TYPE, MAX_NAME, MAX_PROJECT = 64, 64, 128, 128
SYMBOLS = ("Sc", "Sk", "Sm", "So")  # Unicode's categories: currency, modifiers, mathematics, others
FORBIDDEN_IN_PROJECT = re.compile(r"[/\\#?%:]")


def shortened(text: str | None, most: int) -> Any:
    """Return a sendable text of at most ``most`` characters; a hash at the end distinguishes shortened texts."""
    text = sendable(text)
    if text is None or len(text) <= most:
        return text
    return f"{text[: most - 9]}-{blake2b(text.encode(), digest_size=4).hexdigest()}"


def accepted_project(project: str, setting: str = "logger.wandb.project") -> str:
    """Return a project name that W&B accepts; warn where it differs from the requested one, of ``setting``."""
    accepted = shortened(FORBIDDEN_IN_PROJECT.sub("-", sendable(project)), MAX_PROJECT)
    if accepted != project:
        log.warning(
            "Warning: %s=%s: W&B accepts at most %d characters, without / \\ # ? %% : . The run is in the project %s",
            *(setting, project, MAX_PROJECT, accepted),
        )
    return accepted


def accepted_title(title: str) -> str:
    """Return a title that W&B accepts for a view or a report: it refuses symbols such as = and emoji in views."""
    allowed = "".join("-" if unicodedata.category(each) in SYMBOLS else each for each in sendable(escape_line(title)))
    return shortened(allowed, MAX_NAME)


def sendable(value: Any) -> Any:
    """Return plain values with text keys, all encodable as UTF-8; other bytes of a name are escaped."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, Mapping):
        return {sendable(str(key)): sendable(each) for key, each in value.items()}
    return [sendable(each) for each in value] if isinstance(value, (list, tuple)) else value
