"""What W&B gets of a run: config, curves, summary and tables, compared with counts by hand and W&B's own reader."""

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
import wandb
from omegaconf import OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from fcnlab.config.components import leaves_of
from fcnlab.config.ranges import TableImages, is_valid
from fcnlab.runs.prediction_archive import encode, write_archive
from fcnlab.tracking import contents
from fcnlab.tracking.media import Evaluation, _with_drawings
from fcnlab.tracking.mirror import Mirror

CLASSES = ["background", "cat", "dog"]
# Pixels of two images by (ground truth, prediction); "dog" is only predicted, and in one image.
MATRICES = np.array([[[6, 2, 0], [1, 3, 0], [0, 0, 0]], [[7, 0, 1], [0, 0, 0], [0, 0, 0]]])


def test_class_table_has_iou_accuracy_share_and_images():
    table = contents.class_table(MATRICES, CLASSES)
    assert table.columns == ["class", "iou", "accuracy", "pixel_share", "images"]
    assert table.rows == [
        ["background", 13 / 17, 13 / 16, 16 / 20, 2],
        ["cat", 3 / 6, 3 / 4, 4 / 20, 1],
        ["dog", 0.0, None, 0.0, 0],
    ]


def test_confusion_table_has_percent_of_each_row():
    table = contents.confusion_table(MATRICES.sum(axis=0), CLASSES)
    assert table.columns == ["Actual", "Predicted", "nPredictions"]
    assert table.rows[:3] == [
        ["background", name, value] for name, value in zip(CLASSES, (81.25, 12.5, 6.25), strict=True)
    ]
    assert table.rows[3:6] == [["cat", name, value] for name, value in zip(CLASSES, (25.0, 75.0, 0.0), strict=True)]
    assert [row[2] for row in table.rows[6:]] == [0.0] * 3


def test_confusion_table_of_many_classes_has_the_largest_cells():
    classes = [f"class {label}" for label in range(120)]
    matrix = np.eye(120, dtype=np.int64) * 9 + np.eye(120, k=1, dtype=np.int64)
    rows = contents.confusion_table(matrix, classes).rows
    assert len(rows) == contents.TABLE_ROWS == wandb.Table.MAX_ROWS
    assert Counter(row[2] for row in rows)[90.0] == 119 and rows[0] == [classes[-1], classes[-1], 100.0]


def test_image_table_starts_with_the_lowest_miou():
    ignored = np.zeros((1, 3, 3), np.int64)
    table = contents.image_table(["a", "b", "void"], np.concatenate([MATRICES, ignored]))
    assert table.columns == ["image", "miou", "pixel_acc", "mean_acc", "pixels"]
    assert table.rows[0] == ["b", (7 / 8 + 0) / 2, 7 / 8, 7 / 8, 8]
    assert table.rows[1] == ["a", pytest.approx((6 / 9 + 3 / 6) / 2), 9 / 12, (6 / 8 + 3 / 4) / 2, 12]
    assert table.rows[2] == ["void", None, None, None, 0]


@pytest.mark.parametrize(("count", "names"), [(0, ""), (1, "ae"), (2, "abde"), (3, "abcde"), (9, "abcde")], ids=str)
def test_lowest_and_highest_are_each_named_once(count, names):
    assert sorted(contents.lowest_and_highest("abcde", count)) == list(names)


ROW = {"step": 8.0, "epoch": 2.0, "val/loss": 0.5, "val/miou": 0.25, "val/iou/cat": 0.5, "val/iou/val/iou/x": 0.125}
FINAL = {"step": 8.0, "final/miou": 0.25, "final/loss": 0.5, "final/iou/cat": 0.5, "test/miou": math.nan}


def test_rows_of_metrics_csv_become_curves_or_summary():
    assert contents.curves(ROW | {"train/loss": math.nan}) == {
        "epoch": 2.0, "val/loss": 0.5, "val/miou": 0.25, "val_class/cat": 0.5, "val_class/val/iou/x": 0.125,
    }  # fmt: skip
    assert contents.final_values(ROW) == {}
    assert contents.curves(FINAL) == {}
    assert contents.final_values(FINAL) == {"final/miou": 0.25, "final/loss": 0.5}


