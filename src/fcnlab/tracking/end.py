"""The end of a W&B run: in a bounded time, whatever the server does; the rest can be uploaded later."""

import atexit
import logging
import re
import subprocess
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from fcnlab.config.overrides import shell_join
from fcnlab.errors import first_line
from fcnlab.files.reading import Unreadable, bytes_of
from fcnlab.library_internals.wandb import has_other_runs, helper_process, was_sent_in_time
from fcnlab.tracking.bounded_calls import calls
from fcnlab.tracking.mirror import attempt

log = logging.getLogger("fcnlab")
END_TIMEOUT = 10.0  # seconds that a run waits at its end for its last data to be sent; W&B's default is no limit
MARGIN = 2.0  # seconds that W&B gets after its own limit, finish_timeout
STOP_TIMEOUT = 2.0  # seconds that W&B's process gets to end
EXIT_TIMEOUT = 5.0  # seconds that W&B's process may hold up the end of this one, after all runs have ended
LOG_BYTES = 64 << 20  # limit on the log of W&B's process
# Lines of W&B's process about data that it does not try to send again.
UNSENT = re.compile(rb'"level":"ERROR[^"]*","msg":"[^"]*(fatal error|CreateRunFiles|log artifact|upload)')


def end_run(run: Any, status: str, exit_code: int) -> str | None:
    """Finish a W&B run with the status and the exit code of the process; return why data are missing there, or None.

    After ``finish_timeout`` and a little more, W&B's process is ended, unless it belongs to others, too: it may be
    waiting for the server in a place where it looks at no clock. What it was given is in the run's .wandb file.
    """
    attempt("facts", lambda: run.summary.update({"status": status}))
    timeout = run.settings.finish_timeout or END_TIMEOUT
    errors: list[Exception] = []

    def finish() -> None:
        try:
            run.finish(exit_code=exit_code)
        except Exception as error:  # errors of files, server and process have no common type
            errors.append(error)

    in_time = False
    try:
        in_time = calls.run_within(timeout + MARGIN, finish)
    finally:  # a second Ctrl-C ends the waiting, too
        if not in_time:
            _end_helper_process()
        dropped = calls.dropped
        calls.close()
    if dropped:
        log.warning("Warning: W&B did not take %d values of this run in time, but the run's folder has them", dropped)
    if reason := _missing_because(run, in_time, timeout, errors):
        log.warning(
            "Warning: W&B did not get all data of this run (%s), but the run's folder has them. To upload the rest: %s",
            *(reason, sync_command(run)),
        )
    return reason or (f"{dropped} values were dropped" if dropped else None)


def limit_exit() -> None:
    """Limit how long W&B's process holds up the end of this process: W&B waits for it, without a limit.

    Call it after W&B has started its process, since the last registered function runs first.
    """
    atexit.unregister(_end_helper_process_soon)
    atexit.register(_end_helper_process_soon)


def _end_helper_process_soon() -> None:
    process = helper_process()
    if process is not None and not has_other_runs():
        timer = threading.Timer(EXIT_TIMEOUT, process.kill)
        timer.daemon = True
        timer.start()


def sync_command(run: Any) -> str:
    """Return the command that uploads a run from its folder."""
    online = [] if run.offline else ["--include-online"]  # W&B skips runs that have begun online otherwise
    return shell_join(["wandb", "sync", *online, str(Path(run.dir).parent)])


def _missing_because(run: Any, in_time: bool, timeout: float, errors: list[Exception]) -> str | None:
    """Return why the server lacks data of an ended run; None if nothing is known to be missing, or it is offline."""
    if errors and in_time:
        return first_line(errors[0])
    if not in_time and run.offline:
        return f"its process did not take them within {timeout:g} s"
    if run.offline:
        return None
    if not in_time or not was_sent_in_time(run):
        return f"they could not be sent within {timeout:g} s"
    return "the server refused some of them" if _reports_unsent_data(Path(run.settings.log_internal)) else None


def _reports_unsent_data(path: Path) -> bool:
    try:
        return UNSENT.search(bytes_of(path, LOG_BYTES)) is not None
    except (OSError, Unreadable):
        return False


def _end_helper_process() -> None:
    """End W&B's process, and with it all waiting for the server; the next run of this process starts another one.

    It stays if this process has not started it (an agent of W&B has), or if a caller has further runs.
    """
    process = helper_process()
    if process is None or has_other_runs():
        return
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_TIMEOUT)
    process.kill()
    calls.run_within(STOP_TIMEOUT, _forget_helper_process)


def _forget_helper_process() -> None:
    import wandb

    with suppress(Exception, SystemExit):  # it exits with the code of the process
        wandb.teardown()
