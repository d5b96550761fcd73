"""Test searches: overrides as Optuna distributions, resuming from the storage, and a killed search with real runs."""

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from fcnlab.config.recorded_overrides import apply_sweep_resume
from fcnlab.errors import UserError
from fcnlab.sweeps import optuna_sweeper
from fcnlab.sweeps.grid_sweeper import expand_jobs
from fcnlab.sweeps.optuna_sweeper import (
    OptunaSweeper,
    batch_seed,
    boundary_params,
    check_not_of_a_grid,
    param_overrides,
    require_optuna,
    search_space,
)


def read(*words: str):
    return search_space(OverridesParser.create().parse_overrides(list(words)))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("x=interval(0.5,2)", FloatDistribution(0.5, 2.0)),
        ("x=interval(1,8)", FloatDistribution(1.0, 8.0)),
        ("x=int(interval(1,8))", IntDistribution(1, 8)),
        ("x=tag(log,interval(1e-4,1e-2))", FloatDistribution(1e-4, 1e-2, log=True)),
        ("x=tag(log,int(interval(1,64)))", IntDistribution(1, 64, log=True)),
        ("x=int(interval(1.5,8.7))", IntDistribution(2, 8)),  # Hydra's int() truncates 1.5 to 1
        ("x=tag(log,int(interval(0.5,64)))", IntDistribution(1, 64, log=True)),
        ("x=int(interval(-2.5,-0.5))", IntDistribution(-2, -1)),
        ("x=range(2,9,3)", IntDistribution(2, 8, step=3)),  # 2, 5, 8: Hydra's range has no 9
        ("x=range(3,0,-1)", IntDistribution(1, 3)),
        ("x=range(0.0,1.0,0.25)", FloatDistribution(0.0, 0.75, step=0.25)),
        ("x=choice(adamw,sgd)", CategoricalDistribution(["adamw", "sgd"])),
        ("x=1,2.5,true", CategoricalDistribution([1, 2.5, True])),
        ("x=shuffle(range(1,4))", CategoricalDistribution([1, 2, 3])),
        ("x=shuffle(range(0.1,0.35,0.1))", CategoricalDistribution([0.1, 0.2, 0.3])),
        ("x=[1,2],[3,4]", CategoricalDistribution(["[1,2]", "[3,4]"])),
    ],
)
def test_overrides_define_the_search_space(word: str, expected):
    space, fixed = read("seed=3", word, "~callbacks.ema", "+a.b=c")
    assert space.keys() == {"x"} and fixed == ["seed=3", "~callbacks.ema", "+a.b=c"]
    assert space["x"] == expected


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("seed=3", "nothing to search"),
        ("x=tag(normal,interval(0,1))", r"x=tag\(normal.*the only tag"),
        ("x=tag(log,choice(1,2))", "the only tag"),
        ("x=interval(2.0,1.0)", r"x=interval\(2.0,1.0\): "),
        ("x=tag(log,interval(0,1))", r"x=tag\(log,interval\(0,1\)\): "),
        ("x=int(interval(1.5,1.7))", r"x=int\(interval\(1.5,1.7\)\): there is no whole number"),
        ("x=range(3,1)", "it has no values"),
        ("seed=1,2,3", "seeds are not searched, since the search would pick the luckiest one"),
        ("data.seed=range(3)", "seeds are not searched"),
        ("data.fold=0,1,2", r"data\.fold=0,1,2: folds are not searched, since the search would pick the easiest one"),
        ("data={fold:0},{fold:1}", "folds are not searched"),
    ],
)
def test_an_invalid_search_space_is_an_error(word: str, message: str):
    with pytest.raises(UserError, match=message):
        read(word)


def test_hydra_parses_the_overrides_of_a_trial():
    values = {"optim.lr": 1e-05, "+a": True, "model": "fcn8s", "crop": "[1,2]", "n": 3}
    words = param_overrides(values)
    read_back = {word.get_key_element(): word.value() for word in OverridesParser.create().parse_overrides(words)}
    assert read_back == values | {"crop": [1, 2]}