def test_cells_of_a_damaged_metrics_csv_are_left_out():
    row = {"step": "3", "val/miou": "0.5", "val/loss": "", "train/loss": "inf", "x": "?", "y": None}
    assert contents.numbers(row) == {"step": 3.0, "val/miou": 0.5}  # pyright: ignore[reportArgumentType]


def test_best_validation_is_the_first_of_the_highest():
    values = {2: 0.25, 4: 0.5, 6: 0.5, 8: 0.375}
    rows = [{"step": step, "train/loss": 1.0} for step in values]
    rows += [{"step": step, "val/miou": miou} for step, miou in values.items()]
    assert contents.best_validation(rows) == {"best/miou": 0.5, "best/step": 4}
    assert contents.best_validation(rows[:4]) == {}


@pytest.fixture
def mirrored():
    """A logger whose run records its calls."""
    return Mirror(experiment=MagicMock())


def logged(mirror: Mirror) -> list[dict]:
    return [call.args[0] for call in mirror.experiment.log.call_args_list]


def in_summary(mirror: Mirror) -> dict:
    return {
        key: value for call in mirror.experiment.summary.update.call_args_list for key, value in call.args[0].items()
    }


def test_logged_rows_have_the_best_validation_in_the_summary(mirrored):
    for step, miou in ((2, 0.25), (4, 0.5), (6, 0.125)):
        mirrored.log_metrics({"epoch": 1.0, "val/miou": miou}, step)
    mirrored.log_metrics({"epoch": 1.0, "final/miou": 0.5}, 6)
    assert [row["trainer/global_step"] for row in logged(mirrored)] == [2, 4, 6]  # nothing is logged of the last row
    assert in_summary(mirrored) == {"best/miou": 0.5, "best/step": 4, "final/miou": 0.5}


def test_a_resumed_run_keeps_its_best_validation(mirrored):
    mirrored.restore_best([{"step": 2.0, "val/miou": 0.5}])
    mirrored.log_metrics({"val/miou": 0.25}, 4)
    assert in_summary(mirrored) == {"best/miou": 0.5, "best/step": 2}


@pytest.mark.parametrize("count", [contents.MOST_CLASS_CHARTS, contents.MOST_CLASS_CHARTS + 1])
def test_curves_of_many_classes_get_no_charts(mirrored, count):
    names = [f"val/iou/class {label}" for label in range(count)]
    for shown in (names[:5], names, names):  # a class without pixels has no IoU
        mirrored.log_metrics(dict.fromkeys(shown, 0.5), 1)
    hidden = {call.args[0] for call in mirrored.experiment.define_metric.call_args_list if call.kwargs["hidden"]}
    assert hidden == ({f"val_class/class {label}" for label in range(count)} if count > 21 else set())


def test_config_has_the_settings_on_which_scores_depend(composed):
    cfg = composed("optim.lr=0.125", "callbacks.ema.decay=0.5")
    unresolved, plain = (OmegaConf.to_container(cfg, resolve=resolve) for resolve in (False, True))
    inside = json.loads(json.dumps(unresolved).replace("/nowhere", "${hydra:runtime.output_dir}"))  # as in a run
    values = leaves_of(contents.settings(inside, plain, {"model": "fcn8s"}))  # pyright: ignore
    assert {
        "seed": 1,
        "optim.lr": 0.125,
        "callbacks.ema.decay": 0.5,
        "options.model": "fcn8s",
    }.items() <= values.items()
    assert [key for key in values if key.rpartition(".")[2] == "seed"] == ["seed"]  # not data.seed, too
    assert not any(key.endswith(("_partial_", "dirpath", "folder")) for key in values)
    assert not any(
        key.startswith(("callbacks.early_stopping", "callbacks.progress", "logger", "sweep")) for key in values
    )


def test_config_of_an_evaluation_has_no_settings_of_training(composed):
    cfg = OmegaConf.to_container(composed("checkpoint=x", "trainer.devices=2", name="eval"))
    values = leaves_of(contents.settings(cfg, cfg, {}))  # pyright: ignore[reportArgumentType]
    assert {"checkpoint": "x", "trainer.devices": 2}.items() <= values.items()
    assert not any(key.startswith(("trainer.max", "trainer.val", "trainer.gradient", "augment")) for key in values)


