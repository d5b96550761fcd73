"""Run folders from other people only provide settings: repeating, resuming or scoring them runs none of their code."""

import json
import shlex
import sys
import time

import pytest
import yaml

from fcnlab.config.recorded_overrides import apply_from_run, apply_sweep_resume
from fcnlab.data import DataError, DataModule, open_shapes
from fcnlab.errors import UserError

FEW = ("trainer.max_steps=2", "trainer.val_check_interval=2")


@pytest.fixture
def repeated_overrides(tmp_path, monkeypatch):
    """Return the overrides of a command line that repeats a record with given overrides in the folder ``old``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()

    def words(overrides: list, *typed: str, **facts) -> list[str]:
        argv = ["fcnlab", "--config-name=train", *typed]
        for name in ("run", "sweep"):
            (tmp_path / "old" / f"{name}.json").write_text(json.dumps({"overrides": overrides} | facts))
        apply_from_run(argv, "train")
        apply_sweep_resume(argv, "train")
        return [word for word in argv[2:] if not word.startswith("hydra.sweep.dir")]

    return words


@pytest.mark.parametrize("typed", ["from_run=old", "sweep.resume=old"])
@pytest.mark.parametrize(
    "word", ["loss=../../../proc/self/cwd/old/evil", "model.weights='${ oc.env:HOME}'", "stages=[x]"]
)
def test_a_record_with_unsafe_overrides_is_refused(repeated_overrides, typed: str, word: str):
    with pytest.raises(
        UserError,
        match=rf"^{typed}: its record is refused, because of the override .*: .*\. (Add|If the sweep is yours, type) ",
    ):
        repeated_overrides(["seed=1", word], typed, "--multirun")


def test_the_command_to_resume_a_refused_sweep_is_complete(repeated_overrides):
    """A record may not restore the job's number as the seed."""
    words = ["seed=${hydra:job.num}", "optim.lr=0.1,0.2"]
    with pytest.raises(UserError, match="If the sweep is yours, type all of its settings: ") as refused:
        repeated_overrides(words, "--multirun", "sweep.resume=old")
    line = str(refused.value).partition("settings: ")[2]
    assert shlex.split(line) == ["fcnlab", "train", "--multirun", "sweep.resume=old", *words]
    assert set(words) <= set(repeated_overrides(words, *shlex.split(line)[2:]))


def test_overrides_refused_in_a_record_may_be_typed(repeated_overrides):
    words = repeated_overrides(["seed=1", "data.archive=[a.tar]"], "data.archive=[a.tar]", "from_run=old")
    assert words == ["data.archive=[a.tar]", "seed=1", "from_run=old"]