def test_a_missing_optuna_is_an_error_with_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'fcnlab\[search\]'"):
        require_optuna()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_trials": 0}, "n_trials=0 must be a whole number from 1 to 10,000"),
        ({"n_trials": 10_001}, "n_trials=10001 must be a whole number from 1 to 10,000"),
        ({"n_jobs": 10_001}, "n_jobs=10001 must be a whole number from 1 to 10,000"),
        ({"n_jobs": "many"}, "n_jobs=many"),
        ({"n_jobs": True}, "n_jobs=True"),
        ({"seed": -1}, "seed=-1 must be a whole number of at least 0"),
        ({"direction": "up"}, "direction=up must be maximize or minimize"),
    ],
)
def test_settings_of_a_search_are_checked_before_any_work(tmp_path, wrong: dict, message: str):
    with pytest.raises(CompactHydraException, match=message):
        search(tmp_path, Worker(), **wrong)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("key", "value"),
    [("confirm", "old"), ("extend", "old"), ("added_seeds", "4,5"), ("combinations", [["optim.lr=0.1"]])],
)
def test_chosen_settings_are_not_searched(key: str, value: object):
    """A search would ignore them, and train other settings than those that were asked for."""
    for config in ({}, {"sweep": {"resume": None, "added_seeds": None, "combinations": []}}):
        check_not_of_a_grid(OmegaConf.create(config))
    with pytest.raises(UserError, match=rf"^sweep\.{key}=.* chosen already.* Leave hydra/sweeper=optuna out$"):
        check_not_of_a_grid(OmegaConf.create({"sweep": {key: value}}))


# --- the search itself, with a function as job


class Worker:
    """A launcher with the best score at x = 2; jobs in ``fails`` have no score, and ``stops`` is one with a signal."""

    def __init__(self, fails=(), stops: int | None = None, value=lambda x: -((x - 2) ** 2)):
        self.fails, self.stops, self.value = fails, stops, value
        self.batches: list[tuple[int, list[list[str]]]] = []

    def launch(self, job_overrides, initial_job_idx: int) -> list[JobReturn]:
        self.batches.append((initial_job_idx, job_overrides))
        if self.stops is not None and initial_job_idx >= self.stops:
            raise KeyboardInterrupt
        return [self._job(number, words) for number, words in enumerate(job_overrides, start=initial_job_idx)]

    def _job(self, number: int, words: list[str]) -> JobReturn:
        job = JobReturn(overrides=words, status=JobStatus.FAILED if number in self.fails else JobStatus.COMPLETED)
        x = next(float(word.partition("=")[2]) for word in words if word.startswith("x="))
        job.return_value = CompactHydraException(f"job {number}") if number in self.fails else self.value(x)
        return job

    @property
    def words(self) -> list[list[str]]:
        return [words for _, batch in self.batches for words in batch]


def search(folder: Path, worker: Worker, resume: bool = False, **settings) -> OptunaSweeper:
    """Run a search in ``folder``, set up as in Hydra, except the launcher."""
    sweeper = OptunaSweeper(**{"n_trials": 12, "n_jobs": 3, "direction": "maximize", "seed": 1} | settings)
    config = {
        "hydra": {
            "job": {"config_name": "train"},
            "sweep": {"dir": str(folder / "s")},
            "overrides": {"hydra": ["hydra.verbose=false", "hydra.sweep.dir=s"], "task": []},
            "runtime": {"config_sources": []},
            "launcher": {},
        },
        "sweep": {"resume": "s" if resume else None},
    }
    from hydra.core.plugins import Plugins

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Plugins, "instantiate_launcher", lambda *_, **__: worker)
        sweeper.setup(
            hydra_context=SimpleNamespace(config_loader=None), task_function=None, config=OmegaConf.create(config)
        )
    sweeper._check_boundaries = lambda space: None  # which composes jobs
    return sweeper


