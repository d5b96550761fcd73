"""Whether W&B's server can be used: by the environment, the current folder, the key and an answer in time."""

import configparser
import io
import os
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import Any

from fcnlab.errors import UserError, first_line
from fcnlab.files.reading import Unreadable, bytes_of
from fcnlab.tracking.bounded_calls import within
from fcnlab.tracking.folders import import_wandb

SERVER_TIMEOUT = 3.0  # seconds
SETTINGS_FILES = (Path("wandb/settings"), Path(".wandb/settings"))  # in the current folder; W&B reads them
SETTINGS_BYTES = 64 << 10  # limit on such a file
HARMLESS = {"mode", "disabled", "quiet", "silent", "project"}  # fcnlab sets them itself, or they hide text


def check_server() -> None:
    """Check within seconds that W&B's server can be asked for something.

    Raises
    ------
    UserError
        ``WANDB_MODE`` forbids it, no key is configured, the server does not respond, or a file in the current folder
        names another server.
    """
    import_wandb()
    elsewhere = redirecting_settings() - {"entity"}
    if elsewhere:
        raise redirection_error(elsewhere)
    settings = read_environment().settings
    mode = os.environ.get("WANDB_MODE")
    if mode not in (None, "", "online"):
        raise UserError(f"WANDB_MODE={mode} in the environment forbids the connection to W&B: unset it")
    if not _has_key(settings):
        raise UserError("no API key of W&B is configured. Type wandb login, or set WANDB_API_KEY in the environment")
    if not _answers(settings.base_url):
        raise UserError(f"W&B's server {settings.base_url} does not respond within {SERVER_TIMEOUT:g} seconds")


def read_environment() -> Any:
    """Return W&B's settings after it has read the environment."""
    import wandb

    try:
        return wandb.setup()
    except (wandb.Error, ValueError) as error:
        raise UserError(
            f"W&B rejects its settings: {reason_of(error)}. Correct or unset that environment variable (WANDB_...). To"
            " train without W&B, set logger=csv"
        ) from error


def redirecting_settings() -> set[str]:
    """Return the settings in W&B's files of the current folder that change where W&B sends runs, or how.

    The folder may come from someone else, and W&B sends its key to the server that such a file names. Settings that the
    environment has, too, are left out, and harmless ones.

    Raises
    ------
    UserError
        W&B would read a file without end or fail, or read other settings than this function: it is over a limit, no
        regular file or not UTF-8, or a value contains a %, which W&B expands (like ``%(name)s``).
    """
    names: set[str] = set()
    for path in SETTINGS_FILES:
        parser = configparser.ConfigParser(interpolation=None)  # a few expanded values can fill the memory
        try:
            # As W&B does, which opens the file as text: "\r" ends a line, too.
            parser.read_file(io.StringIO(bytes_of(path, SETTINGS_BYTES).decode(), newline=None))
            settings = dict(parser.items("default"))
            if any("%" in value.replace("%%", "") for value in settings.values()):
                raise Unreadable("a value contains a %, which must be written as %%")
        except (Unreadable, UnicodeDecodeError) as error:
            raise UserError(f"W&B reads {path} in the current folder: {error}. Correct or remove it") from error
        except (OSError, configparser.Error):  # no file, or no such section; W&B ignores such a file, too
            continue
        names |= settings.keys()
    return {name for name in names - HARMLESS if f"WANDB_{name.upper()}" not in os.environ}


def redirection_error(names: set[str]) -> UserError:
    files = " or ".join(str(path) for path in SETTINGS_FILES if path.is_file())
    variables = " ".join(f"WANDB_{name.upper()}=..." for name in sorted(names))
    return UserError(
        f"{files} in the current folder sets where W&B sends runs and the key, or how: {', '.join(sorted(names))}."
        f" fcnlab does not follow it, because it may come from someone else. If it is yours, set {variables} in the"
        " environment. Otherwise remove the file. To train without W&B, set logger=csv"
    )


def reason_of(error: Exception) -> str:
    """Return W&B's reason for rejecting a setting; pydantic's errors contain it in their parts."""
    parts: Any = getattr(error, "errors", list)()
    messages = [f"{'.'.join(map(str, part['loc']))}={part['input']!r:.100}: {part['msg']}" for part in parts]
    return "; ".join(messages) or first_line(error)


def check_settings() -> Any:
    """Check what W&B reads of the current folder and of the environment; return its settings.

    Raises
    ------
    UserError
        W&B would read a file in the current folder without end, or it rejects its settings.
    """
    import_wandb()
    redirecting_settings()  # first: W&B's own reader would wait for a FIFO
    return read_environment()


def reachable_mode() -> str:
    """Return "online" if the server can be reached: without this check, W&B takes over a minute to fail.

    Raises
    ------
    UserError
        As :func:`check_settings`.
    """
    setup = check_settings()
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    settings = setup.settings
    return "online" if _has_key(settings) and _answers(settings.base_url) else "offline"


def _has_key(settings: Any) -> bool:
    """Return whether an API key is configured; silent, since W&B would otherwise request the user's name for 5 s."""
    import wandb

    silent, settings.silent = settings.silent, True
    try:
        return wandb.login(prompt=False, verify=False)
    finally:
        settings.silent = silent


def _answers(server: str) -> bool:
    """Return whether a server answers, without a server error, within ``SERVER_TIMEOUT`` seconds.

    urllib's timeout applies to each read, so a slow answer would never time out.
    """
    try:
        return within(SERVER_TIMEOUT, _request, server)
    except TimeoutError:
        return False


def _request(server: str) -> bool:
    try:
        urllib.request.urlopen(server, timeout=SERVER_TIMEOUT).close()
    except urllib.error.HTTPError as response:
        return response.code < 500
    except (OSError, ValueError, HTTPException):
        return False
    return True
