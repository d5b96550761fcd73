"""Reading of run folders, and every reason to exclude a run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from fcnlab.comparison.runs import ExcludedRun, Unusable, read_run, read_runs, run_folders
from fcnlab.config.components import leaves_of
from fcnlab.errors import LONGEST_REASON
from fcnlab.files import reading
from fcnlab.runs.settings import identifying_values
from run_folders import trained

CONFUSED = np.array([[[3, 1], [0, 2]], [[1, 0], [1, 5]]])


def test_a_run_is_read(make_run):
    folder = make_run("a", seed=3, published={"miou": 65.5})
    run = read_run(folder)
    assert run.seed == 3 and len(run.names) == 36 and run.cost["minutes"] == 13
    assert run.options["model"] == "fcn8s" and run.settings["optim.lr"] == 0.002 and run.published == {"miou": 65.5}
    stored = json.loads((folder / "metrics.json").read_text())
    assert run.scores.miou == stored["miou"] and run.areas.intersection.shape == (36, 4)
    np.testing.assert_allclose(run.curves["val/miou"], [[20, 40], [0.2, 0.33]])
    np.testing.assert_array_equal(run.curves["train/loss"], [[10, 20, 40], [2, 1, 0.5]])


def test_settings_without_influence_on_scores_are_ignored(make_run):
    """These are seeds, paths, and interpolations of other settings."""
    settings = {"logger.wandb.mode": "offline", "data.num_workers": 3, "callbacks.progress.enabled": False, "seed": 5}
    run = read_run(make_run("a", settings=settings))
    kept = {"model._target_", "model.levels", "optim._target_", "optim.lr", "data._target_", "augment.scale"}
    assert set(run.settings) == kept | {"ensemble", "data.root", "trainer.precision", "source.fcnlab"} | {
        f"scoring.{name}" for name in ("data.root", "checkpoint", "precision", "source.fcnlab")
    }


def test_runs_are_found_in_the_order_of_jobs(make_run, tmp_path):
    for name in ("sweep/10", "sweep/2", "sweep/1/1-fcn32s", "other/deep/er"):
        make_run(name)
    (tmp_path / "runs" / "sweep" / "2" / "wandb" / "empty").mkdir(parents=True)
    names = [str(folder.relative_to(tmp_path / "runs")) for folder in run_folders(tmp_path / "runs")]
    assert names == ["other/deep/er", "sweep/1/1-fcn32s", "sweep/2", "sweep/10"]


def test_a_folder_named_twice_is_read_once(make_run, tmp_path):
    make_run("a")
    assert len(read_runs([tmp_path / "runs", tmp_path / "runs" / "a"])[0]) == 1


def damage(folder, kind: str) -> None:
    confusions, metrics = folder / "confusions.npz", folder / "metrics.json"
    record = json.loads(metrics.read_text())
    with np.load(confusions) as file:
        parts = dict(file)
    match kind:
        case "no scores yet":
            metrics.unlink()
        case "half a record":
            metrics.write_text(metrics.read_text()[:100])
        case "a list":
            metrics.write_text("[1, 2]")
        case "not written by fcnlab":
            metrics.write_text('{"accuracy": 0.9}')
        case "no protocol":
            metrics.write_text(json.dumps({key: value for key, value in record.items() if key != "protocol"}))
        case "ignored pixels only":
            metrics.write_text(json.dumps(record | {"miou": None}))
        case "no matrices":
            confusions.unlink()
        case "half the matrices":
            confusions.write_bytes(confusions.read_bytes()[:400])
        case "other arrays":
            np.savez(confusions, x=np.eye(2))
        case "a pickle":
            np.savez(confusions, **parts | {"names": np.array([{}] * 36, object)})
        case "wrong shape":
            np.savez(confusions, **parts | {"matrices": parts["matrices"][:5]})
        case "negative":
            np.savez(confusions, **parts | {"matrices": -parts["matrices"]})
        case "fractions":
            np.savez(confusions, **parts | {"matrices": parts["matrices"] / 2})
        case "twice":
            np.savez(confusions, **parts | {"names": np.array(["a"] * 36)})
        case "killed between":
            np.savez(confusions, **parts | {"matrices": 2 * parts["matrices"][::-1] + 1})
        case "text for a number":
            metrics.write_text(json.dumps(record | {"miou": "high"}))
        case "no configuration":
            (folder / "config.yaml").unlink()
            (folder / ".hydra" / "config.yaml").unlink()
        case "broken yaml":
            (folder / ".hydra" / "hydra.yaml").write_text("a: [1, {")
        case "tagged yaml":
            (folder / ".hydra" / "hydra.yaml").write_text("!!python/object/apply:os.getcwd []")
        case "endless yaml":
            (folder / "config.yaml").write_text("seed: 1\noptim: &a\n  lr: [1]\n  again: *a\n")
        case "broken run.json":
            (folder / "run.json").write_bytes(b"\xff\xfe{")
        case "deep yaml":
            (folder / ".hydra" / "config.yaml").write_text("[" * 200_000)
        case "nested maps":
            (folder / "config.yaml").write_text("".join(f"{' ' * depth}a:\n" for depth in range(500)))
        case "nested json":
            (folder / "run.json").write_text('{"a": ' * 5000 + "1" + "}" * 5000)
        case "null as an option":
            (folder / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {null: 1}}}")
        case "endless curves":
            (folder / "metrics.csv").unlink()
            (folder / "metrics.csv").symlink_to("/dev/zero")
        case "a pipe":
            metrics.unlink()
            os.mkfifo(metrics)
        case "gigabytes":
            several = np.zeros((200, 4, 4), np.int64)  # more than the lowered limit of the test
            np.savez_compressed(confusions, **parts | {"matrices": several, "names": np.arange(200).astype(str)})
        case "a secret":
            (folder / "config.yaml").unlink()
            (folder / "config.yaml").symlink_to("/etc/hostname")
        case "empty":
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()


DAMAGES = {
    "no scores yet": "no metrics.json",
    "half a record": "metrics.json is damaged or half written",
    "a list": "its metrics.json",
    "not written by fcnlab": "was not written by fcnlab",
    "no protocol": "was not written by fcnlab: its protocol has no set",
    "ignored pixels only": "no scores",
    "no matrices": "no confusions.npz",
    "half the matrices": "confusions.npz is damaged",
    "other arrays": "confusions.npz is damaged",
    "a pickle": "confusions.npz is damaged",
    "wrong shape": "does not contain a confusion matrix for each image",
    "negative": "does not contain a confusion matrix for each image",
    "fractions": "does not contain a confusion matrix for each image",
    "twice": "contains an image twice",
    "killed between": "from different evaluations",
    "text for a number": "from different evaluations",
    "no configuration": "no configuration",
    "broken yaml": "hydra.yaml is damaged",
    "tagged yaml": "hydra.yaml is damaged",
    "endless yaml": "config.yaml has YAML aliases",
    "broken run.json": "run.json is damaged",
    "deep yaml": "config.yaml has over 50 levels",
    "nested maps": "config.yaml has over 50 levels",
    "nested json": "run.json is damaged",
    "null as an option": "hydra.yaml has the key None",
    "endless curves": "metrics.csv is a link that leads out",
    "a pipe": "metrics.json is not a regular file",
    "gigabytes": "confusions.npz is damaged: matrices would have 25,600 bytes",
    "a secret": "config.yaml is a link that leads out",
    "empty": "an empty folder",
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_unusable_runs_are_excluded_with_a_reason(make_run, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(reading, "UNPACKED", 20_000)
    bad = make_run("1")
    good = make_run("2")
    damage(bad, kind)
    runs, left_out = read_runs([tmp_path / "runs"])
    assert [run.folder for run in runs] == [good]
    (out,) = left_out
    assert out.folder == bad and DAMAGES[kind] in out.reason


@pytest.mark.parametrize(
    ("status", "message"),
    [("running", "still running, or killed"), ("interrupted", "resumes it"), ("failed", "failed: why")],
)
def test_an_unfinished_run_is_excluded_with_its_status(make_run, tmp_path, status, message):
    folder = make_run("a", status=status)
    with pytest.raises(Unusable, match=message):
        read_run(folder)


def test_an_interrupted_job_is_resumed_with_its_sweep(make_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = make_run("a", status="interrupted")
    (tmp_path / "runs/sweep.json").write_text("{}")
    with pytest.raises(Unusable, match=r"^interrupted: fcnlab train -m sweep\.resume=runs resumes the sweep$"):
        read_run(folder)


def test_predictions_comparisons_and_staged_parents_are_not_runs(make_run, tmp_path):
    make_run("predict", verb="predict", status="none")
    make_run("compare", verb="compare", status="none")
    make_run("staged", settings={"stages": ["paper/fcn32s", "paper/fcn16s"]})
    assert read_runs([tmp_path / "runs"]) == ([], [])


def with_facts(folder: Path, **facts):
    """Read a run after adding facts to its run.json."""
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    return read_run(folder)


def initial_weights(recipe: str | None, sha256: str, setting: str = "model.weights") -> dict:
    return {setting: {"name": "best.ckpt", "sha256": sha256, "recipe": recipe}}


def test_initial_weights_are_identified_by_content_not_path(make_run):
    """Weights of fcnlab runs are identified by their recipe, which seeds share; other files by a hash."""
    path = {"model.weights": "../pre/best.ckpt"}
    runs = [make_run(f"{place}/fine", seed=place, settings=path) for place in (1, 2, 3)]
    first = with_facts(runs[0], weights=initial_weights("aaaa", "1" * 64))
    second = with_facts(runs[1], weights=initial_weights("aaaa", "2" * 64))
    third = with_facts(runs[2], weights=initial_weights("bbbb", "3" * 64))
    assert first.settings["model.weights"] == second.settings["model.weights"] == "best.ckpt (aaaa)"
    assert first.weights != second.weights and third.settings["model.weights"] == "best.ckpt (bbbb)"
    foreign = with_facts(runs[0], weights=initial_weights(None, "1" * 64))
    assert foreign.settings["model.weights"] == "best.ckpt (11111111)"


def test_initial_weights_that_depend_on_the_seed_are_one_setting(make_run):
    path = {"model.weights": "D/fcn8s_seed${seed}.ckpt"}
    run = with_facts(make_run("a", settings=path), weights=initial_weights("aaaa", "1" * 64))
    assert run.settings["model.weights"] == "best.ckpt (aaaa)"
    assert "model.weights" not in with_facts(run.folder, weights=initial_weights(None, "1" * 64)).settings


@pytest.mark.parametrize(
    ("typed", "counts"),
    [("${hydra:job.num}", True), ("${oc.env:DECAY}", True), ("${optim.lr}", False), ("x/${seed}", False)],
)
def test_interpolations_from_outside_the_config_are_settings(typed, counts):
    """These are job numbers and environment variables; references to other settings do not count."""
    settings = identifying_values({"optim": {"weight_decay": typed}}, {"optim": {"weight_decay": 1}})
    assert settings == ({"optim.weight_decay": 1} if counts else {})


def test_recorded_facts_without_a_setting_are_settings(make_run):
    """These are the images of a list, the devices chosen by devices=auto, and a separate data seed."""
    images = {"train": {"count": 24, "names": "abcdef0123"}, "val": {"count": 8, "names": "0123abcdef"}}
    run = with_facts(make_run("a", settings={"trainer.devices": "auto"}), images=images, devices=8)
    assert run.settings["images.train"] == "24 (abcdef01)" and run.settings["images.val"] == "8 (0123abcd)"
    assert run.settings["trainer.devices"] == 8
    typed = with_facts(make_run("b", settings={"data.seed": 2, "trainer.devices": 2}), devices=2)
    assert (typed.settings["data.seed"], typed.settings["trainer.devices"]) == (2, 2)
    assert "data.seed" not in run.settings
    for nonsense in (3, "x", [1], {"train": 3, "weights": [1]}, None):
        facts = {"images": nonsense, "weights": nonsense, "inherited": nonsense, "segments": nonsense}
        assert "images.train" not in with_facts(run.folder, **facts).settings


def test_a_long_reason_of_a_failed_run_is_shortened(make_run):
    folder = make_run("a", status="failed")
    (folder / "run.json").write_text(json.dumps({"status": "failed", "reason": "x" * 1_000_000}))
    with pytest.raises(Unusable) as output:
        read_run(folder)
    assert str(output.value).startswith("failed: xxx") and len(str(output.value)) == LONGEST_REASON


@pytest.mark.parametrize("status", ["interrupted", "running", "failed"])
def test_an_evaluation_of_an_unfinished_training_run_is_excluded(make_run, status):
    output = trained(make_run("train/a")) | {"status": status, "step": 20}
    with pytest.raises(Unusable, match=f"its training run was not finished when its checkpoint of step 20.*{status}"):
        evaluation(make_run, "eval/a", Path("runs/train/a"), trained=output)


@pytest.mark.parametrize(
    ("more", "usable"),
    [
        ({f"x{place}": place for place in range(1_500)}, True),
        ({f"x{place}": place for place in range(2_001)}, False),
        ({"x": "y" * 9_000}, True),
        ({"x": "y" * 10_001}, False),
        ({"x": ["y" * 100] * 101}, False),
    ],
)
def test_runs_with_excessive_settings_are_excluded(make_run, more, usable):
    output = trained(make_run("train/a"))
    output["settings"] |= more
    if usable:
        run = evaluation(make_run, "eval/a", Path("runs/train/a"), trained=output)
        assert more.items() <= run.settings.items()
    else:
        with pytest.raises(Unusable, match="over 2,000 settings, or one with over 10,000 characters"):
            evaluation(make_run, "eval/a", Path("runs/train/a"), trained=output)


@pytest.mark.parametrize("ended", [{"a": 1}, "zzzz", 3, None, "9999999-01-01"])
def test_an_invalid_end_time_is_replaced(make_run, ended):
    run = with_facts(make_run("a"), ended=ended)
    assert run.ended < "2100" and run.ended[:2] == "20"


@pytest.mark.parametrize("output", [3, [], {}, {"settings": 1}, {"settings": {}, "options": 3, "seed": "x", "root": 1}])
def test_an_invalid_record_of_the_training_run_is_ignored(make_run, output):
    assert evaluation(make_run, "eval/a", Path("runs/train/a"), trained=output).seed is None


@pytest.mark.parametrize(
    ("typed", "kept"), [(["optim.lr=1"], True), (["data=shapes"], False), (["data.val_list=x"], False)]
)
def test_published_scores_are_kept_for_the_experiments_data_only(make_run, typed, kept):
    """``fcnlab train`` writes it to the configuration only."""
    run = read_run(make_run("a", settings={"published": {"miou": 65.5}}, typed=typed))
    assert run.published == ({"miou": 65.5} if kept else {})


def evaluation(make_run, name: str, training: Path, checkpoint: str = "best", inference: str = "whole", **kwargs):
    path = str(training / "checkpoints" / f"{checkpoint}.ckpt")
    settings = {"checkpoint": path, "inference._target_": f"fcnlab.inference.{inference}", "seed": 1}
    options = {"inference": inference, "postprocess": "none", "data": None, "model": None, "optim": None}
    facts = kwargs if "trained" in kwargs else {"trained": trained(training), **kwargs}
    return read_run(make_run(name, verb="eval", settings=settings, options=options, **facts))


def test_an_evaluation_has_the_settings_and_seed_of_its_training_run(make_run):
    training = make_run("train/a", seed=4, model="fcn16s")
    plain = evaluation(make_run, "eval/a", training)
    flipped = evaluation(make_run, "eval/b", training, inference="flip")
    assert plain.seed == flipped.seed == 4 and plain.options["model"] == flipped.options["model"] == "fcn16s"
    assert plain.settings == read_run(training).settings and plain.options == read_run(training).options
    assert flipped.settings == plain.settings | {"inference._target_": "fcnlab.inference.flip"}


def test_a_list_of_one_checkpoint_is_that_checkpoint(make_run):
    training = make_run("train/a")
    plain = evaluation(make_run, "eval/a", training)
    settings = {"checkpoint": [f"{training}/checkpoints/best.ckpt"], "inference._target_": "fcnlab.inference.whole"}
    options = {"inference": "whole", "postprocess": "none", "data": None, "model": None, "optim": None}
    run = read_run(make_run("eval/b", verb="eval", settings=settings, options=options, trained=trained(training)))
    assert run.settings["scoring.checkpoint"] == "best.ckpt" and run.settings == plain.settings


def test_a_downloaded_checkpoint_is_the_file_in_its_artifact(make_run):
    """So that evaluations of downloaded and of local checkpoints, and of all seeds, are one group."""
    training = make_run("train/a")
    plain = evaluation(make_run, "eval/a", training)
    settings = {"checkpoint": "wandb:team/fcnlab/checkpoint-abc:v3", "inference._target_": "fcnlab.inference.whole"}
    options = {"inference": "whole", "postprocess": "none", "data": None, "model": None, "optim": None}
    weights = {"checkpoint": {"name": "best.ckpt", "sha256": "0", "artifact": "team/fcnlab/checkpoint-abc:v3"}}
    facts = {"trained": trained(training), "weights": weights}
    run = read_run(make_run("eval/b", verb="eval", settings=settings, options=options, **facts))
    assert run.settings == plain.settings


def test_postprocessing_is_a_setting_of_an_evaluation(make_run):
    training = make_run("train/a")
    path = f"{training}/checkpoints/best.ckpt"
    step = {"postprocess._target_": "fcnlab.inference.GuidedFilter", "postprocess.radius": 4}
    settings = {"checkpoint": path, "inference._target_": "fcnlab.inference.WholeImage"} | step
    options = {"inference": "whole", "postprocess": "guided", "data": None, "model": None, "optim": None}
    run = read_run(make_run("eval/a", verb="eval", settings=settings, options=options, trained=trained(training)))
    own = read_run(training)
    assert run.options == own.options | {"postprocess": "guided"}
    assert run.settings == own.settings | step


def test_evaluations_of_one_run_differ_in_checkpoint_and_precision(make_run):
    training = make_run("train/a", settings={"trainer.precision": "auto"})
    best = evaluation(make_run, "eval/a", training)
    last = evaluation(make_run, "eval/b", training, "last")
    short = evaluation(make_run, "eval/c", training, protocol={"precision": "bf16-mixed"})
    assert best.settings == read_run(training).settings and best.settings["trainer.precision"] == "32-true"
    assert last.settings == best.settings | {"scoring.checkpoint": "last.ckpt"}
    assert short.settings == best.settings | {"scoring.precision": "bf16-mixed"}


def test_evaluations_keep_the_precision_of_training(make_run):
    trained = [make_run(f"train/{name}", protocol={"precision": name}) for name in ("bf16-mixed", "32-true")]
    mixed, full = (evaluation(make_run, f"eval/{run.name}", run) for run in trained)
    assert mixed.settings == full.settings | {"trainer.precision": "bf16-mixed"}


def test_the_end_of_an_evaluation_is_the_time_of_its_scores(make_run):
    training = make_run("train/a")
    run = evaluation(make_run, "eval/a", training)
    os.utime(run.folder / "metrics.json", (0, 1.5))
    assert read_run(run.folder).ended == "1970-01-01T00:00:01.500000+00:00" < read_run(training).ended


def test_a_job_with_only_a_log_is_excluded_with_a_reason(make_run, tmp_path):
    make_run("0")
    (tmp_path / "runs" / "1").mkdir()
    (tmp_path / "runs" / "1" / "job.log").write_text("ImportError: libcudart.so")
    runs, (out,) = read_runs([tmp_path / "runs"])
    assert len(runs) == 1 and out.folder.name == "1" and "see its job.log" in out.reason


def test_weights_without_a_training_record_are_named_by_file(make_run):
    weights = {"checkpoint": {"name": "best.ckpt", "sha256": "0123456789abcdef", "recipe": None}}
    run = evaluation(make_run, "eval/a", Path("/nowhere"), trained=None, weights=weights)
    assert run.settings["scoring.checkpoint"] == "best.ckpt (01234567)" and run.seed is None


@pytest.mark.parametrize("text", ["", "step,val/miou\n1", "step,val/miou\nx,y\n2,nan\n3,0.5,7\n", "\x00", "a\nb\n"])
def test_damaged_curves_are_skipped(make_run, text):
    folder = make_run("a")
    (folder / "metrics.csv").write_text(text)
    assert all(np.isfinite(values).all() for values in read_run(folder).curves.values())


def test_a_time_without_a_time_zone_gives_no_minutes(make_run):
    folder = make_run("a")
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"started": "2026-11-24T10:00:00"}))
    assert "minutes" not in read_run(folder).cost


def test_a_numeric_option_is_read_as_text(make_run):
    folder = make_run("a")
    (folder / ".hydra" / "hydra.yaml").write_text("hydra: {runtime: {choices: {1: 2}}}")
    assert read_run(folder).options == {"1": "2", "inference": "whole", "postprocess": "none"}


def test_linked_runs_are_read_once(make_run, tmp_path):
    runs = [make_run(f"../kept/{seed}", seed=seed) for seed in (1, 2)]
    folder = tmp_path / "links"
    folder.mkdir()
    for place, run in enumerate((*runs, runs[0])):
        (folder / str(place)).symlink_to(run.resolve())
    (runs[0] / "back").symlink_to(folder)  # a loop of links
    read, left_out = read_runs([folder])
    assert [run.folder.name for run in read] == ["0", "1"]
    assert [out.folder.name for out in left_out] == ["back"]
    assert len(read_runs([folder, tmp_path / "kept"])[0]) == 2


def test_a_linked_sweep_is_read(make_run, tmp_path):
    make_run("../kept/sweep/0")
    (tmp_path / "kept" / "sweep" / "sweep.json").write_text("{}")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "mine").symlink_to("../kept/sweep")
    read, left_out = read_runs([tmp_path / "links"])
    assert [run.folder for run in read] == [tmp_path / "links" / "mine" / "0"] and not left_out


def test_other_links_are_named_and_not_followed(tmp_path):
    (tmp_path / "links").mkdir()
    for name, target in {"root": "/", "gone": "nowhere", "self": "self", "up": ".."}.items():
        (tmp_path / "links" / name).symlink_to(target)
    read, left_out = read_runs([tmp_path / "links"])
    assert not read and {out.folder.name for out in left_out} == {"root", "gone", "self", "up"}
    assert all("link" in out.reason for out in left_out)


def test_too_deep_folders_are_excluded_with_a_reason(make_run, tmp_path):
    good = make_run("a")
    deep = tmp_path / "runs"
    for _ in range(60):
        deep = deep / "d"
    deep.mkdir(parents=True)
    runs, (out,) = read_runs([tmp_path / "runs"])
    assert [run.folder for run in runs] == [good] and "40 folders below" in out.reason


def test_a_folder_that_cannot_be_listed_is_excluded_with_a_reason(make_run, tmp_path, monkeypatch):
    good, locked = make_run("a"), tmp_path / "runs" / "locked"
    locked.mkdir()
    look = os.scandir

    def refused(path):
        if str(path) == str(locked):
            raise PermissionError("no")
        return look(path)

    monkeypatch.setattr("fcnlab.comparison.runs.os.scandir", refused)
    runs, left_out = read_runs([tmp_path / "runs"])
    assert [run.folder for run in runs] == [good] and left_out == [ExcludedRun(locked, "cannot be read: no")]


def test_an_unexpected_error_in_one_run_does_not_stop_the_others(make_run, tmp_path, monkeypatch):
    bad, good = make_run("1"), make_run("2")
    read = read_run

    def broken(folder):
        if folder == bad:
            raise AttributeError("of a kind that nobody thought of")
        return read(folder)

    monkeypatch.setattr("fcnlab.comparison.runs.read_run", broken)
    runs, (out,) = read_runs([tmp_path / "runs"])
    assert [run.folder for run in runs] == [good] and "nobody thought of" in out.reason


def test_a_resumed_run_has_no_minutes(make_run):
    """The time of its first part is not recorded."""
    folder = make_run("a")
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"starts": 2}))
    assert "minutes" not in read_run(folder).cost


def test_a_folder_without_read_permission_is_excluded_with_a_reason(make_run, tmp_path, monkeypatch):
    folder = make_run("a")
    monkeypatch.setattr(
        "fcnlab.comparison.runs.read_run", lambda folder: (_ for _ in ()).throw(PermissionError("locked"))
    )
    assert read_runs([tmp_path / "runs"]) == ([], [ExcludedRun(folder, "cannot be read: locked")])


def test_leaves_of():
    assert leaves_of({"a": {"b": 1, "c": {}}, "d": [1]}) == {"a.b": 1, "a.c": {}, "d": [1]}


def test_compare_does_not_import_torch():
    code = "import sys, fcnlab.tasks.compare\n"
    code += "print([name for name in ('torch', 'lightning', 'wandb') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_invalid_hydra_config_is_ignored(make_run):
    folder = make_run("a")
    (folder / ".hydra" / "hydra.yaml").write_text(
        yaml.safe_dump({"hydra": {"job": 3, "runtime": [1], "overrides": "x"}})
    )
    assert read_run(folder).options == {"inference": "whole", "postprocess": "none"}


def evaluation_on(make_run, name: str, training, root: str, seed: int = 1, batch_size: int = 8, **kwargs):
    """Write and read a run of ``fcnlab eval checkpoint=... data=toys data.root=...``."""
    settings = {"checkpoint": f"{training}/checkpoints/best.ckpt", "inference._target_": "fcnlab.inference.whole"}
    settings |= {"data.root": root, "data.batch_size": batch_size, "data.crop_size": 128, "data.dataset.num_val": 40}
    options = {"inference": "whole", "postprocess": "none", "data": "toys", "model": None, "optim": None}
    facts = {"trained": trained(training), **kwargs}
    return read_run(make_run(name, verb="eval", settings=settings, options=options, **facts))


def test_an_evaluation_on_other_data_keeps_the_training_data(make_run):
    own = {"data.root": "here", "data.batch_size": 4, "data.crop_size": 96, "data.dataset.num_train": 300}
    training = make_run("train/a", settings=own)
    run = evaluation_on(make_run, "eval/a", training, "there")
    trained = read_run(training).settings
    assert {path: run.settings[path] for path in own} == own
    assert run.settings == trained | {"scoring.data.root": "there"} and trained["scoring.data.root"] == "here"
    assert run.options == read_run(training).options and "scoring.data.root" in run.typed


@pytest.mark.parametrize("root", ["../train/data", "{runs}/train/data", "{runs}/eval/../train/./data"])
def test_another_path_to_the_same_folder_is_the_same_data(make_run, tmp_path, root):
    """Each command is run in the parent of its run folder."""
    training = make_run("train/a")
    run = evaluation_on(make_run, "eval/a", training, root.format(runs=tmp_path / "runs"))
    assert run.settings == read_run(training).settings


def test_weights_without_a_training_run_have_no_training_data(make_run):
    settings = {
        "inference._target_": "fcnlab.inference.whole",
        "data.root": "there",
        "model.weights": "net.safetensors",
    }
    run = read_run(
        make_run("eval/a", verb="eval", settings=settings, options={"inference": "whole", "postprocess": "none"})
    )
    assert not [path for path in run.settings if path.startswith("data.")] and "data" not in run.options
    assert run.settings["scoring.data.root"] == "there" and run.settings["model.weights"] == "net.safetensors"


def test_a_fork_records_changed_settings_and_inherited_code(make_run):
    """The checkpoint contains the segments of the original run, so later changes of that run have no effect."""
    segments = [{"from_step": 0, "changed": {}}, {"from_step": 20, "changed": {"optim.lr": [0.002, 0.1]}}]
    fork = make_run("a/fork", settings={"checkpoint": "/nowhere/last.ckpt", "optim.lr": 0.1}, source="bbb")
    record = json.loads((fork / "run.json").read_text())
    began = {"inherited": [{"source": {"fcnlab": "aaa"}}], "resumed_at": 20, "segments": segments}
    (fork / "run.json").write_text(json.dumps(record | began))
    run = read_run(fork)
    straight = read_run(make_run("a/straight", settings={"optim.lr": 0.1}, source="aaa"))
    output = {"resumed": "from step 20 optim.lr=0.1 (was 0.002)", "source.fcnlab": "aaa+bbb"}
    assert run.settings == straight.settings | output | {"scoring.source.fcnlab": "bbb"}
    assert "minutes" in straight.cost and "minutes" not in run.cost


def test_the_source_covers_all_starts_and_the_evaluation(make_run):
    starts = [{"source": {"fcnlab": "aaa"}}, {"source": {"fcnlab": "aaa"}}]
    assert read_run(make_run("same", source="aaa", earlier=starts)).settings["source.fcnlab"] == "aaa"
    mixed = make_run("mixed", source="bbb", earlier=starts)
    run = read_run(mixed)
    assert run.settings["source.fcnlab"] == "aaa+bbb" and run.settings["scoring.source.fcnlab"] == "bbb"
    scored = evaluation(make_run, "eval/a", mixed, source="ccc", torch="2.10.0")
    assert scored.settings == run.settings | {"scoring.source.fcnlab": "ccc"}
    assert (scored.environment["torch"], scored.environment["scoring.torch"]) == ("2.9.0", "2.10.0")
    old = read_run(make_run("old", earlier=[{"status": "failed"}]))
    assert old.settings["source.fcnlab"] == "unknown"
    assert read_run(make_run("newer", source="aaa", earlier=[{}])).settings["source.fcnlab"] == "unknown+aaa"


@pytest.mark.parametrize("source", [3, "text", ["a"], None, {"fcnlab": None}])
def test_an_invalid_source_is_ignored(make_run, source):
    folder = make_run("a", provenance={"source": source, "versions": source, "commit": source})
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(facts | {"source": source, "earlier": source}))
    assert read_run(folder).settings["source.fcnlab"] in ("unknown", "None")


@pytest.mark.parametrize("checkpoint", [{"a": 1}, ["x"], 3, ""])
@pytest.mark.parametrize("verb", ["train", "eval"])
def test_an_invalid_checkpoint_setting_is_ignored(make_run, verb, checkpoint):
    settings = {"checkpoint": checkpoint} | ({"inference._target_": "x"} if verb == "eval" else {})
    assert len(read_run(make_run("a", verb=verb, settings=settings)).names) == 36


def test_a_run_resumed_with_other_settings_is_not_a_repeat(make_run):
    """Its config.yaml equals that of a run which used the last values from the start."""
    whole, resumed, equal = (make_run(name, settings={"optim.lr": 0.01}) for name in ("whole", "resumed", "equal"))
    first = {"from_step": 0, "started": "", "changed": {}}
    then = {"from_step": 200, "started": "", "changed": {"optim.lr": [0.001, 0.01], "logger.x": [1, 2]}}
    for folder, segments in ((resumed, [first, then]), (equal, [first]), (whole, "nonsense")):
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(record | {"segments": segments}))
    settings = {folder.name: read_run(folder).settings for folder in (whole, resumed, equal)}
    assert settings["whole"] == settings["equal"]
    assert settings["resumed"] == settings["whole"] | {"resumed": "from step 200 optim.lr=0.01 (was 0.001)"}