def test_null_is_not_the_text_null():
    space, _ = read("x=null,1", "y='null',a")
    words = param_overrides({name: distribution.choices[0] for name, distribution in space.items()})
    assert words == ["x=null", "y='null'"] and param_overrides({"x": None}) == ["x=null"]


def test_shuffled_choices_keep_the_search_space_on_resume():
    assert len({str(read("x=shuffle(range(20))")[0]["x"]) for _ in range(3)}) == 1


def test_each_choice_and_both_ends_are_checked_first():
    space, _ = read("x=interval(1,2)", "y=choice(a,b,c)", "z=range(0,4,2)")
    assert boundary_params(space) == [
        {"x": 1, "y": "a", "z": 0},
        {"x": 2, "y": "b", "z": 2},
        {"x": 2, "y": "c", "z": 2},
    ]


def test_another_search_space_is_refused_before_sampling(tmp_path):
    search(tmp_path, Worker(), n_trials=3).sweep(SPACE)
    before = trials(tmp_path)
    for changed, message in {
        "x=interval(-10.0,5.0)": "only in the record:  x=interval(-10.0,10.0)\n"
        "  only in this sweep:  x=interval(-10.0,5.0)",
        "y=1,2": "only in this sweep:  y=choice(1,2)",
    }.items():
        words = [changed, "seed=3"] if changed.startswith("x") else [*SPACE, changed]
        with pytest.raises(CompactHydraException, match=re.escape(message)):
            search(tmp_path, Worker(), resume=True, n_trials=6).sweep(words)
    assert trials(tmp_path) == before
    longer = Worker()
    search(tmp_path, longer, resume=True, n_trials=4).sweep(SPACE)
    assert len(longer.words) == 1  # no trial was used up


def test_started_trials_are_compared_before_anything_is_written(tmp_path, monkeypatch):
    first, compared = Worker(), {}
    search(tmp_path, first, n_trials=3).sweep(SPACE)
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}

    def refuse(context, config, jobs, launcher) -> None:
        compared.update(jobs)
        raise UserError("files have changed")

    monkeypatch.setattr(optuna_sweeper, "check_unchanged", refuse)
    with pytest.raises(CompactHydraException, match="files have changed"):
        search(tmp_path, Worker(), resume=True, n_trials=6).sweep(SPACE)
    assert compared == dict(enumerate(first.words))
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}


@pytest.mark.parametrize("name", ["search.db", "search.db-journal", "search.db-wal", "search.db-shm"])
@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_a_storage_that_is_a_link_is_refused(tmp_path, name, link):
    search(tmp_path, Worker(), n_trials=3).sweep(SPACE)
    path = tmp_path / "s" / name
    path.unlink(missing_ok=True)
    (tmp_path / "mine").write_text("all my work")
    link(path, tmp_path / "mine")
    with pytest.raises(CompactHydraException, match=rf"{name} is a (hard )?link"):
        search(tmp_path, Worker(), resume=True, n_trials=6).sweep(SPACE)
    assert (tmp_path / "mine").read_text() == "all my work"


@pytest.mark.parametrize("spoil", [lambda data: b"no database", lambda data: data[:9000]], ids=["text", "cut off"])
def test_an_unreadable_storage_is_an_error(tmp_path, spoil):
    search(tmp_path, Worker(), n_trials=3).sweep(SPACE)
    storage, worker = tmp_path / "s" / "search.db", Worker()
    storage.write_bytes(spoil(storage.read_bytes()))
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    with pytest.raises(CompactHydraException, match=r"search\.db is not a readable Optuna storage"):
        search(tmp_path, worker, resume=True, n_trials=6).sweep(SPACE)
    assert not worker.batches and before == {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}