def test_refused_overrides_are_shown_as_they_are_typed(repeated_overrides, tmp_path):
    """For example the job's number or an environment variable: their values are in the run's config.yaml."""
    words = [
        "trainer=smoke",
        "seed=${hydra:job.num}",
        "+optim.lr='${oc.decode:${oc.env:LR}}'",
        "data.archive='${oc.env:A}'",
    ]
    values = {"seed": 1, "optim": {"lr": 0.2}, "data": {"archive": "/etc"}}
    (tmp_path / "old" / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(
        UserError, match=r"^from_run=old: its record is refused, because of the override seed="
    ) as output:
        repeated_overrides(words, "from_run=old")
    assert str(output.value).endswith("Add the values of the run behind it: seed=1 +optim.lr=0.2")
    (tmp_path / "old" / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"Add the override that you want behind it; a typed override wins$"):
        repeated_overrides(words, "from_run=old")
    (tmp_path / "old" / "config.yaml").write_text("seed: {a: &a 1, b: *a}")  # not one of fcnlab's
    with pytest.raises(UserError, match=r"Add the override that you want behind it; a typed override wins$"):
        repeated_overrides(words, "from_run=old")


@pytest.mark.parametrize("words", [["seed=" + 200_000 * "1,"], 50_000 * ["seed=${hydra:job.num}"]])
def test_a_record_of_a_million_characters_is_refused_at_once(repeated_overrides, words):
    """Its values are not parsed either: that would take Hydra minutes."""
    start = time.process_time()
    with pytest.raises(UserError, match="its overrides have more than 10000 characters"):
        repeated_overrides(words, "from_run=old")
    assert time.process_time() - start < 1


def test_a_long_value_from_a_record_is_not_shown(repeated_overrides, tmp_path):
    (tmp_path / "old" / "config.yaml").write_text(f"seed: [{10_000 * 'a, '}a]")
    start = time.process_time()
    with pytest.raises(UserError, match="a typed override wins"):
        repeated_overrides(["seed=${hydra:job.num}"], "from_run=old")
    assert time.process_time() - start < 1


def test_a_typed_dictionary_extends_the_recorded_one(repeated_overrides):
    kept = ["optim=sgd", "optim={lr: 0.5}"]
    words = repeated_overrides([*kept, "seed=1"], "optim={momentum: 0.5}", "seed=2", "from_run=old")
    assert [word for word in words if word.startswith(("optim", "seed"))] == ["optim={momentum: 0.5}", "seed=2", *kept]


def test_settings_specific_to_one_run_are_left_out(repeated_overrides):
    own = ["checkpoint=auto", "from_run=x", "sweep.folder=/x", "++sweep.recorded=false", "sweep={folder: /x}"]
    assert repeated_overrides([*own, "seed=1"], "from_run=old") == ["seed=1", "from_run=old"]


@pytest.mark.parametrize("typed", ["from_run=old", "sweep.resume=old"])
def test_data_that_a_record_names_are_only_read(repeated_overrides, typed: str):
    for word in ("data=voc", "data.dataset.num_train=9", "experiment=paper/fcn8s"):
        assert "sweep.recorded=true" in repeated_overrides([word], typed, "--multirun")
    assert "sweep.recorded=true" not in repeated_overrides(
        ["seed=1,2" if "sweep" in typed else "seed=1"], typed, "--multirun"
    )
    assert "sweep.recorded=true" not in repeated_overrides(["data=voc"], "data.root=x", "data=voc", typed, "--multirun")


@pytest.mark.parametrize(("typed", "kind"), [("from_run=old", "run"), ("sweep.resume=old", "sweep")])
def test_a_recorded_config_folder_is_shown_and_must_be_typed(repeated_overrides, tmp_path, typed: str, kind: str):
    (tmp_path / "my conf").mkdir()
    with pytest.raises(UserError) as output:
        repeated_overrides(["seed=1"], typed, "--multirun", config_dir=str(tmp_path / "my conf"))
    first, _, line = str(output.value).partition("\n")[0].partition(" Type: ")
    assert first == f"This {kind} used --config-dir my conf."
    assert shlex.split(line) == ["fcnlab", "train", "--config-dir", "my conf", typed, "--multirun"]
    words = repeated_overrides(["seed=1"], *shlex.split(line)[2:], config_dir=str(tmp_path / "my conf"))
    assert words[:2] == ["--config-dir", "my conf"] and "seed=1" in words


@pytest.mark.parametrize("entry", ["file://{}/my conf", "{}/my conf", "my conf", "file://my conf"])
@pytest.mark.parametrize(("typed", "kind"), [("from_run=old", "run"), ("sweep.resume=old", "sweep")])
def test_a_typed_searchpath_provides_user_options(repeated_overrides, tmp_path, typed, kind, entry):
    (tmp_path / "my conf" / "optim").mkdir(parents=True)
    (tmp_path / "my conf" / "optim" / "own.yaml").write_text("{}")
    (tmp_path / "my conf" / "optim" / "link.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    (tmp_path / "elsewhere.yaml").write_text("{}")
    where = f"hydra.searchpath=['{entry.format(tmp_path)}']"
    command = shlex.join(["fcnlab", "train", where, "optim=own"])
    with pytest.raises(UserError) as refused:
        repeated_overrides(["optim=own"], typed, "--multirun", command=command)
    first, _, line = str(refused.value).partition("\n")[0].partition(" Type: ")
    assert first == f"This {kind} used {where}."
    assert shlex.split(line) == ["fcnlab", "train", where, typed, "--multirun"]
    assert "optim=own" in repeated_overrides(["optim=own"], *shlex.split(line)[2:], command=command)
    with pytest.raises(UserError, match=r"optim/link\.yaml leads out of its config folder"):
        repeated_overrides(["optim=link"], where, typed, "--multirun", command=command)


def test_a_missing_searchpath_is_named_if_its_options_are_missing(repeated_overrides, tmp_path):
    """A record cannot set one, and Hydra reads folders and packages only from ``hydra.searchpath=``."""
    for folder in ("mine", "more"):
        (tmp_path / folder / "optim").mkdir(parents=True)
        (tmp_path / folder / "optim" / f"of_{folder}.yaml").write_text("{}")
    where = f"hydra.searchpath=[{tmp_path}/more]"
    words, facts = ["optim=of_more"], {"config_dir": str(tmp_path / "mine"), "command": f"fcnlab train '{where}' a=b"}
    with pytest.raises(UserError, match=r"optim has no such option here.* This run used hydra.searchpath=\[.*Type: "):
        repeated_overrides(words, "--config-dir=mine", "from_run=old", **facts)
    for typed in ("++" + where, "hydra.searchpath=[pkg://mine]", "hydra.searchpath=[${oc.env:HOME}]"):
        with pytest.raises(UserError, match=r"optim has no such option here|This run used --config-dir mine"):
            repeated_overrides(words, typed, "from_run=old", **facts)
    for record in ({"command": "'"}, {"command": ["x"]}, {"command": "fcnlab train ++hydra.searchpath=[x]"}):
        assert repeated_overrides(["seed=1"], "from_run=old", **record) == ["seed=1", "from_run=old"]
    with pytest.raises(UserError, match=r"its record is refused, because of the override hydra\.searchpath"):
        repeated_overrides([where, *words], "from_run=old")


@pytest.mark.parametrize("text", ["", "[]", '{"overrides": "seed=1"}', '{"overrides": [1]}', "[" * 100_000])
def test_an_invalid_record_is_reported(repeated_overrides, tmp_path, text: str):
    repeated_overrides([], "seed=1")
    (tmp_path / "old" / "run.json").write_text(text)
    with pytest.raises(
        UserError, match=r"no record of a run there .*Give a folder with run\.json|its record is refused"
    ):
        apply_from_run(["fcnlab", "--config-name=train", "from_run=old"], "train")


def test_a_link_out_of_a_sweep_is_refused(repeated_overrides, tmp_path):
    (tmp_path / "old" / "0").symlink_to(tmp_path)
    with pytest.raises(UserError, match="old/0 is a link that leads out of the folder"):
        repeated_overrides(["seed=1,2"], "sweep.resume=old", "--multirun")


# --- whole commands


def test_the_printed_command_repeats_a_run_with_a_config_folder(train, fcnlab, tmp_path, capsys, small):
    (tmp_path / "mine/loss").mkdir(parents=True)
    (tmp_path / "mine/loss/own.yaml").write_text("_target_: fcnlab.training.losses.Dice\n")
    words = ("--config-dir", "mine", "loss=own", *FEW, *small, "trainer=smoke", "trainer.accelerator=cpu", "logger=csv")
    assert fcnlab("train", *words, "hydra.run.dir=first") == 0
    first = tmp_path / "first"
    facts = json.loads((first / "run.json").read_text())
    assert facts["config_dir"] == str(tmp_path / "mine") and facts["command"].startswith("fcnlab train --config-dir ")
    assert fcnlab("train", "from_run=first", "hydra.run.dir=again") == 1
    message = capsys.readouterr().err
    assert "This run used --config-dir mine. Type: fcnlab train --config-dir mine from_run=first" in message
    assert not (tmp_path / "again").exists()
    assert fcnlab("train", "--config-dir", "mine", "from_run=first", "hydra.run.dir=again") == 0
    assert (first / "metrics.csv").read_text() == (tmp_path / "again" / "metrics.csv").read_text()


def test_a_repeated_run_generates_data_only_in_a_typed_folder(train, fcnlab, tmp_path, capsys, shapes_root):
    folder, place = train(*FEW), tmp_path / "elsewhere"
    for path in (folder / "run.json", folder / ".hydra" / "config.yaml"):
        path.write_text(path.read_text().replace(str(shapes_root), str(place)))
    assert fcnlab("train", f"from_run={folder}", "hydra.run.dir=again") == 1
    message = capsys.readouterr().err
    assert "no shapes in data.root=" in message and "set data=NAME data.root=FOLDER" in message and not place.exists()
    assert fcnlab("train", f"from_run={folder}", f"data.root={place}", "hydra.run.dir=third") == 0 and place.is_dir()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedule.power": "${oc.env:FCNLAB_SECRET}"}, "set by a record"),
        ({"schedule.power": "${seed}"}, "set by a record"),
        ({"augment.scale": [1, "${oc.env:FCNLAB_SECRET}"]}, "set by a record"),
        ({"optim._partial_": False}, "the recorded optim._partial_"),
        ({"callbacks.best.filename": "../../best"}, "must not lead out of the run"),
        ({"trainer.profiler": [[{"a": "/elsewhere"}]]}, "must not lead out of the run"),
        ({"stages": ["../evil"]}, "set by a record"),
        ({"data.root": "/elsewhere"}, "set data=NAME data.root=FOLDER"),
    ],
)
def test_a_recorded_config_is_as_restricted_as_its_overrides(
    train, fcnlab, tmp_path, capsys, monkeypatch, changes, message
):
    secret = "0." + 3 * "12345"  # not as a text that changes.diff may hold
    monkeypatch.setenv("FCNLAB_SECRET", secret)
    folder = train(*FEW)
    record = json.loads((folder / "run.json").read_text())
    record["overrides"] = [word for word in record["overrides"] if "data.root" not in word]
    (folder / "run.json").write_text(json.dumps(record))
    path = folder / ".hydra" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        *parts, last = key.split(".")
        node = config
        for part in parts:
            node = node[part]
        node[last] = value
    path.write_text(yaml.safe_dump(config))
    assert fcnlab("train", f"from_run={folder}", "hydra.run.dir=again") == 1
    assert message in capsys.readouterr().err
    assert all(secret.encode() not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "text", [None, "- 1\n", "a: !!python/object/apply:os.mkdir [acted]\n", "a: [", "\0", "[" * 9_000]
)
def test_an_invalid_config_is_reported(train, fcnlab, tmp_path, capsys, text):
    folder = train(*FEW)
    for typed, name in (("from_run={}", ".hydra/config.yaml"), ("checkpoint={}/checkpoints/best.ckpt", "config.yaml")):
        (folder / name).unlink() if text is None else (folder / name).write_text(text)
        verb, typed = "train" if "from_run" in typed else "eval", typed.format(folder)
        assert fcnlab(verb, typed, "hydra.run.dir=again") == 1
        message = capsys.readouterr().err
        assert typed in message and "Traceback" not in message and not (tmp_path / "acted").exists()


