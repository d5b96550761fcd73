"""What ``logger=mlflow`` writes, read with MLflow's own client."""

import csv
import importlib.util
import json
import os
import sqlite3

import pytest

from fcnlab.errors import UserError
from fcnlab.tracking import mlflow_runs
from fcnlab.tracking.mlflow_runs import accepted_key

needs_mlflow = pytest.mark.skipif(
    importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed: pip install 'fcnlab[mlflow]'"
)


@pytest.mark.parametrize(
    ("key", "accepted"),
    [
        ("val/miou", "val/miou"),
        ("iou/potted plant", "iou/potted plant"),
        ("iou/../x", "iou/_/x"),
        ("iou/Häuser", "iou/H_user"),
        ("iou/a//b", "iou/a/_/b"),
        ("iou/", "iou/_"),
        ("x" * 300, "x" * 241),
    ],
)
def test_names_that_mlflow_refuses_are_changed_and_stay_distinct(key, accepted):
    if key == accepted:
        assert accepted_key(key) == key
    else:
        assert accepted_key(key).startswith(f"{accepted}-") and len(accepted_key(key)) == len(accepted) + 9
    assert accepted_key("iou/Hüuser") != accepted_key("iou/Häuser")


def test_a_missing_mlflow_is_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(mlflow_runs, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'fcnlab\[mlflow\]'"):
        mlflow_runs.mlflow_run(tmp_path, "a run", {}, {})


@needs_mlflow
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of MLflow's own packages
def test_a_run_and_its_resumption_are_one_mlflow_run(train, tmp_path):
    from mlflow import MlflowClient

    folder = train("logger=mlflow", "trainer.max_steps=2")
    train("logger=mlflow", "trainer.max_steps=4", "checkpoint=last")
    client = MlflowClient(f"sqlite:///{folder}/mlflow/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("fcnlab").experiment_id])
    record = json.loads((folder / "metrics.json").read_text())
    assert run.info.status == "FINISHED" and run.info.run_name == "fcn8s-tiny-shapes-s1"
    assert run.data.tags["model"] == "fcn8s"
    assert run.data.tags["fcnlab.run"] == json.loads((folder / "run.json").read_text())["id"]
    assert run.data.params["optim.lr"] == "0.002" and run.data.params["options.data"] == "shapes"
    assert run.data.metrics["final/miou"] == pytest.approx(record["miou"])
    with (folder / "metrics.csv").open() as file:
        expected = [float(row["val/miou"]) for row in csv.DictReader(file) if row["val/miou"]]
    assert [point.value for point in client.get_metric_history(run.info.run_id, "val/miou")] == pytest.approx(expected)
    assert "MLFLOW_TRACKING_URI" not in os.environ  # a later run in this process has a database of its own
    assert list((folder / "mlflow/artifacts").rglob("*.png")) and not (tmp_path / "mlruns").exists()


@needs_mlflow
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_whose_database_vanishes_ends_with_its_scores(train, at_call, tmp_path):
    def damage():
        with sqlite3.connect(tmp_path / "run/mlflow/mlflow.db") as database:
            database.execute("DROP TABLE metrics")

    at_call(mlflow_runs.MlflowRun, "log_metrics", 2, damage)
    folder = train("logger=mlflow", "trainer.max_steps=4")
    assert (folder / "metrics.json").is_file()
    assert "in MLflow (" in (folder / "train.log").read_text()


@needs_mlflow
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_an_invalid_address_is_reported_without_its_password(train_code, capsys):
    assert train_code("logger=mlflow", "logger.mlflow.tracking_uri='nothing://me:secret@example.org/x'") == 1
    output = capsys.readouterr().err
    assert "logger.mlflow: MLflow did not start a run at nothing://...@example.org/x" in output
    assert "secret" not in output and "Traceback" not in output


@needs_mlflow
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_server_that_fails_is_left_alone_after_three_errors(tmp_path, caplog):
    """Each request may wait for a server."""
    logger = mlflow_runs.mlflow_run(tmp_path, "a run", {}, {"optim.lr": 0.1})
    calls = []

    class Unreachable:
        def log_batch(self, **_):
            calls.append(1)
            raise ConnectionError("no answer")

    logger._client = Unreachable()
    for step in range(9):
        logger.log_metrics({"val/miou": 0.5}, step)
    assert len(calls) == 3 and "logs nothing more there" in caplog.text