def test_config_has_the_segments_of_a_run_that_changed_its_settings():
    first, second = {"from_step": 0}, {"from_step": 5}
    assert "segments" not in contents.settings({}, {"seed": 1}, {}, [first])
    assert contents.settings({}, {"seed": 1}, {}, [first, second])["segments"] == [first, second]


@pytest.mark.parametrize(
    ("record", "name"),
    [
        ({"scored_as": "test", "selection": {"same_images": True}}, "test"),
        ({"scored_as": "../x"}, "test"),  # a foreign record
        ({"selection": {"same_images": True}}, "final"),  # older records
        ({"selection": None}, "test"),
    ],
)
def test_results_are_named_like_the_scores(record, name):
    found = contents.results(record | {"miou": 0.5, "fine_grained": {"miou_i": 0.25}, "cost": {"gmacs_at": [1, 2]}})
    assert {f"{name}/miou": 0.5, f"{name}/miou_i": 0.25}.items() <= found.items() and "cost/gmacs_at" not in found


@pytest.mark.parametrize(("value", "valid"), [(0, True), (500, True), ("all", True), (501, False), ("some", False)])
def test_number_of_table_images_has_a_range(value, valid):
    assert is_valid(value, TableImages) == valid


@pytest.mark.parametrize(("drawn", "names"), [(0, ""), (1, "ad"), (None, "abd")])
def test_images_of_lowest_and_highest_miou_are_drawn(tmp_path, drawn, names):
    """Of those that the archive contains: "c" is missing there."""
    correct = {"a": 1, "b": 2, "c": 3, "d": 4}
    matrices = np.array([[[count, 4 - count], [0, 4]] for count in correct.values()])
    colours = np.zeros((256, 3), np.uint8)
    image, labels = np.full((3, 400, 200), 9, np.uint8), np.zeros((400, 200), np.uint8)
    kept = {name: encode(image, labels, labels + 1, colours) for name in "abd"}
    write_archive(tmp_path / "predictions.zip", kept)
    table = _with_drawings(Evaluation({}, list(correct), ["a", "b"], matrices, tmp_path), drawn)
    assert [row[0] for row in table.rows] == list("abcd")
    if not names:
        assert "prediction" not in table.columns
        return
    drawings = {row[0]: row[table.columns.index("prediction")] for row in table.rows}
    assert [name for name, drawing in drawings.items() if drawing is not None] == list(names)
    drawing = drawings["a"]
    assert drawing.image.size == (160, 320)
    masks = {key: mask._val["mask_data"] for key, mask in drawing._masks.items()}
    assert {mask.shape for mask in masks.values()} == {(320, 160)}  # as the image
    assert {key: np.unique(mask).tolist() for key, mask in masks.items()} == {"ground_truth": [0], "prediction": [1]}


def sweep_file(repository: Path) -> dict:
    return OmegaConf.to_container(OmegaConf.load(repository / "docs/how-to/wandb_sweep.yaml"), resolve=False)  # pyright: ignore


def test_sweep_of_the_docs_composes(composed, repository):
    """As W&B's agent formats the arguments of a job."""
    config = sweep_file(repository)
    chosen = {
        key: {"value": each["values"][0] if "values" in each else each["min"]}
        for key, each in config["parameters"].items()
    }
    arguments = create_sweep_command_args({"args": chosen})["args_no_hyphens"]
    words = [word for part in config["command"] for word in (arguments if part == "${args_no_hyphens}" else [part])]
    assert words[:3] == ["${env}", "${program}", "train"] and config["program"] == "fcnlab"
    cfg = composed(*words[3:])
    assert cfg.optim.lr == 1e-4 and cfg.augment.scale == [0.5, 2.0] and list(cfg.model.levels) == [32]


