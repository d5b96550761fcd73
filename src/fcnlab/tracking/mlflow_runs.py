"""Start an MLflow run: in a database in the run's folder, or at the address that the user names."""

import importlib
import logging
import os
import posixpath
import re
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only

from fcnlab.errors import UserError, first_line
from fcnlab.messages import log_warning
from fcnlab.tracking.accepted_values import sendable
from fcnlab.tracking.mirror import errors_as_warnings

RUN_TAG = "fcnlab.run"  # the id of our run, by which a resumed run finds its MLflow run
SQLITE = "sqlite:///"
STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}  # MLflow's names
LONGEST_KEY, LONGEST_VALUE, MOST_PARAMETERS = 250, 250, 100  # of MLflow: characters, and parameters in one request
FORBIDDEN_IN_KEY = re.compile(r"[^\w./ -]", re.ASCII)
PASSWORD = re.compile(r"://\S*@|(?<=[?&])(password|token|secret)[^=\s]*=[^&\s]*", re.IGNORECASE)  # in an address
# MLflow's own limits let an unreachable server block for minutes.
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
NAME = "MLflow"
MOST_FAILURES = 3


def mlflow_run(
    folder: str | Path,
    run_name: str,
    described: Mapping[str, str],
    settings: Mapping[str, Any],
    run: str | None = None,
    experiment: str = "fcnlab",
    name: str | None = None,
    tracking_uri: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> Logger:
    """Return the logger of a new MLflow run, or of the existing one of the fcnlab run with the id ``run``.

    ``described`` are further tags, ``settings`` become MLflow's parameters, and ``run_name`` applies if ``name`` is
    None.

    Raises
    ------
    UserError
        mlflow is not installed, or refuses to start a run.
    """
    if getattr(rank_zero_only, "rank", 0):  # other ranks never log
        return DummyLogger()
    if find_spec("mlflow") is None:
        raise UserError("logger=mlflow needs the package mlflow: pip install 'fcnlab[mlflow]'")
    for variable, value in PATIENCE.items():
        os.environ.setdefault(variable, value)
    for logger in ("mlflow", "alembic"):  # they report each table of a new database
        logging.getLogger(logger).setLevel(logging.WARNING)
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or _own_database(Path(folder))
    every = sendable({**described, **(tags or {}), **({RUN_TAG: run} if run else {})})
    try:
        client = importlib.import_module("mlflow").MlflowClient(uri)
        opened = MlflowRun(client, uri, _run_id(client, uri, experiment, sendable(name or run_name), every, run))
    except Exception as error:  # those of MLflow, of its database and of the connection have no common type
        problem = PASSWORD.sub(_masked, f"MLflow did not start a run at {uri}: {first_line(error)}")
        raise UserError(
            f"logger.mlflow: {problem}. Correct logger.mlflow.tracking_uri or MLFLOW_TRACKING_URI, or train with"
            " logger=csv"
        ) from error
    opened.log_settings(settings)
    return opened


def _masked(found: re.Match[str]) -> str:
    return "://...@" if found[0].startswith("://") else f"{found[1]}=..."


def _own_database(folder: Path) -> str:
    (folder / "mlflow").mkdir(parents=True, exist_ok=True)
    return f"{SQLITE}{(folder / 'mlflow' / 'mlflow.db').absolute()}"


def _run_id(client: Any, uri: str, experiment: str, name: str, tags: dict[str, str], run: str | None) -> str:
    """Return the id of the MLflow run of an earlier start, or of a new one."""
    known = client.get_experiment_by_name(experiment)
    # Without a location, MLflow stores the images of a database in the current folder.
    beside = str(Path(uri.removeprefix(SQLITE)).parent / "artifacts") if uri.startswith(SQLITE) else None
    place = known.experiment_id if known else client.create_experiment(experiment, artifact_location=beside)
    earlier = client.search_runs([place], f"tags.`{RUN_TAG}` = '{run}'", max_results=1) if run else []
    if earlier:
        client.update_run(earlier[0].info.run_id, status="RUNNING")
        return earlier[0].info.run_id
    return client.create_run(place, tags=tags, run_name=name).info.run_id


class MlflowRun(MLFlowLogger):
    """Lightning's MLflow logger for a started run; later errors of MLflow become warnings.

    After ``MOST_FAILURES`` in a row nothing more is sent, because each may have waited for a server.
    """

    def __init__(self, client: Any, uri: str, run_id: str):
        super().__init__(tracking_uri=uri, run_id=run_id)
        self._client, self._failures = client, 0

    @property
    def experiment(self) -> Any:
        """The client. Lightning's own property sets MLFLOW_TRACKING_URI, so that later runs would be logged there."""
        return self._client

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        accepted = {accepted_key(key): value for key, value in metrics.items()}
        self._send("metrics", partial(super().log_metrics, accepted, step))

    @rank_zero_only
    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Log settings as parameters, which MLflow never changes: those of the first start of a run stay."""
        self._send("settings", partial(self._log_new, settings))

    def _log_new(self, settings: Mapping[str, Any]) -> None:
        known = self.experiment.get_run(self.run_id).data.params
        new = {accepted_key(key): str(sendable(value))[:LONGEST_VALUE] for key, value in settings.items()}
        parameter = importlib.import_module("mlflow.entities").Param
        listed = [parameter(key, value) for key, value in new.items() if key not in known]
        for start in range(0, len(listed), MOST_PARAMETERS):
            self.experiment.log_batch(self.run_id, params=listed[start : start + MOST_PARAMETERS])

    @rank_zero_only
    def log_image(self, name: str, image: np.ndarray, step: int) -> None:
        """Log an image, uint8, (rows, cols, 3), as ``images/NAME/STEP.png``; characters of a name are escaped."""
        folder = quote(name, safe="", errors="surrogateescape").replace(".", "%2E")
        self._send("images", partial(self.experiment.log_image, self.run_id, image, f"images/{folder}/{step}.png"))

    def _send(self, content: str, send: Callable[[], object]) -> None:
        if self._failures == MOST_FAILURES:
            return
        with errors_as_warnings(content, NAME):
            self._failures += 1
            send()
            self._failures = 0
        if self._failures == MOST_FAILURES:
            log_warning(f"{NAME} has failed {MOST_FAILURES} times in a row: this run logs nothing more there")

    def finalize(self, status: str = "success") -> None:
        """Do nothing at the end of training: the evaluation follows, and :meth:`finish` sets the status."""

    @rank_zero_only
    def finish(self, status: str) -> None:
        """End the run with fcnlab's status."""
        with errors_as_warnings("facts", NAME):
            self.experiment.set_terminated(self.run_id, STATUS[status])


def accepted_key(key: str) -> str:
    """Return a name that MLflow accepts; a hash at the end distinguishes changed names."""
    changed = FORBIDDEN_IN_KEY.sub("_", key)
    parts = (part if part.strip(".") else "_" for part in changed.split("/"))
    accepted = posixpath.normpath("/".join(parts)).strip("/")
    if accepted == key and len(key) <= LONGEST_KEY:
        return key
    digest = blake2b(key.encode(errors="surrogateescape"), digest_size=4).hexdigest()
    return f"{accepted[: LONGEST_KEY - 9]}-{digest}"
