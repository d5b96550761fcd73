"""Test how seeds are added to a sweep, and how the best settings of a sweep are selected, without any sweep."""

import json
import shlex
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from fcnlab.config.recorded_overrides import apply_sweep_resume
from fcnlab.errors import UserError
from fcnlab.sweeps import resumed_settings
from fcnlab.sweeps.confirmation import apply_sweep_confirm, ranked_settings
from fcnlab.sweeps.grid_sweeper import GridSweeper
from fcnlab.sweeps.manifest import Job, Manifest, read_manifest
from fcnlab.sweeps.more_seeds import jobs_with_seeds, parse_seeds
from fcnlab.sweeps.resumed_settings import warn_about_changed_code


@pytest.mark.parametrize(("text", "seeds"), [("4,5", [4, 5]), ("7", [7]), ("range(4,7)", [4, 5, 6])])
def test_seeds_are_listed_as_in_any_sweep(text: str, seeds: list[int]):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4,x", "must list whole numbers, such as seed=4,5"),
        ("${hydra:job.num}", "must list whole numbers"),
        ("interval(1,2)", "must list whole numbers"),
        ("1.5,2", "must list whole numbers"),
        ("-1", "from 0 to 2"),
        ("4,4", "lists a seed twice"),
        ("range(0,1000000000)", "has more than 1000 seeds"),
    ],
)
def test_other_seeds_are_refused(text: str, message: str):
    with pytest.raises(UserError, match=message):
        parse_seeds(text)


def test_each_setting_gets_each_seed_and_later_seeds_are_last():
    jobs = [["model=fcn8s", "seed=1", "+x=1"], ["model=fcn8s", "seed=2", "+x=1"], ["model=fcn16s", "seed=1", "+x=1"]]
    first = jobs_with_seeds(jobs, [4])
    assert first == [["model=fcn8s", "+x=1", "seed=4"], ["model=fcn16s", "+x=1", "seed=4"]]
    assert jobs_with_seeds(jobs, [4, 5])[:2] == first and len(jobs_with_seeds(jobs, [4, 5])) == 4


# --- the command line


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Write the record of a sweep into the folder ``old``: (overrides, score, status) of each job."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "old").mkdir()

    def write(*jobs: tuple[str, object, str], verb: str = "train", **facts: object) -> Path:
        listed = [
            {"number": number, "folder": str(number), "overrides": shlex.split(words), "name": "", "miou": score}
            | {"status": status}
            for number, (words, score, status) in enumerate(jobs)
        ]
        record = {"verb": verb, "overrides": ["model=fcn8s"], "params": [], "started": "", "ended": None}
        record |= {"status": "finished", "jobs": listed} | facts
        (tmp_path / "old" / "sweep.json").write_text(json.dumps(record))
        return tmp_path / "old"

    return write


def rewritten(apply, *typed: str, verb: str = "train") -> list[str]:
    argv = ["fcnlab", f"--config-name={verb}", *typed]
    apply(argv, verb)
    return argv[1:]


def test_an_extension_repeats_the_recorded_overrides(recorded):
    recorded()
    words = rewritten(apply_sweep_resume, "sweep.extend=old", "seed=4,5", "hydra.launcher.slots=1")
    assert words == [
        "--multirun",
        "--config-name=train",
        "sweep.extend=old",
        "model=fcn8s",
        "hydra.sweep.dir='old'",
        "sweep.added_seeds='4,5'",
        "hydra.launcher.slots=1",
    ]


def test_an_extension_of_a_search_or_without_seeds_is_refused(recorded):
    folder = recorded()
    with pytest.raises(UserError, match=r"^sweep\.extend=old needs new seeds\. Add, for example, seed=4,5$"):
        rewritten(apply_sweep_resume, "sweep.extend=old")
    with pytest.raises(UserError, match="only training runs have seeds"):
        rewritten(apply_sweep_resume, "sweep.extend=old", "seed=1", verb="eval")
    with pytest.raises(UserError, match=r"=old: optim\.lr=1 ~loss cannot be set, since all settings but the seed are"):
        rewritten(apply_sweep_resume, "sweep.extend=old", "seed=4", "optim.lr=1", "~loss", "model=fcn8s")
    (folder / "search.json").write_text("{}")
    with pytest.raises(UserError, match=r"fcnlab train -m .*sweep\.confirm=old.* sweep\.best=3 seed=101,102,103"):
        rewritten(apply_sweep_resume, "sweep.extend=old", "seed=4,5")


@pytest.mark.parametrize("apply", [apply_sweep_resume, apply_sweep_confirm])
@pytest.mark.parametrize(
    "word", ["loss=../../evil", "model.weights='${oc.env:HOME}'", "callbacks.x._target_=os.system"]
)
def test_unsafe_overrides_of_a_record_are_refused(recorded, apply, word: str):
    recorded((f'model=fcn8s "{word}"', 0.5, "finished"), combinations=[["model=fcn8s"], [word]])
    request = "sweep.confirm=old" if apply is apply_sweep_confirm else "sweep.extend=old"
    with pytest.raises(UserError, match=rf"^{request}: its record is refused, because of the override "):
        rewritten(apply, request, "seed=4,5", "sweep.best=1")


