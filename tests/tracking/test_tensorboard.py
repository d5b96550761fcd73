"""What ``logger=tensorboard`` writes, read with TensorBoard's own reader."""

import csv

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2


@pytest.fixture
def events(trained_once):
    folder = trained_once("logger=tensorboard", "trainer.max_steps=2")
    accumulator = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    return accumulator.Reload(), folder


def test_curves_images_and_settings_are_those_of_the_run(events):
    accumulator, folder = events
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    tags = accumulator.Tags()
    for name in ("val/miou", "train/loss"):
        expected = [float(row[name]) for row in rows if row.get(name)]
        assert [event.value for event in accumulator.Scalars(name)] == pytest.approx(expected)
    assert len(accumulator.Scalars("final/miou")) == 1 and not any("hp_metric" in tag for tag in tags["scalars"])
    assert any(tag.startswith("val_") for tag in tags["images"])
    written = {
        kind: plugin_data_pb2.HParamsPluginData.FromString(accumulator.summary_metadata[tag].plugin_data.content)
        for kind, tag in (("settings", "_hparams_/session_start_info"), ("experiment", "_hparams_/experiment"))
    }
    settings = written["settings"].session_start_info.hparams
    assert settings["optim.lr"].number_value == 0.002 and settings["options.model"].string_value == "fcn8s"
    shown = [info.name.tag for info in written["experiment"].experiment.metric_infos]
    assert shown == ["val/miou", "final/miou", "test/miou"]


@pytest.mark.slow
def test_a_missing_tensorboard_is_named_with_what_to_install(train_code, capsys, monkeypatch):
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr("lightning.fabric.loggers.tensorboard._TENSORBOARDX_AVAILABLE", False)
    assert train_code("logger=tensorboard") == 1
    output = capsys.readouterr().err
    assert "logger.tensorboard: " in output and "pip install" in output and "Traceback" not in output