def test_a_repeated_trial_has_the_score_of_the_first(tmp_path):
    worker = Worker()
    returned = search(tmp_path, worker, n_trials=9, n_jobs=3).sweep(["x=1,2,3", "a=b"])
    assert len(worker.words) == len({tuple(words) for words in worker.words}) == len(returned) <= 3
    scores = {(trial["params"]["x"], trial["value"]) for trial in trials(tmp_path)}
    assert len(trials(tmp_path)) == 9 and scores == {(x, -float((x - 2) ** 2)) for x, _ in scores}
    numbers = [first + place for first, batch in worker.batches for place in range(len(batch))]
    states = {trial["number"]: trial["params"]["x"] for trial in trials(tmp_path)}
    assert [states[number] for number in numbers] == [int(words[1][2:]) for words in worker.words]


def test_a_range_has_the_values_of_the_same_list(tmp_path):
    """Adding up steps would give 0.1 + 2 * 0.1 = 0.30000000000000004 instead of 0.3."""
    word = "x=range(0.1,0.35,0.1)"
    listed = {job[0] for job in expand_jobs(OverridesParser.create().parse_overrides([word]))}
    worker = Worker()
    search(tmp_path, worker, n_trials=20).sweep([word])
    assert {words[0] for words in worker.words} == listed == {"x=0.1", "x=0.2", "x=0.3"}
    assert {trial["params"]["x"] for trial in trials(tmp_path)} == {0.1, 0.2, 0.3}
    assert json.loads((tmp_path / "s" / "search.json").read_text())["best"]["params"] == {"x": 0.3}


def test_jobs_that_use_their_number_are_not_repeats(tmp_path):
    worker = Worker()
    search(tmp_path, worker, n_trials=6).sweep(["x=1,2", "seed=${hydra:job.num}"])
    assert len(worker.words) == 6


def test_jobs_that_use_their_number_in_a_file_are_not_repeats(tmp_path, monkeypatch):
    """``seed: ${hydra:job.num}`` of an experiment is visible only in the composed config of a job."""
    cfg = OmegaConf.create({"seed": "${hydra:job.num}"})
    monkeypatch.setattr(optuna_sweeper, "check_jobs", lambda *_: {0: cfg})
    worker = Worker()
    sweeper = search(tmp_path, worker, n_trials=6)
    del sweeper._check_boundaries
    sweeper.sweep(["x=1,2", "experiment=own"])
    assert len(worker.words) == 6


SPACE = ["x=interval(-10.0,10.0)", "seed=3"]


def trials(folder: Path) -> list[dict]:
    return json.loads((folder / "s" / "search.json").read_text())["trials"]


def test_batches_are_launched_and_the_best_trial_is_reported(tmp_path, caplog):
    worker = Worker()
    with caplog.at_level("INFO", logger="fcnlab"):
        returned = search(tmp_path, worker, n_trials=8).sweep(SPACE)
    assert [(first, len(batch)) for first, batch in worker.batches] == [(0, 3), (3, 3), (6, 2)]
    assert len(returned) == 8 and all(words[0] == "seed=3" for words in worker.words)
    number, best = max(enumerate(worker.words), key=lambda job: -((float(job[1][1][2:]) - 2) ** 2))
    assert (
        f"To rerun the best trial: fcnlab train hydra.verbose=false hydra.job.num={number} {' '.join(best)}\n"
        in caplog.text
    )
    assert [trial["state"] for trial in trials(tmp_path)] == ["complete"] * 8


@pytest.mark.slow
def test_the_search_improves(tmp_path):
    """Uniform random draws would be 5.2 away from the best on average: (12**2 + 8**2) / 2 / 20."""
    worker = Worker()
    search(tmp_path, worker, n_trials=40, n_jobs=1).sweep(SPACE)
    away = [abs(float(words[1][2:]) - 2) for words in worker.words[-15:]]
    assert sum(away) / 15 < 5.2 / 2


