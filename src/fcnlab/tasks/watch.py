"""``fcnlab watch``. Nothing here imports torch, so that it starts quickly on any machine."""

import asyncio
import logging
import math
import os
import shutil
import signal
import sys
import time
import webbrowser
from io import TextIOWrapper

from omegaconf import DictConfig

from fcnlab.config.validation import ConfigError, validate_config
from fcnlab.live_view.monitor import Monitor
from fcnlab.live_view.server import serve
from fcnlab.live_view.terminal import lines
from fcnlab.runs.run_folder import RunFolder
from fcnlab.signals import Interrupted, StopSignals
from fcnlab.sweeps.sweep_table import RedrawnLines
from fcnlab.tasks.compare import existing_folder

log = logging.getLogger("fcnlab")
REDRAW_AFTER = 1.0  # seconds
PIPE_WIDTH = 120  # characters of a line that is not on a terminal


def watch(cfg: DictConfig, run: RunFolder) -> None:
    """Show the runs below some folders until Ctrl-C; nothing is written, not even to the folder of this command."""
    validate_config(cfg)
    if not cfg.runs:
        raise ConfigError("runs=[] must name at least one folder. Leave it out to watch outputs/")
    for key in ("port", "open"):
        if cfg.terminal and run.context.sets(key):
            log.warning("%s=%s has no effect with terminal=true, which opens no page", key, str(cfg[key]).lower())
    monitor = Monitor([existing_folder(name, "runs") for name in cfg.runs])
    try:
        with StopSignals():
            if cfg.terminal:
                show_in_terminal(monitor)
            else:
                serve_page(monitor, cfg.port, cfg.open)
    except Interrupted as stop:
        if stop.signal != signal.SIGINT:  # Ctrl-C is the usual end
            raise


def show_in_terminal(monitor: Monitor) -> None:
    """Redraw the view in place; print it once where the output is not a terminal."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the terminal's encoding may lack the marks and bars
    if not sys.stdout.isatty() or os.environ.get("TERM") == "dumb":
        print("\n".join(whole_view(monitor)), flush=True)
        return
    area = RedrawnLines(sys.stdout)
    while True:
        monitor.update()
        width, height = shutil.get_terminal_size()
        area.draw(lines(monitor, width - 1, height - 1, colours="NO_COLOR" not in os.environ))
        time.sleep(REDRAW_AFTER)


def whole_view(monitor: Monitor) -> list[str]:
    """Return the lines of all runs, each read to its end; a long metrics.csv is read in parts."""
    monitor.update(seconds=math.inf)
    while monitor.is_reading:
        monitor.update(seconds=math.inf)
    view = _all_lines(monitor)
    while any(not run.curves.is_complete for run in monitor.runs.values()):  # of finished runs, read when shown
        view = _all_lines(monitor)
    return view


def _all_lines(monitor: Monitor) -> list[str]:
    return lines(monitor, PIPE_WIDTH, height=10**9, colours=False)


def serve_page(monitor: Monitor, port: int, open_browser: bool) -> None:
    """Serve the page, and print its address.

    Raises
    ------
    ConfigError
        The port is in use, or this user may not use it.
    """

    def show(address: str) -> None:
        folders = ", ".join(monitor.root_names)
        print(f"Watching {folders} at {address} (only on this machine; Ctrl-C ends it)", flush=True)
        if open_browser:
            webbrowser.open(address)

    try:
        asyncio.run(serve(monitor, port, show))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(f"port={port} cannot be used: {reason}. Choose another one, or leave it out") from error