@pytest.mark.parametrize("facts", [{"added_seeds": [1.5]}, {"added_seeds": [-1]}, {"combinations": ["x"]}])
def test_a_damaged_record_is_refused(recorded, facts):
    with pytest.raises(UserError, match=r"^sweep\.extend=.*: no valid record of a sweep"):
        read_manifest(recorded(**facts), "sweep.extend")


@pytest.mark.parametrize("key", ["overrides", "number", "folder", "name", "status", "miou", "settings"])
@pytest.mark.parametrize("value", [5.5, [3], "x"])
def test_a_job_of_a_damaged_record_is_refused(recorded, key: str, value: object):
    folder = recorded(("seed=1", 0.5, "finished"))
    record = json.loads((folder / "sweep.json").read_text())
    record["jobs"][0][key] = value
    (folder / "sweep.json").write_text(json.dumps(record))
    if (key, value) == ("miou", 5.5) or (value == "x" and key not in ("overrides", "number", "miou")):
        read_manifest(folder, "sweep.confirm")  # the type is right
    else:
        with pytest.raises(UserError, match=r"^sweep\.confirm=.*: no valid record of a sweep"):
            read_manifest(folder, "sweep.confirm")


COMBINATIONS = "sweep.combinations=[['+x._target_=os.system'],['optim.lr=0.1','model.weights=D/${seed}.ckpt']]"
RECORDED = [["+x._target_=os.system"], ["optim.lr=0.1", "model.weights=D/${seed}.ckpt"]]


@pytest.mark.parametrize("named", ["sweep.resume=old", "sweep.extend=old"])
def test_typed_settings_do_not_make_combinations_of_a_record_trusted(recorded, named: str):
    recorded(combinations=RECORDED)
    words = [named, "model=fcn8s", *(["seed=4"] if "extend" in named else [])]
    for typed in ([], ["sweep.combinations=[['optim.lr=0.1']]"], ["sweep.combinations=[["]):
        with pytest.raises(UserError, match=rf"^{named}: its record is refused, because of") as error:
            rewritten(apply_sweep_resume, *words, *typed)
        command = shlex.split(str(error.value).partition("If the sweep is yours, type all of its settings: ")[2])
        assert command[:3] == ["fcnlab", "train", named] and command[-1] == COMBINATIONS and set(words) < set(command)
        assert sum("sweep.combinations" in word for word in command) == 1
    assert "model=fcn8s" in rewritten(apply_sweep_resume, *words, COMBINATIONS)
    with pytest.raises(UserError, match=r"because of the override "):  # the other overrides are still foreign
        recorded(combinations=RECORDED, overrides=["+x._target_=os.system"])
        rewritten(apply_sweep_resume, "sweep.resume=old", COMBINATIONS)


def test_the_resume_command_repeats_the_combinations_that_must_be_typed(tmp_path):
    manifest = Manifest(tmp_path, "train", ["model=fcn8s"], combinations=RECORDED)
    assert shlex.split(manifest.resume_command)[-2:] == ["model=fcn8s", COMBINATIONS]


def test_typed_combinations_must_be_those_of_the_resumed_sweep(tmp_path):
    sweeper = GridSweeper()
    manifest = Manifest(tmp_path, "train", ["model=fcn8s"], combinations=RECORDED)
    sweeper.chosen_launcher = SimpleNamespace(manifest=manifest, resumes=True)  # pyright: ignore[reportAttributeAccessIssue]
    for typed in ([], RECORDED):
        sweeper.whole = OmegaConf.create({"sweep": {"combinations": typed}})
        assert sweeper._combinations() == RECORDED
    sweeper.whole = OmegaConf.create({"sweep": {"combinations": RECORDED[1:]}})
    with pytest.raises(UserError, match=r"the settings differ from those of that sweep:\n  only in the record: "):
        sweeper._combinations()
    manifest.combinations = []
    with pytest.raises(UserError, match=r"the settings differ from those of that sweep:\n  only in this sweep: "):
        sweeper._combinations()


# --- the best settings

JOBS = (
    ("model=fcn8s optim.lr=0.1 seed=1", 0.50, "finished"),
    ("model=fcn8s optim.lr=0.1 seed=2", 0.60, "finished"),
    ("model=fcn8s optim.lr=0.2 seed=1", 0.90, "failed"),
    ("model=fcn8s optim.lr=0.2 seed=2", 0.40, "finished"),
    ("model=fcn8s optim.lr=0.3 seed=1", 0.70, "finished"),
    ("model=fcn8s optim.lr=0.3 seed=2", 0.30, "finished"),
    ("model=fcn8s optim.lr=0.4 seed=1", None, "finished"),
)


def test_settings_are_ranked_by_their_mean_score(recorded):
    ranked = ranked_settings(read_manifest(recorded(*JOBS), "sweep.confirm"))
    assert [setting.overrides[1] for setting in ranked] == ["optim.lr=0.1", "optim.lr=0.3", "optim.lr=0.2"]
    assert [round(setting.score, 6) for setting in ranked] == [0.55, 0.5, 0.4]