def test_a_record_cannot_choose_output_paths(train, fcnlab, tmp_path):
    folder = train(*FEW)
    path = folder / ".hydra" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["callbacks"]["best"]["dirpath"] = config["data"]["cache_dir"] = str(tmp_path / "precious")
    path.write_text(yaml.safe_dump(config))
    assert fcnlab("train", f"from_run={folder}", "hydra.run.dir=again") == 0
    assert not (tmp_path / "precious").exists() and (tmp_path / "again/checkpoints/best.ckpt").is_file()


FETCH = {
    "_target_": "fcnlab.data.download.fetch",
    "archive": {
        "_target_": "fcnlab.data.download.Archive",
        "name": "x",
        "md5": "",
        "urls": ["file:///etc/passwd"],
        "witness": "x",
    },
    "folder": {"_target_": "pathlib.Path", "_args_": ["."]},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(augment=FETCH), "fcnlab.data.download"),
        (lambda data: data.update(root=FETCH), "fcnlab.data.download"),
        (lambda data: data["dataset"].update(_partial_=False, root="drawn", split="val"), "is refused: it calls"),
        (lambda data: data.update(root="${oc.env:HOME}"), "A recorded config has none"),
        (
            lambda data: data.update(num_classes="${count_classes:/dev/zero,/}"),
            "A recorded config has none",
        ),
        (lambda data: data.update(root="drawn"), "set data=NAME data.root=FOLDER"),
        (lambda data: data["dataset"].update(num_val=10_000, draw=True), "set data=NAME data.root=FOLDER"),
    ],
)
def test_data_settings_of_a_checkpoint_that_write_files_are_refused(train, fcnlab, tmp_path, capsys, change, message):
    folder = train(*FEW)
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    change(config["data"])
    path.write_text(yaml.safe_dump(config))
    assert fcnlab("eval", f"checkpoint={folder}/checkpoints/best.ckpt") == 1
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"run", "outputs"}


def test_a_recorded_cache_is_written_inside_the_new_run(train, fcnlab, tmp_path):
    folder = train(*FEW)
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config["data"] |= {"cache": "disk", "cache_dir": str(tmp_path / "precious"), "download": True, "archive": "x.tar"}
    path.write_text(yaml.safe_dump(config))
    assert fcnlab("eval", f"checkpoint={folder}/checkpoints/best.ckpt", "hydra.run.dir=eval") == 0
    assert not (tmp_path / "precious").exists() and any((tmp_path / "eval/cache").iterdir())


def test_downloads_are_refused_for_read_only_data(tmp_path):
    def module(**settings) -> DataModule:
        return DataModule(open_shapes, str(tmp_path), "train", "val", 21, lambda _: None, num_workers=0, **settings)

    with pytest.raises(DataError, match="only read"):
        module(read_only=True, download=True, archive="x.tar").split("val")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/zero has no end")
def test_an_endless_classes_file_is_refused(tmp_path):
    from fcnlab.data.formats.folder import read_classes

    for endless in ("/dev/zero", "../dev/zero"):
        with pytest.raises(DataError, match="cannot be read"):
            read_classes(endless, "/proc" if endless.startswith(".") else str(tmp_path))