SCORED = {"pixel_acc", "mean_acc", "miou", "fw_iou", "miou_i", "miou_c", "miou_i10", "miou_c10"}
COST = {"parameters", "gmacs_per_image", "seconds", "images_per_second", "peak_memory_mib"}
TRAINING_COST = {"training_minutes", "training_peak_memory_mib", "expected_minutes", "expected_memory_mib"}
TRAINING_COST |= {"training_images_per_second", "training_data_wait"}
PROTOCOL = {"set", "images", "of", "inference", "postprocess", "precision"}
SELECTION = {
    "stopped_early",
    "checkpoint",
    "monitor",
    "mode",
    "set",
    "list",
    "among",
    "step",
    "same_images",
    "shared_images",
}
CURVES = {f"val/{name}" for name in ("pixel_acc", "mean_acc", "miou", "fw_iou", "loss", "images")}
CURVES |= {"train/loss", "train/lr", "train/grad_norm", "memory/peak"}
CURVES |= {"throughput/images_per_second", "throughput/data_wait"}
TABLES = {
    "final/per_class": ["class", "iou", "accuracy", "pixel_share", "images"],
    "final/confusion_table": ["Actual", "Predicted", "nPredictions"],
    "final/per_image": ["image", "prediction", "miou", "pixel_acc", "mean_acc", "pixels"],
}


def in_section(section: str, names: set[str]) -> set[str]:
    return {f"{section}/{name}" for name in names}


SUMMARY = {
    "eval": in_section("final", SCORED)
    | in_section("cost", COST)
    | in_section("protocol", PROTOCOL)
    | in_section("selection", SELECTION | {"at_least"})
    | {"status"},
}
SUMMARY["train"] = (
    SUMMARY["eval"]
    | in_section("cost", TRAINING_COST)
    | in_section("selection", {"val_miou"})
    | {"best/miou", "best/step", "final/loss"}
) - {"selection/at_least"}
OWN = {"_runtime", "_step", "_timestamp", "_wandb", "trainer/global_step", "epoch"}


def records_of(run: Path) -> list[dict]:
    """The records of an offline run, by W&B's own reader."""
    reader = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", run]
    return [json.loads(line) for line in subprocess.check_output(reader, text=True).splitlines()]


def names_in(records: list[dict], kind: str, key: str) -> set[str]:
    """The logged keys; those of tables and images have parts of their own."""
    return {name.split(".")[0] for record in records if record["type"] == kind for name in record[kind].get(key, ())}


def check_run(run: Path, verb: str) -> set[str]:
    """Check all keys of a run; return those of its summary."""
    records = records_of(run)
    charts, summary = names_in(records, "history", "item") - OWN, names_in(records, "summary", "update") - OWN
    classes = {name for name in charts if name.startswith("val_class/")}
    assert charts == (classes | CURVES if verb == "train" else set()) | set(TABLES)
    assert len(charts) + 1 <= 40  # W&B's confusion plot has a chart besides its table
    assert bool(classes) == (verb == "train") and len(classes) <= 21
    assert summary == SUMMARY[verb] | charts
    config = {key for record in records if record["type"] == "config" for key in record["config"].get("update", ())}
    assert "_wandb.visualize.final/confusion" in config
    for name, columns in TABLES.items():
        (file,) = (run / "files/media/table").glob(f"{name}*.json")
        assert json.loads(file.read_text())["columns"] == columns
    return summary


@pytest.mark.slow
def test_project_of_twelve_runs_has_the_intended_keys(fcnlab, quick_probe, small, shapes_root, tmp_path, repository):
    """Two settings, three seeds, and an evaluation of each run."""
    words = [*small, f"data.root={shapes_root}", "trainer=smoke", "trainer.accelerator=cpu", "trainer.max_steps=2"]
    words += ["trainer.log_every_n_steps=1", "hydra/launcher=basic", f"hydra.sweep.dir={tmp_path}/sweep"]
    assert fcnlab("train", "-m", *words, "model=fcn32s,fcn8s", "seed=1,2,3") == 0
    scored = sorted((tmp_path / "sweep").glob("*/checkpoints/best.ckpt"))
    evaluation = [
        "logger=wandb",
        "trainer.accelerator=cpu",
        "hydra/launcher=basic",
        f"hydra.sweep.dir={tmp_path}/scores",
    ]
    assert fcnlab("eval", "-m", f"checkpoint={','.join(map(str, scored))}", *evaluation) == 0
    metric = sweep_file(repository)["metric"]["name"]
    for verb, folder in (("train", "sweep"), ("eval", "scores")):
        runs = sorted((tmp_path / folder / "wandb").glob("offline-run-*"))
        assert len(runs) == 6
        for run in runs:
            assert (metric in check_run(run, verb)) == (verb == "train")