def test_a_search_that_minimizes_is_ranked_by_the_lowest_score(recorded):
    folder = recorded(*JOBS)
    (folder / "search.json").write_text('{"settings": {"direction": "minimize"}}')
    assert ranked_settings(read_manifest(folder, "sweep.confirm"))[0].overrides[1] == "optim.lr=0.2"


def test_the_best_settings_are_trained_with_new_seeds(recorded, capsys):
    recorded(*JOBS)
    words = rewritten(apply_sweep_confirm, "sweep.confirm=old", "sweep.best=2", "seed=3,4")
    combinations = "sweep.combinations=[['optim.lr=0.1'],['optim.lr=0.3']]"
    assert words[2:] == ["sweep.confirm=old", "model=fcn8s", combinations, "sweep.best=2", "seed=3,4"]
    printed = capsys.readouterr().out
    assert "The 2 best of 3 settings in old, by the mean validation mIoU of their jobs:\n" in printed
    assert "   55.00 % (2 jobs)  optim.lr=0.1\n   50.00 % (2 jobs)  optim.lr=0.3\n" in printed


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("seed=2,3", r"the sweep already has seed=2\. .* Type new seeds, such as seed=8,9,10$"),
        ("seed=7", r"already has seed=7\."),  # of the record of job 0, whatever was typed
        ("", r"needs seeds that the sweep does not have\. Add, for example, seed=8,9,10$"),
        ("seed=3 sweep.best=4", r"sweep\.best=4 is more than the 3 settings of the sweep that have a score"),
        ("seed=3 sweep.best=x", r"sweep\.best=x must be a whole number of at least 1"),
        ("seed=3 optim.lr=0.5", r"optim\.lr=0\.5 cannot be set, since all settings but the seed are repeated"),
    ],
)
def test_a_confirmation_with_used_seeds_or_other_settings_is_refused(recorded, words: str, message: str):
    folder = recorded(*JOBS)
    (folder / "0").mkdir()
    (folder / "0" / "metrics.json").write_text('{"provenance": {"seed": 7}}')
    with pytest.raises(UserError, match=message):
        rewritten(apply_sweep_confirm, "sweep.confirm=old", *words.split())


def test_settings_without_effect_or_that_exclude_each_other_are_refused(fcnlab, capsys):
    assert fcnlab("train", "sweep.best=2") == 1
    assert "sweep.best has no effect without sweep.confirm=FOLDER" in capsys.readouterr().err
    assert fcnlab("train", "-m", "sweep.extend=a", "sweep.resume=a", "seed=4") == 1
    assert "sweep.resume, sweep.extend and sweep.confirm exclude each other" in capsys.readouterr().err
    for word in ("sweep.resume=a", "sweep.extend=a"):
        assert fcnlab("train", "-m", word, "+sweep.best=2", "seed=4") == 1
        assert "sweep.best has no effect without sweep.confirm=FOLDER" in capsys.readouterr().err


def test_a_confirmation_of_evaluations_or_of_several_folds_is_refused(recorded):
    words = ("sweep.confirm=old", "seed=3,4", "sweep.best=1")
    recorded(*JOBS, verb="eval")
    with pytest.raises(UserError, match=r"^sweep\.confirm=old: the jobs of that sweep are no training runs"):
        rewritten(apply_sweep_confirm, *words)
    for first, second in (("data.fold=0", "data.fold=1"), ("data={folds:5,fold:0}", "data={folds:5,fold:1}")):
        recorded((f"{first} seed=1", 0.5, "finished"), (f"{second} seed=1", 0.9, "finished"))
        with pytest.raises(UserError, match=r"^sweep\.confirm=old: the jobs differ in the fold \(.* with all folds"):
            rewritten(apply_sweep_confirm, *words)
    recorded(("data.fold=0 optim.lr=1 seed=1", 0.5, "finished"), ("data.fold=0 optim.lr=2 seed=1", 0.9, "finished"))
    assert "optim.lr=2" in rewritten(apply_sweep_confirm, *words)


# --- changed code


def test_changed_code_is_reported_with_its_jobs(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(resumed_settings, "source_fingerprints", lambda *trees: {"fcnlab": "new", "mine": "same"})
    manifest = Manifest(tmp_path, "train", [], jobs={number: Job(number, str(number), [], "") for number in range(4)})
    for number, state in enumerate(("old", "old", "new", "older")):
        (tmp_path / str(number)).mkdir()
        facts = {"source": {"fcnlab": state, "mine": "same", "of_the_checkpoint": "1.0"}}
        (tmp_path / str(number) / "run.json").write_text(json.dumps(facts))
    with caplog.at_level("WARNING", logger="fcnlab"):
        warn_about_changed_code(manifest, dict.fromkeys(range(4), OmegaConf.create({"hydra": {}})))
    assert len(caplog.records) == 1
    expected = "the code of fcnlab has changed since job 0, 1 (old) and job 3 (older); now it is new. So"
    assert expected in caplog.text