def test_equal_seeds_give_equal_searches(tmp_path):
    workers = [Worker() for _ in range(3)]
    for name, worker, seed in zip("abc", workers, (1, 1, 2), strict=True):
        (tmp_path / name).mkdir()
        search(tmp_path / name, worker, seed=seed, n_trials=6).sweep(SPACE)
    assert workers[0].words == workers[1].words != workers[2].words
    assert len({tuple(words) for words in workers[0].words}) == 6
    assert batch_seed(1, 3) != batch_seed(3, 1)


def test_a_resumed_search_equals_an_uninterrupted_one(tmp_path):
    for name in ("straight", "stopped"):
        (tmp_path / name).mkdir()
    straight, stopped, resumed = Worker(), Worker(stops=6), Worker()
    search(tmp_path / "straight", straight).sweep(SPACE)
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "stopped", stopped).sweep(SPACE)
    search(tmp_path / "stopped", resumed, resume=True).sweep(SPACE)
    assert resumed.batches == straight.batches[2:]  # the unfinished batch first; earlier ones are not run again
    assert trials(tmp_path / "stopped") == trials(tmp_path / "straight")


def test_an_incompletely_sampled_trial_has_failed(tmp_path):
    two = [*SPACE, "y=choice(a,b)"]
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path, Worker(stops=0), n_jobs=2, n_trials=4).sweep(two)
    import optuna

    study = optuna.load_study(study_name="fcnlab", storage=f"sqlite:///{tmp_path / 's' / 'search.db'}")
    study.ask(fixed_distributions={"x": FloatDistribution(-10.0, 10.0)})  # killed before y
    worker = Worker()
    search(tmp_path, worker, resume=True, n_jobs=2, n_trials=4).sweep(two)
    assert [(first, len(batch)) for first, batch in worker.batches] == [(0, 2), (3, 1)]
    assert [trial["state"] for trial in trials(tmp_path)] == ["complete", "complete", "fail", "complete"]


def test_values_of_a_foreign_storage_are_refused(tmp_path):
    """Its trials contain their values, such as a group option that leads to any YAML file."""
    import optuna
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import TrialState, create_trial

    (tmp_path / "s").mkdir()
    storage = f"sqlite:///{tmp_path / 's' / 'search.db'}"
    study = optuna.create_study(storage=storage, study_name="fcnlab", direction="maximize")
    evil = {"x": FloatDistribution(-10.0, 10.0), "loss": CategoricalDistribution(["../../evil", "dice"])}
    params = {"x": 2.0, "loss": "../../evil"}
    study.add_trial(create_trial(state=TrialState.RUNNING, params=params, distributions=evil))
    worker = Worker()
    with pytest.raises(CompactHydraException, match=r"search\.db contains trials of another search space"):
        search(tmp_path, worker, resume=True, n_jobs=1, n_trials=1).sweep([*SPACE, "loss=dice,focal"])
    assert not worker.words


def test_failed_trials_are_kept_and_reported_at_the_end(tmp_path, caplog):
    with pytest.raises(CompactHydraException, match="job 1"), caplog.at_level("INFO", logger="fcnlab"):
        search(tmp_path, Worker(fails=(1, 4)), n_trials=6).sweep(SPACE)
    states = [trial["state"] for trial in trials(tmp_path)]
    assert states == ["complete", "fail", "complete", "complete", "fail", "complete"] and "Best of 6" in caplog.text


def test_a_score_that_is_not_a_number_is_a_failure(tmp_path, caplog):
    with caplog.at_level("INFO", logger="fcnlab"):
        search(tmp_path, Worker(value=lambda x: math.nan), n_trials=3).sweep(SPACE)
    assert {trial["state"] for trial in trials(tmp_path)} == {"fail"} and "No trial has a score" in caplog.text


def test_a_folder_with_a_search_is_not_used_for_a_new_one(tmp_path):
    with pytest.raises(CompactHydraException, match="the folder contains no search"):
        search(tmp_path, Worker(), resume=True)
    search(tmp_path, Worker(), n_trials=3).sweep(SPACE)
    with pytest.raises(
        CompactHydraException, match=r"contains a search without a sweep\.json, which cannot be resumed"
    ):
        search(tmp_path, Worker())
    (tmp_path / "s" / "sweep.json").touch()
    with pytest.raises(CompactHydraException, match=r"already contains a search\. Resume it with sweep\.resume="):
        search(tmp_path, Worker())
    with pytest.raises(CompactHydraException, match=r"direction=minimize: the search in .* has the other direction"):
        search(tmp_path, Worker(), resume=True, direction="minimize").sweep(SPACE)


def test_a_search_that_cannot_be_resumed_warns_before_the_first_trial(tmp_path, caplog):
    """hydra/launcher=basic writes no sweep.json."""

    class RecordingWorker(Worker):
        manifest = None

    worker = Worker()
    with caplog.at_level("WARNING", logger="fcnlab"):
        search(tmp_path, RecordingWorker())
        assert not caplog.records
        search(tmp_path, worker)
    assert "this search cannot be resumed if it is interrupted" in caplog.text and not worker.batches


# --- the overrides of sweep.resume


@pytest.fixture
def resumed_words(monkeypatch, tmp_path):
    """Return the overrides of ``fcnlab train -m WORDS sweep.resume=...``, for a search of 7 trials."""

    def words(*typed: str, settings: object = None) -> list[str]:
        (tmp_path / "sweep.json").write_text('{"overrides": ["x=interval(0,1)"]}')
        kept = {"n_trials": 7, "n_jobs": "auto", "direction": "maximize", "seed": 1} if settings is None else settings
        (tmp_path / "search.json").write_text(json.dumps({"settings": kept}))
        monkeypatch.setattr(sys, "argv", ["fcnlab", "-m", *typed, f"sweep.resume={tmp_path}"])
        apply_sweep_resume(sys.argv, "train")
        return sys.argv[3 + len(typed) : -1]

    return words


def test_a_search_is_resumed_as_a_search(resumed_words):
    kept = ["n_trials=7", "n_jobs=auto", "direction=maximize", "seed=1"]
    search = ["hydra/sweeper=optuna", *(f"hydra.sweeper.{word}" for word in kept)]
    assert resumed_words() == ["x=interval(0,1)", *search]
    longer = resumed_words("hydra.sweeper.n_trials=9")
    assert longer == ["x=interval(0,1)", *(word for word in search if "n_trials" not in word)]


@pytest.mark.parametrize("kept", [{"n_trials": "1 hydra.sweeper._target_=os.system"}, {"_target_": "os.system"}, 3])
def test_a_record_of_a_search_sets_nothing_else(resumed_words, kept):
    assert resumed_words(settings=kept) == ["x=interval(0,1)", "hydra/sweeper=optuna"]


# --- sweeps of W&B


def agents_words(sweep: dict, chosen: dict) -> list[str]:
    """Return the command that W&B's agent runs, expanded by W&B's code."""
    args = create_sweep_command_args({"args": {name: {"value": value} for name, value in chosen.items()}})
    values = {
        "${env}": ["/usr/bin/env"],
        "${program}": [sweep["program"]],
        "${args_no_hyphens}": args["args_no_hyphens"],
    }
    return [typed for word in sweep["command"] for typed in values.get(word, [word])]


def test_fcnlab_parses_the_command_of_the_wandb_agent(fcnlab, repository, capsys):
    sweep = OmegaConf.to_container(OmegaConf.load(repository / "docs/how-to/wandb_sweep.yaml"), resolve=False)
    chosen = {name: values.get("min", values.get("values", [None])[0]) for name, values in sweep["parameters"].items()}
    env, program, *words = agents_words(sweep, chosen)
    assert (env, program, words[0]) == ("/usr/bin/env", "fcnlab", "train")
    assert fcnlab(*words, "--cfg", "job") == 0
    cfg = OmegaConf.create(capsys.readouterr().out)
    assert cfg.optim.lr == 1e-4 and cfg.augment.scale == [0.5, 2.0] and "wandb" in cfg.logger
    assert cfg.model.levels == [32]  # FCN-32s
    assert sweep["metric"]["goal"] == "maximize"


def test_the_wandb_agent_gets_the_validation_score_of_the_scored_weights(
    fcnlab, repository, small, shapes_root, tmp_path
):
    """It is in the summary of a run that the agent's command started, whose last validation was not the best."""
    sweep = OmegaConf.to_container(OmegaConf.load(repository / "docs/how-to/wandb_sweep.yaml"), resolve=False)
    _, _, *words = agents_words(sweep, {"optim.lr": 0.1, "model": "fcn8s", "augment.scale": "[0.5,2.0]"})
    short = ["trainer=smoke", "trainer.accelerator=cpu", "trainer.max_steps=4", "trainer.val_check_interval=1"]
    overrides = ["data.test_list=train", "data.allow_overlap=true", "callbacks.ema.enabled=false"]
    overrides += ["schedule=constant", "seed=3", "callbacks.sample_images.enabled=false"]
    fixed = [*small, f"data.root={shapes_root}", f"hydra.run.dir={tmp_path}/run", "logger.wandb.mode=offline"]
    assert fcnlab(*words, *short, *overrides, *fixed) == 0
    (run,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    command = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--summary", run]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    summary = {line.split()[0]: line.split()[1:] for line in lines if line.strip()}
    with (tmp_path / "run" / "metrics.csv").open(newline="") as file:
        validated = [float(row["val/miou"]) for row in csv.DictReader(file) if row["val/miou"]]
    assert float(summary[sweep["metric"]["name"]][0]) == max(validated) > validated[-1]
    assert "test/miou" in summary and float(summary["test/miou"][0]) != max(validated)


# --- a search as a user starts it


@pytest.mark.slow
def test_a_killed_search_is_resumed(tmp_path, small, shapes_root):
    def start(*words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", "fcnlab", "train", "-m", *words]
        with (tmp_path / "output.txt").open("ab") as message:
            return subprocess.Popen(
                command, cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=message, stderr=message
            )

    words = (*small, f"data.root={shapes_root}", "trainer=smoke", "trainer.accelerator=cpu", "logger=csv",
             "checkpointing.every_n_minutes=0", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3",
             "hydra.sweeper.n_jobs=2", "hydra.sweep.dir=s", "optim.lr=tag(log,interval(1e-4,1e-2))")  # fmt: skip
    process, deadline = start(*words), time.monotonic() + 240
    while not (tmp_path / "s" / "1" / "checkpoints" / "last.ckpt").is_file():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    before = trials(tmp_path)
    assert [trial["state"] for trial in before] == ["running", "running"]
    assert start("sweep.resume=s").wait(400) == 0, (tmp_path / "output.txt").read_text()

    after = trials(tmp_path)
    assert [trial["state"] for trial in after] == ["complete"] * 3
    assert [trial["params"] for trial in after[:2]] == [trial["params"] for trial in before]
    for trial in after:
        folder = tmp_path / "s" / str(trial["number"])
        assert trial["value"] == json.loads((folder / "metrics.json").read_text())["miou"]
        assert f"optim.lr={trial['params']['optim.lr']}" in json.loads((folder / "run.json").read_text())["overrides"]
    assert "Best of 3 trials" in (tmp_path / "output.txt").read_text()
    assert [path.name for path in (tmp_path / "outputs").iterdir()] == ["cache"]  # the counts of the mask classes


def test_the_record_of_a_search_replaces_a_link(tmp_path):
    (tmp_path / "mine").write_text("all my work")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "multirun.yaml").symlink_to("../mine")
    search(tmp_path, Worker(), n_trials=1).sweep(SPACE)
    assert (tmp_path / "mine").read_text() == "all my work"
    assert not (tmp_path / "s" / "multirun.yaml").is_symlink()
