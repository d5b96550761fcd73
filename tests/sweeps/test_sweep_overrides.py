"""Test which overrides each job of a sweep gets, with processes that do nothing."""

import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException
from omegaconf import OmegaConf

from fcnlab import cli
from fcnlab.config.overrides import plain_overrides
from fcnlab.errors import UserError
from fcnlab.sweeps import grid_sweeper, job_checks, launchers
from fcnlab.sweeps.grid_sweeper import _overridden_part, check_params
from fcnlab.sweeps.job_checks import without_hydra
from fcnlab.sweeps.manifest import Manifest

QUICK = ("trainer=smoke", "logger=none", "data.root=.")
OPTUNA = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2")


class EndedProcess:
    """A job's process that finishes at once."""

    def __init__(self, words: list[str]):
        self.words = words

    def poll(self) -> int:
        return 0

    def is_alive(self) -> bool:
        return False

    def kill_all(self) -> None: ...


@pytest.fixture
def sweep(fcnlab, monkeypatch, tmp_path, capfd):
    """Run ``fcnlab VERB -m WORDS`` in the folder s; return the overrides of each job, or the error output."""
    monkeypatch.setattr("fcnlab.sweeps.job_queue.POLL_INTERVAL", 0.0)

    def run(*words: str, verb: str = "train", fixed: tuple[str, ...] = QUICK) -> list[list[str]] | str:
        started: list[list[str]] = []

        def start(verb, words, config_dir, environment, log, held=()):
            started.append(list(words))
            return EndedProcess(words)

        monkeypatch.setattr(launchers, "start_verb", start)
        options = [word for word in words if word.startswith("-")]  # argparse requires it in front
        settings = [word for word in words if word not in options]
        code = fcnlab(verb, "-m", *options, *fixed, *settings, "hydra.sweep.dir=s")
        message = capfd.readouterr().err
        assert code == 0 or "Traceback" not in message, message
        return started if code == 0 else message

    return run


def of_job(words: list[str]) -> list[str]:
    """Return a job's overrides without those common to all jobs and those that fcnlab adds."""
    actual = (*QUICK, "checkpoint=auto")
    return [word for word in words if word not in actual and not word.startswith(("sweep.", "hydra."))]


def sweep_record(folder: Path) -> dict:
    return json.loads((folder / "s" / "sweep.json").read_text())


# --- overrides as typed


def test_interpolations_are_passed_to_the_jobs_unresolved(sweep, tmp_path, monkeypatch):
    """Each job resolves them itself: the sweep would use the first seed's weights, and this machine's folders."""
    monkeypatch.setenv("SCRATCH", "/here")
    words = ['model.weights="D/fcn8s_seed${seed}.ckpt"', "seed=1,2", "data.cache_dir='${oc.env:SCRATCH}/c'"]
    jobs = sweep(*words)
    assert [of_job(job) for job in jobs] == [[words[0], f"seed={seed}", words[2]] for seed in (1, 2)]
    record = sweep_record(tmp_path)
    assert record["overrides"] == [*QUICK, *words]
    assert [of_job(job["overrides"]) for job in record["jobs"]] == [of_job(job) for job in jobs]
    (tmp_path / "s" / "0").mkdir(exist_ok=True)
    assert len(sweep(*words, "sweep.resume=s")) == 2  # the same sweep


def test_the_job_number_can_be_seed_and_folder(sweep):
    jobs = sweep("seed=${hydra:job.num}", "optim.lr=0.1,0.2", "hydra.sweep.subdir='${hydra:job.num}-${optim.lr}'")
    assert [of_job(job) for job in jobs] == [["seed=${hydra:job.num}", f"optim.lr={rate}"] for rate in (0.1, 0.2)]
    for number, job in enumerate(jobs):
        assert f"hydra.job.num={number}" in job
        assert next(word for word in job if word.startswith("hydra.run.dir=")).endswith(
            f"/s/{number}-{0.1 + number / 10}"
        )


def test_all_code_reads_overrides_unresolved(repository):
    """Iterating over a list of overrides would resolve interpolations: with another run's settings, or not at all."""
    lines = [line for path in (repository / "src").rglob("*.py") for line in path.read_text().splitlines()]
    read = [line.strip() for line in lines if re.search(r"overrides\.(task|hydra)\b", line)]
    assert len(read) > 10 and not [line for line in read if not re.search(r"plain_overrides\(|to_yaml\(|``", line)]


# --- the jobs


LINES = {  # the typed overrides, and the jobs that they define
    "optim={lr:0.5} optim={weight_decay:0.3} seed=1,2": [
        "optim={lr:0.5} optim={weight_decay:0.3} seed=1",
        "optim={lr:0.5} optim={weight_decay:0.3} seed=2",
    ],
    "optim={lr:0.5},{lr:0.25} optim={weight_decay:0.3}": [
        "optim={lr:0.5} optim={weight_decay:0.3}",
        "optim={lr:0.25} optim={weight_decay:0.3}",
    ],
    "seed=1 seed=2,3": ["seed=1 seed=2", "seed=1 seed=3"],
    "seed=1 seed=2": ["seed=1 seed=2"],
    "optim=sgd optim={lr:0.5} seed=1,2": ["optim=sgd optim={lr:0.5} seed=1", "optim=sgd optim={lr:0.5} seed=2"],
    "optim=sgd,adamw optim.lr=0.5": ["optim=sgd optim.lr=0.5", "optim=adamw optim.lr=0.5"],
    "augment.scale=[0.5,1.0],[1.0,2.0] ~callbacks.ema": [
        "augment.scale=[0.5,1.0] ~callbacks.ema",
        "augment.scale=[1.0,2.0] ~callbacks.ema",
    ],
    "optim.lr=range(0.1,0.35,0.1)": ["optim.lr=0.1", "optim.lr=0.2", "optim.lr=0.3"],
    "optim.lr=0.1234567890123456,0.2": ["optim.lr=0.1234567890123456", "optim.lr=0.2"],
    "model=glob(fcn*s,exclude=fcn16s)": ["model=fcn32s", "model=fcn8s"],
    "model.weights='a b,c','d\\'e'": ["model.weights='a b,c'", "model.weights='d\\'e'"],
    "model/backbone=resnet50,resnet101 model.backbone.output_stride=8": [
        "model/backbone=resnet50 model.backbone.output_stride=8",
        "model/backbone=resnet101 model.backbone.output_stride=8",
    ],
    "experiment=paper/fcn32s,paper/fcn16s optim.momentum=0.5": [
        "experiment=paper/fcn32s optim.momentum=0.5",
        "experiment=paper/fcn16s optim.momentum=0.5",
    ],
    "model/backbone=resnet50,resnet101 model.backbone={output_stride:8}": [
        "model/backbone=resnet50 model.backbone={output_stride:8}",
        "model/backbone=resnet101 model.backbone={output_stride:8}",
    ],
    "model/backbone=resnet50,resnet101 ++model={backbone:{output_stride:8}} model.weights=a": [
        "model/backbone=resnet50 ++model={backbone:{output_stride:8}} model.weights=a",
        "model/backbone=resnet101 ++model={backbone:{output_stride:8}} model.weights=a",
    ],
    "optim=sgd,sgd_heavy optim={momentum:0.5}": [
        "optim=sgd optim={momentum:0.5}",
        "optim=sgd_heavy optim={momentum:0.5}",
    ],
    "experiment=paper/fcn32s,paper/fcn16s optim={momentum:0.5}": [
        "experiment=paper/fcn32s optim={momentum:0.5}",
        "experiment=paper/fcn16s optim={momentum:0.5}",
    ],
    "optim.lr=0.1,0.2 optim=sgd": ["optim.lr=0.1 optim=sgd", "optim.lr=0.2 optim=sgd"],
    "optim.lr=0.1,0.2 optim={}": ["optim.lr=0.1 optim={}", "optim.lr=0.2 optim={}"],
    "model.num_classes=${data.batch_size},${data.crop_size}": [
        "model.num_classes=${data.batch_size}",
        "model.num_classes=${data.crop_size}",
    ],
    "model.weights=D/${seed}.ckpt,a\\,b,'${seed}'": [
        "model.weights=D/${seed}.ckpt",
        "model.weights=a\\,b",
        "model.weights='${seed}'",
    ],
    "augment.scale=[${seed},2.0],[${optim.lr},2.0] seed=1": [
        "augment.scale=[${seed},2.0] seed=1",
        "augment.scale=[${optim.lr},2.0] seed=1",
    ],
    "data.root=${oc.env:NOT_THERE,b}/x,${oc.env:NOT_THERE,'c d'}": [
        "data.root=${oc.env:NOT_THERE,b}/x",
        "data.root=${oc.env:NOT_THERE,'c d'}",
    ],
    "seed=${hydra:job.num} checkpoint=null,null": ["seed=${hydra:job.num} checkpoint=null"] * 2,
    "checkpoint=null,none": ["checkpoint=null", "checkpoint=none"],
    "seed=choice(3)": ["seed=3"],
}


def split(line: str) -> list[str]:
    """Split a line into words; a space inside a value is not followed by a key."""
    return re.split(r" (?=[~+]|[\w./]+=)", line)


@pytest.fixture
def in_sweep(monkeypatch):
    """Return the configuration of each job of ``fcnlab train -m LINE``, up to the launcher."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.plugins import Plugins
    from hydra.types import HydraContext, RunMode

    from fcnlab.config.composition import mistakes_collected
    from fcnlab.config.locations import CONF
    from fcnlab.hydra_registration import register_launchers, register_schemas

    register_schemas()
    register_launchers()

    def jobs(*words: str) -> tuple[list[list[str]], list]:
        handed: list[list[str]] = []
        configs: list = []

        class Launcher:
            remote = False

            def launch(self, words, initial_job_idx):
                handed.extend(words)
                return []

        monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_, **__: Launcher())
        monkeypatch.setattr(grid_sweeper, "write_multirun", lambda config: None)
        monkeypatch.setattr(job_checks, "without_hydra", lambda cfg: configs.append(cfg) or without_hydra(cfg))
        composition = grid_sweeper.group_settings_deferred(), mistakes_collected("train")
        with initialize_config_dir(str(CONF), version_base="1.3"), composition[0], composition[1]:
            hydra = GlobalHydra.instance().hydra
            config = hydra.compose_config("train", list(words), run_mode=RunMode.MULTIRUN)
            sweeper = Plugins.instance().instantiate_sweeper(
                config=config, hydra_context=HydraContext(hydra.config_loader, None), task_function=lambda cfg: None
            )
            sweeper.sweep(plain_overrides(config.hydra.overrides.task))
            return handed, configs

    return jobs


@pytest.mark.parametrize("line", LINES)
def test_a_job_composes_like_a_single_run(in_sweep, composed_whole, monkeypatch, line: str):
    monkeypatch.setattr(job_checks, "validate_config", lambda cfg: None)  # slow
    monkeypatch.setattr(job_checks, "check_requirements", lambda *_: None)  # some have weights that must be given
    words, configs = in_sweep(*split(line))
    assert words == [split(job) for job in LINES[line]]
    for cfg, job in zip(configs, LINES[line], strict=True):  # the configurations that the launcher composed
        assert settings(cfg) == settings(composed_whole(*split(job)))


def settings(cfg) -> dict:
    return OmegaConf.to_container(cfg, resolve=False) | {"hydra": None}


@pytest.fixture
def composed_whole():
    from hydra import compose, initialize_config_dir

    from fcnlab.config.locations import CONF

    def one(*words: str):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("train", overrides=list(words))

    return one


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("seed=range(3,3)", "seed=range(3,3) has no values, so there is no job to run"),
        ("model=glob(nothing*)", "model=glob(nothing*) has no values"),
        ("optim.lr=interval(1,2)", "an interval works only with hydra/sweeper=optuna"),
        ("seed=1,2 seed=3", "seed=1,2 has no effect, since seed=3 after it sets the same. Leave one out"),
        ("optim.lr=1,2 optim={lr:0.5}", "optim.lr=1,2 has no effect, since optim={lr:0.5}"),
        ("seed=1,1", "seed=1,1: jobs 0 and 1 would be the same run, since a value is listed twice. List it once"),
        ("model=fcn16s,fcn8s,fcn8s seed=1,2", "model=fcn16s,fcn8s,fcn8s seed=1,2: jobs 2 and 4 would be the same run"),
        ("optim.lr=1,1.0", "optim.lr=1,1.0 has no effect: jobs 0 and 1 would be the same run"),
        ("optim.lr=1,2 ~optim.lr", "optim.lr=1,2 has no effect, since ~optim.lr after it sets the same"),
        ("optim.lr=1,2 ~optim", "optim.lr=1,2 has no effect, since ~optim after it sets the same"),
        ("optim=sgd,adamw ~optim", "optim=sgd,adamw has no effect, since ~optim after it"),
        ("++optim.lr=1,2 optim.lr=3", "++optim.lr=1,2 has no effect, since optim.lr=3"),
        ("optim.lr=1,2 ++optim.lr=3", "optim.lr=1,2 has no effect, since ++optim.lr=3"),
        (
            "callbacks.ema.decay=0.5,0.9 callbacks.ema=null",
            "callbacks.ema.decay=0.5,0.9 has no effect, since callbacks.ema",
        ),
        (
            "callbacks.ema.decay=0.5,0.9 ~callbacks.ema",
            "callbacks.ema.decay=0.5,0.9 has no effect, since ~callbacks.ema",
        ),
        ("callbacks.ema.decay=0.5,0.9 callbacks={ema:null}", "=0.5,0.9 has no effect, since callbacks={ema:null}"),
        (
            "callbacks.ema.decay=0.5,0.9 callbacks.ema=${callbacks.top}",
            "=0.5,0.9 has no effect, since callbacks.ema=${",
        ),
        ("sweep.recorded=true,false seed=1", "sweep.recorded=true,false has no effect: jobs 0 and 1 would be the same"),
        ("seed=range(1,9,0)", "seed=range(1,9,0): division by zero. Use range(START,STOP,STEP)"),
        ("seed=range(0.1,inf)", "seed=range(0.1,inf): cannot convert float infinity"),
        ("seed=shuffle(range(1,1e6)) optim.lr=1,2", "gives 1999998 jobs; a sweep may have at most 10000"),
        (
            "seed=1 hydra.sweep.subdir=..",
            "job 0: hydra.sweep.subdir=.. is not a folder inside the sweep's folder. Give each",
        ),
        ("seed=1 hydra.sweep.subdir=a/../b", "job 0: hydra.sweep.subdir=a/../b is not a folder inside"),
        ("seed=1 hydra.sweep.subdir=/tmp/a", "job 0: hydra.sweep.subdir=/tmp/a is not a folder inside"),
        ("seed=1 hydra.sweep.subdir=.", "job 0: hydra.sweep.subdir=. is not a folder inside"),
        ("seed=1 hydra.sweep.subdir=wandb", "job 0: hydra.sweep.subdir=wandb is reserved for files of the sweep"),
        ("seed=1 hydra.sweep.subdir=.submitit/0", "hydra.sweep.subdir=.submitit/0 is reserved for files of the sweep"),
        (f"checkpoint={'a' * 300},b hydra.sweep.subdir=${{checkpoint}}", "has a part of more than 255 bytes"),
        ("seed=1,2 hydra.sweep.subdir=x", "jobs 0 and 1 would both use x in the sweep's folder"),
        ("seed=1,2 optim.lr=1,2 hydra.sweep.subdir=./${seed}", "jobs 0 and 1 would both use 1 in"),
        ("checkpoint=b/c,d,b hydra.sweep.subdir=${checkpoint}", "jobs 0 and 2 would both use b in"),
        (
            "model/backbone=resnet50,resnet101 model.backbone={output_strid:8}",
            "Did you mean model.backbone.output_stride?",
        ),
        ("seed=1 sweep.added_seeds=4", "sweep.added_seeds=4 works only with hydra/launcher=slots or submitit_slurm"),
        ("seed=1,-1", "job 1: Invalid configuration:\n  seed must be a whole number"),
        ("seed=1,-1 hydra.sweeper.max_batch_size=1", "job 1: Invalid configuration:\n  seed must be "),
        ("seed=1,2 hydra.sweeper.max_batch_size=0", "hydra.sweeper.max_batch_size=0 must be null or a whole number"),
        (
            "model/backbone=resnet50,resnet101 model.backbone.output_strid=8",
            "job 0, 1: Invalid configuration: Unknown key model.backbone.output_strid. Did you mean model.",
        ),
        (
            "model/backbone=resnet50,vgg16 model.backbone.output_stride=8",
            "job 1: Invalid configuration: Unknown key model.backbone.output_stride. ",
        ),
    ],
)
def test_an_invalid_sweep_is_refused_before_any_job(in_sweep, line: str, message: str):
    with pytest.raises(CompactHydraException, match=re.escape(message)):
        in_sweep(*split(line))


@pytest.mark.parametrize(
    "word", ["seed=choice(choice(1,2),3)", "seed=range(1,3),5", "optim={lr:choice(1,2)}", "x=[a,range(1,3)]"]
)
def test_a_list_inside_a_value_is_refused(sweep, word: str):
    assert f"fcnlab train: {word}: a list of values cannot be inside another value. Use a separate KEY=A,B" in sweep(
        word
    )


@pytest.mark.parametrize("launcher", ["slots", "basic"])
def test_settings_of_a_single_run_cause_a_warning_in_a_sweep(sweep, monkeypatch, launcher: str):
    output: list[str] = []
    monkeypatch.setattr(launchers.log, "warning", lambda text, *words: output.append(text % words))
    assert "has no value" in sweep(
        "seed=range(3,3)", "hydra.run.dir=x", "hydra.job.num=3", f"hydra/launcher={launcher}"
    )
    assert len(output) == 1 and output[0].startswith(
        "Warning: hydra.run.dir=x, hydra.job.num=3 has no effect on a sweep"
    )


def test_a_search_space_without_effect_is_refused(sweep, tmp_path):
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optim.lr=interval(0.1,0.2)")
    assert "optim.lr=interval(0.1,0.2) has no effect, since ~optim.lr after it" in sweep(*search, "~optim.lr")
    assert not (tmp_path / "s" / "search.db").exists()


def test_folder_names_use_the_typed_overrides():
    """``hydra.sweep.dir=${hydra.job.override_dirname}``, with settings that are deferred to the jobs."""
    words = ["model=fcn8s,fcn16s", "model.weights=a/${seed}", "seed=1"]
    naming = {"exclude_keys": ["seed"], "item_sep": "+", "kv_sep": "-"}
    job = {"override_dirname": "choice(", "config": {"override_dirname": naming}}
    waiting = grid_sweeper.defer_group_settings(words, "Could not override 'model.weights'.")
    config = OmegaConf.create({"hydra": {"overrides": {"task": waiting}, "job": job}})
    grid_sweeper.restore_deferred_settings(config)
    assert OmegaConf.to_container(config.hydra.job)["override_dirname"] == "model.weights-a/${seed}+model-fcn8s,fcn16s"


@pytest.mark.slow
def test_a_shuffled_sweep_keeps_its_order_on_resume(sweep, tmp_path):
    order = [of_job(job) for job in sweep("seed=shuffle(range(9))")]
    for number in range(9):
        (tmp_path / "s" / str(number)).mkdir(exist_ok=True)
    assert [of_job(job)[0] for job in sweep("seed=shuffle(range(9))", "sweep.resume=s")] == [job[0] for job in order]


def test_the_ends_of_a_search_space_are_checked_before_the_first_trial(sweep, tmp_path):
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2")
    assert "optim.lr=-1.0: Invalid configuration: optim.lr must be" in sweep(*search, "optim.lr=interval(-1,1)")
    assert not (tmp_path / "s" / "search.db").exists()


def test_typed_settings_are_not_searched(sweep):
    search = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2")
    assert "has nothing to search" in sweep(
        *search, "hydra.sweeper.params={optim.lr:'interval(0,1)',seed:3}", "optim.lr=0.5"
    )


def test_values_of_all_jobs_are_checked_first_in_one_process_and_for_other_verbs(sweep, tmp_path):
    assert "job 1: Invalid configuration" in sweep("seed=1,-1", "hydra/launcher=basic")
    wrong = sweep("seed=1,-1", "checkpoint=a.ckpt", verb="eval", fixed=())
    assert "job 1: Invalid configuration: seed must be " in wrong
    assert not list(tmp_path.glob("s/[01]"))


def test_typed_overrides_win_over_params_of_a_file(in_sweep):
    space = "hydra.sweeper.params={optim.lr:'1e-3,1e-4',seed:'1,2',checkpoint:null,callbacks.ema.enabled:true}"
    words, _ = in_sweep(space, "optim.lr=0.5")
    kept = ["checkpoint=null", "callbacks.ema.enabled=True", "optim.lr=0.5"]
    assert words == [["seed=1", *kept], ["seed=2", *kept]]


@pytest.mark.parametrize("search", [(), ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "optim.lr=interval(0,1)")])
def test_interpolations_of_params_are_resolved_by_each_job(sweep, search):
    """Hydra gives a sweeper resolved settings: each job would have the weights of the sweep's seed."""
    seeds = ("seed=1,2",) if not search else ("seed=7",)
    jobs = sweep("hydra.sweeper.params={model.weights:'D_${seed}.ckpt'}", *search, *seeds)
    assert len(jobs) == 2 and all("model.weights=D_${seed}.ckpt" in job for job in jobs)


# --- resuming with the same overrides


@pytest.fixture
def own_space(tmp_path):
    """Write a file of --config-dir with these ``hydra.sweeper.params``; return the overrides that select it."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)

    def write(params: str) -> tuple[str, ...]:
        text = f"# @package _global_\nhydra:\n  sweeper:\n    params: {params}\n"
        (tmp_path / "mine" / "experiment" / "own.yaml").write_text(text)
        return ("--config-dir=mine", "experiment=own")

    return write


@pytest.mark.parametrize("in_file", [False, True])
def test_settings_of_swept_options_are_composed_per_job(sweep, own_space, in_file: bool):
    """The default option has no momentum, and Hydra composes the sweep with it."""
    own = own_space("{optim: 'sgd,sgd_heavy'}") if in_file else ("hydra.sweeper.params={optim:'sgd,sgd_heavy'}",)
    jobs = sweep(*own, "optim.momentum=0.7", "optim={nesterov:false}")
    kept = [*own[1:], "optim.momentum=0.7", "optim={nesterov:false}"]
    assert [of_job(job) for job in jobs] == [[f"optim={optim}", *kept] for optim in ("sgd", "sgd_heavy")]


def test_unknown_settings_of_swept_options_get_a_suggestion(sweep):
    message = sweep("hydra.sweeper.params={optim:'sgd,sgd_heavy'}", "optim.momentun=0.7")
    assert "job 0, 1: Invalid configuration: Unknown key optim.momentun. Did you mean optim.momentum?" in message


@pytest.mark.parametrize(
    "words",
    [
        ("hydra.sweeper.params={model:'fcn8s,fcn16z'}",),
        ("hydra.sweeper.params={model:'choice(fcn8s,fcn16z)'}", *OPTUNA),
        ("model=fcn8s,fcn16z",),
        ("+hydra.sweeper.params.model='fcn8s,fcn16z'", "model.upsampling=fixed"),
    ],
    ids=" ".join,
)
def test_unknown_options_get_a_suggestion_before_any_job(sweep, tmp_path, words):
    message = sweep(*words)
    assert "Unknown option model=fcn16z. Did you mean model=fcn16s?" in message and "fcn32s, fcn8s" in message
    assert not list(tmp_path.glob("s/[01]"))


@pytest.mark.slow  # two sweeps in this process
@pytest.mark.parametrize(
    ("own", "message"),
    [
        ("${hydra:job.num}", ""),
        ("${data.batch_size}", ""),
        ("${nothing}", "Interpolation key 'nothing' not found"),
        ("${oc.env:NOT_THERE}", "NOT_THERE"),
        ("${foo:1}", "Unsupported interpolation type foo"),
    ],
)
def test_params_behave_like_typed_overrides_with_interpolations(sweep, own_space, own: str, message: str):
    """Hydra would resolve it for its sweeper, before there is a job."""
    (folder, experiment), word = own_space(f"{{data.seed: '{own}'}}"), f"data.seed={own}"
    jobs, typed = sweep(folder, experiment, "optim.lr=0.1,0.2"), sweep(word, "optim.lr=0.1,0.2", "hydra.sweep.dir=s")
    if message:
        assert message in jobs and jobs == typed
    else:
        assert [of_job(job)[0] for job in jobs] == [word] * 2


@pytest.mark.parametrize("space", ["'${nothing}'", "'${hydra:job.num}'", "'${foo:1}'"])
def test_params_that_cannot_be_resolved_are_an_error(sweep, own_space, space: str):
    assert "hydra.sweeper.params cannot be resolved: " in sweep(*own_space(space))


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("{optim: {lr: [0.1, 0.2]}}", "{optim.lr: '0.1,0.2'}"),
        ("{optim: {lr: '0.1,0.2'}}", "{optim.lr: '0.1,0.2'}"),
        ("{optim.lr: [0.1, 0.2]}", "{optim.lr: '0.1,0.2'}"),
        ("{optim: {lr: 'interval(0.1,0.2)'}}", "{optim.lr: 'interval(0.1,0.2)'}"),
    ],
)
def test_a_list_inside_params_gets_a_hint(sweep, own_space, params: str, message: str):
    output = sweep(*own_space(params))
    assert "To sweep over the values of optim.lr, type " in output
    assert f"hydra.sweeper.params: {message}" in output


@pytest.mark.parametrize("words", [(), ("optim.weight_decay=interval(0,1)",)])
def test_a_list_inside_params_of_a_search_gets_a_hint(sweep, own_space, words):
    output = sweep(*own_space("{optim: {lr: 'interval(0.1,0.2)'}}"), *OPTUNA, *words)
    assert "type 'optim.lr=interval(0.1,0.2)' (in a file: hydra.sweeper.params: {optim.lr: 'interval" in output


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["optim.lr=[0.1,0.2]"], ["To sweep over the values of optim.lr, type optim.lr=0.1,0.2 (in"]),
        (["optim.lr='0.1,0.2'"], ["To sweep over the values of optim.lr, type optim.lr=0.1,0.2 (in"]),
        (["augment.scale=[0.5,1.0]", "seed=-1"], []),  # which needs brackets
    ],
)
def test_a_typed_list_that_is_not_a_valid_value_gets_a_hint(sweep, words, output):
    message = sweep(*words)
    assert (
        "Invalid configuration" in message
        and [line[: len(output[0])] for line in message.splitlines() if "To sweep" in line] == output
    )


@pytest.mark.slow  # several sweeps in this process
@pytest.mark.parametrize(
    ("params", "message", "bare"),
    [
        (
            "{optim.lr: 0.2, seed: '1,2'}",
            "only in the record:  optim.lr=0.1\n  only in this sweep:  optim.lr=0.2\n",
            True,
        ),
        ("{optim.lr: 0.1, seed: '1,2,3'}", "only in the record:  seed=1,2\n  only in this sweep:  seed=1,2,3\n", False),
        (
            "{optim.lr: 0.1, seed: '1,2', model: fcn8s}",
            "since the sweep was started:\n  only in this sweep:  model=fcn8s\n",
            True,
        ),
        ("{seed: '1,2'}", "since the sweep was started:\n  only in the record:  optim.lr=0.1\n", False),
    ],
)
def test_changed_params_are_refused_on_resume(sweep, own_space, tmp_path, params: str, message: str, bare: bool):
    words = own_space("{optim.lr: 0.1, seed: '1,2'}")
    assert len(sweep(*words)) == 2
    assert sweep_record(tmp_path)["params"] == ["optim.lr=0.1", "seed=1,2"]
    record = (tmp_path / "s" / "sweep.json").read_bytes()
    own_space(params)
    again = (words[0], "sweep.resume=s")
    refused = sweep(*again, fixed=()) if bare else sweep(words[1], *again)
    assert message in refused and (tmp_path / "s" / "sweep.json").read_bytes() == record


def test_changed_params_of_a_file_are_refused_with_the_name_of_the_file(own_space, tmp_path):
    """The command to resume the sweep would only repeat the error."""
    own_space("{optim.lr: 0.2}")
    command = ["--config-dir", str(tmp_path / "mine")]
    manifest = Manifest(tmp_path, "train", ["experiment=own"], params=["optim.lr=0.1"], launched_by=command)
    parser = OverridesParser.create()
    for typed in (["experiment=own"], ["optim.lr=0.1", "experiment=own"]):
        with pytest.raises(UserError, match=r"params, set in .*mine/experiment/own\.yaml, has changed") as refused:
            check_params(manifest, parser.parse_overrides(typed), parser.parse_overrides(["optim.lr=0.2"]), parser)
        difference = "only in the record:  optim.lr=0.1\n  only in this sweep:  optim.lr=0.2\nRestore its old values"
        assert difference in str(refused.value) and manifest.resume_command not in str(refused.value)


@pytest.mark.slow  # several sweeps in this process
def test_a_sweep_is_resumed_with_unchanged_params(sweep, own_space, tmp_path):
    words = own_space("{optim.lr: 0.1, seed: '1,2', model: 'fcn8s,fcn16s'}")
    jobs = [of_job(job) for job in sweep(*words, "model=fcn32s")]
    assert jobs == [["optim.lr=0.1", f"seed={seed}", words[1], "model=fcn32s"] for seed in (1, 2)]
    for again in ((), (words[1], "model=fcn32s")):
        assert [of_job(job) for job in sweep(words[0], *again, "sweep.resume=s", fixed=QUICK if again else ())] == jobs
    own_space("{optim.lr: 0.1, seed: '1,2', model: fcn8s}")  # replaced by the typed value, as before
    assert len(sweep(words[0], "sweep.resume=s", fixed=())) == 2


def test_typed_settings_replace_only_their_part_of_a_dictionary(sweep, own_space):
    words = own_space("{optim: {lr: 0.25, weight_decay: 0.125}, seed: '1,2'}")
    jobs = [of_job(job) for job in sweep(*words, "optim.lr=0.7")]
    assert jobs == [["optim.weight_decay=0.125", f"seed={seed}", words[1], "optim.lr=0.7"] for seed in (1, 2)]


@pytest.mark.parametrize(
    ("typed", "message"),
    [({"optim.lr"}, "optim.lr"), ({"optim.lr", "optim.nesterov"}, "optim={lr:1,nesterov:true}"), ({"seed"}, "")],
)
def test_the_replaced_part_of_a_dictionary_is_named(typed, message):
    assert _overridden_part(OverridesParser.create().parse_override("optim={lr:1,nesterov:true}"), typed) == message


@pytest.mark.parametrize(
    ("typed", "output"),
    [(["optim.lr=0.1", "experiment=own"], []), (["experiment=own", "optim.lr=0.1"], ["optim.lr=0.2"])],
)
def test_only_typed_settings_are_reported_to_override_a_file(tmp_path, monkeypatch, typed, output):
    """``sweep.resume=`` alone adds the recorded settings, which nobody typed."""
    logged: list[str] = []
    monkeypatch.setattr(grid_sweeper.log, "info", lambda text, part: logged.append(part))
    manifest = Manifest(tmp_path, "train", ["experiment=own"], params=["optim.lr=0.1"])
    monkeypatch.setattr(grid_sweeper, "check_params", lambda *_: None)
    context = SimpleNamespace(config_loader=SimpleNamespace(get_group_options=lambda _: []))
    launcher = SimpleNamespace(manifest=manifest, resumes=True)
    grid_sweeper.parse_overrides(context, {"optim.lr": "0.2"}, typed, launcher)  # pyright: ignore
    assert logged == output


def test_typed_params_are_restored_on_resume(sweep, tmp_path):
    jobs = [of_job(job) for job in sweep("hydra.sweeper.params={optim.lr:0.1,seed:'1,2'}", "model=fcn8s")]
    assert [of_job(job) for job in sweep("sweep.resume=s", fixed=())] == jobs
    assert "only in the record:  optim.lr=0.1\n" in sweep("sweep.resume=s", "model=fcn8s")


@pytest.fixture
def own_file(tmp_path, monkeypatch):
    """Write an experiment of --config-dir with these settings; a job's process writes its composed config."""
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    configs = {}

    def compose(*arguments, first):
        composed_jobs = composed(*arguments, first)
        configs.update({number: OmegaConf.to_yaml(without_hydra(cfg)) for number, cfg in composed_jobs.items()})
        return composed_jobs

    def poll(self) -> int:
        number = next(word for word in self.words if word.startswith("hydra.job.num=")).partition("=")[2]
        (tmp_path / "s" / number / ".hydra").mkdir(exist_ok=True)
        (tmp_path / "s" / number / ".hydra" / "config.yaml").write_text(configs[int(number)])
        return 0

    composed = job_checks.compose_jobs
    monkeypatch.setattr(job_checks, "compose_jobs", compose)
    monkeypatch.setattr(EndedProcess, "poll", poll)

    def write(text: str) -> tuple[str, ...]:
        (tmp_path / "mine" / "experiment" / "own.yaml").write_text(f"# @package _global_\n{text}\n")
        return ("--config-dir=mine", "experiment=own")

    return write


@pytest.mark.slow  # several sweeps in this process
def test_changed_files_are_refused_if_jobs_have_started(sweep, own_file, tmp_path):
    words = own_file("optim: {lr: 0.1}\nseed: ${hydra:job.num}")
    assert len(sweep(*words, "optim.momentum=0.5,0.9", "optim=sgd")) == 2
    command = sweep_record(tmp_path)["command"]
    own_file("optim: {lr: 0.1}\nseed: ${hydra:job.num}\ncheckpointing: {keep_top: 3}")  # no score depends on it
    assert len(sweep(words[0], "sweep.resume=s", fixed=())) == 2
    own_file("optim: {lr: 0.2}\nseed: ${hydra:job.num}")
    message = sweep(words[0], "sweep.resume=s", fixed=())
    assert "would get other settings:\njob 0, 1: optim.lr=0.2 (was 0.1)\nRestore the files" in message
    assert f"start a new sweep: {command}" in message


@pytest.mark.slow  # several sweeps in this process
def test_a_finished_sweep_is_not_refused_for_changed_settings(sweep, own_file, tmp_path, monkeypatch, capfd):
    """No job would get the changes, whether in a file or in the environment."""
    warnings: list[str] = []
    monkeypatch.setattr(launchers.log, "warning", lambda text, *values: warnings.append(text % values))
    monkeypatch.setenv("LR", "0.1")
    words = own_file("optim: {lr: '${oc.decode:${oc.env:LR}}', weight_decay: 0.1}")
    assert len(sweep(*words, "seed=1,2")) == 2
    for number in (0, 1):
        (tmp_path / "s" / str(number) / "run.json").write_text('{"status": "finished"}')
        (tmp_path / "s" / str(number) / "metrics.json").write_text('{"miou": 0.5}')
        (tmp_path / "s" / str(number) / "confusions.npz").touch()
        (tmp_path / "s" / str(number) / "config.yaml").write_text("optim: {lr: 0.1}")
    own_file("optim: {lr: '${oc.decode:${oc.env:LR}}', weight_decay: 0.2}")
    for value in ("0.2", "-1"):
        monkeypatch.setenv("LR", value)
        assert sweep(words[0], "sweep.resume=s", fixed=()) == [] and not warnings
    monkeypatch.delenv("LR")
    assert sweep(words[0], "sweep.resume=s", fixed=()) == [] and sweep_record(tmp_path)["status"] == "finished"
    (tmp_path / "s" / "1" / "metrics.json").unlink()  # without scores, the job is not finished
    monkeypatch.setenv("LR", "0.2")
    assert "would get other settings:\njob 0, 1: optim.weight_decay" in sweep(words[0], "sweep.resume=s", fixed=())


@pytest.mark.slow  # several sweeps in this process
def test_changed_environment_variables_cause_a_warning(sweep, own_file, tmp_path, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(launchers.log, "warning", lambda text, *values: warnings.append(text % values))
    monkeypatch.setenv("LR", "0.1")
    words = own_file("optim: {lr: '${oc.decode:${oc.env:LR}}'}")
    assert len(sweep(*words, "seed=1,2,3")) == 3 and not warnings
    for number in (0, 1):
        (tmp_path / "s" / str(number) / "config.yaml").write_text("optim: {lr: 0.1}")
    monkeypatch.setenv("LR", "0.2")
    assert len(sweep(words[0], "sweep.resume=s", fixed=())) == 3
    assert "current values:\njob 0, 1: optim.lr=0.2 (was 0.1)\n" in warnings[0] and len(warnings) == 1


@pytest.mark.slow  # several sweeps in this process
def test_a_sweep_with_a_searchpath_is_resumed_once_it_is_typed_again(sweep, own_space, tmp_path):
    own_space("{optim.lr: 0.1, seed: '1,2'}")
    where = "hydra.searchpath=[file://mine]"
    jobs = sweep(where, "experiment=own")
    absolute = f"hydra.searchpath=[file://{tmp_path}/mine]"
    assert len(jobs) == 2 and all(absolute in job for job in jobs) and absolute in sweep_record(tmp_path)["command"]
    message = sweep("sweep.resume=s", fixed=())
    assert f"This sweep used {absolute}. Type: fcnlab train '{absolute}' -m sweep.resume=s" in message
    assert len(sweep(where, "sweep.resume=s", fixed=())) == 2
    own_space("{optim.lr: 0.2, seed: '1,2'}")
    message = sweep(where, "sweep.resume=s", fixed=())
    assert "hydra.sweeper.params, set in mine/experiment/own.yaml, has changed" in message


@pytest.mark.slow  # several sweeps in this process
@pytest.mark.parametrize("started", [True, False])
def test_a_sweep_is_resumed_in_the_folders_of_its_jobs(sweep, tmp_path, started: bool):
    """Overrides of Hydra are not restored: jobs that are not planned yet would be in other folders."""
    subdir = "hydra.sweep.subdir=${hydra.job.override_dirname}"
    assert len(sweep("seed=1,2,3", subdir)) == 3
    record = sweep_record(tmp_path)
    folders = [job["folder"] for job in record["jobs"]]
    del record["jobs"][2]  # as in a killed batch
    (tmp_path / "s" / "sweep.json").write_text(json.dumps(record))
    if started:
        (tmp_path / "s" / folders[0] / "run.json").write_text("{}")
    message = sweep("sweep.resume=s", fixed=())
    assert (
        f"the folder of job 0 was s/{folders[0]}, and would now be s/0. Add " in message
        and "hydra.sweep.subdir=" in message
    )
    assert sweep_record(tmp_path) == record and not (tmp_path / "s" / "0").exists()
    assert len(sweep("sweep.resume=s", subdir, fixed=())) == 3
    assert [job["folder"] for job in sweep_record(tmp_path)["jobs"]] == folders


@pytest.mark.slow  # several sweeps in this process
@pytest.mark.parametrize(
    "words",
    [
        ("seed=1,2",),
        ("hydra.sweeper.params={optim.lr:0.1,seed:'1,2'}",),
        ("+hydra.sweeper.params.seed='1,2'", "hydra.launcher.slots=1", "optim.lr=0.1"),
        ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.seed=3", "optim.lr=interval(0.1,0.2)"),
        ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.params={optim.lr:'interval(0.1,0.2)'}"),
        ("seed=1,2", "hydra.sweep.subdir='a ${hydra.job.num}'", "hydra.sweeper.max_batch_size=1"),
    ],
    ids=" ".join,
)
def test_the_recorded_command_repeats_the_sweep(sweep, tmp_path, words: tuple[str, ...]):
    jobs, record = sweep(*words), sweep_record(tmp_path)
    (tmp_path / "s").rename(tmp_path / "before")
    again = shlex.split(record["command"])
    assert again[:3] == ["fcnlab", "train", "-m"] and len(jobs) == 2
    assert sweep(*again[3:], fixed=()) == jobs
    assert sweep_record(tmp_path)["command"] == record["command"]


def test_a_failed_job_does_not_stop_later_batches(sweep, tmp_path, monkeypatch):
    seen = []

    def poll(self) -> int:
        seen.append((sweep_record(tmp_path)["status"], sweep_record(tmp_path)["ended"]))
        return int("seed=1" in self.words)

    monkeypatch.setattr(EndedProcess, "poll", poll)
    message = sweep("seed=1,2,3", "hydra.sweeper.max_batch_size=1")
    assert "job 0 (seed=1) failed with exit code 1" in message
    record = sweep_record(tmp_path)
    assert [job["status"] for job in record["jobs"]] == ["failed", "finished", "finished"]
    assert set(seen) == {("running", None)} and record["status"] == "failed" and record["ended"]


@pytest.mark.slow  # several sweeps in this process
@pytest.mark.parametrize("launcher", ["slots", "basic"])
def test_job_names_are_unique_across_batches(sweep, monkeypatch, launcher: str):
    """Within one batch, the folder that all values share is left out of the names."""
    in_process: list[list[str]] = []
    monkeypatch.setattr(launchers.BasicLauncher, "launch", lambda self, words, first: in_process.extend(words) or [])
    started = sweep("model.weights=a/x,a/y,b/x,b/y", "hydra.sweeper.max_batch_size=2", f"hydra/launcher={launcher}")
    names = [word for job in in_process or started for word in job if word.startswith("sweep.name=")]
    message = ["model.weights=x", "model.weights=y", "model.weights=x #2", "model.weights=y #3"]
    assert names == [f"sweep.name='{name}'" for name in message]


def test_jobs_in_one_process_run_in_the_folders_that_were_checked(sweep, monkeypatch):
    """Settings that the launcher adds to a job are not in the name of its folder."""
    folders: list[str] = []

    def launch(self, jobs, first):
        configs = [self.hydra_context.config_loader.load_sweep_config(self.config, job) for job in jobs]
        folders.extend(cfg.hydra.sweep.subdir for cfg in configs)
        return []

    monkeypatch.setattr(launchers.BasicLauncher, "launch", launch)
    naming = (
        "hydra.sweep.subdir=${hydra.job.override_dirname}",
        "hydra.job.config.override_dirname.exclude_keys=[logger]",
    )
    sweep("seed=1,2", "hydra/launcher=basic", *naming)
    assert folders == [f"data.root=.,seed={seed},trainer=smoke" for seed in (1, 2)]


@pytest.mark.parametrize("plus", ["", "+", "++"])
def test_a_plus_before_from_run_and_sweep_resume_is_ignored(monkeypatch, tmp_path, plus: str):
    monkeypatch.chdir(tmp_path)
    for folder, record in (("old", "run.json"), ("s", "sweep.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / record).write_text('{"overrides": ["seed=7"]}')
    for word, brought in (
        ("from_run=old", ["seed=7", "from_run=old"]),
        ("sweep.resume=s", ["sweep.resume=s", "seed=7"]),
    ):
        monkeypatch.setattr("sys.argv", ["fcnlab", "-m", f"{plus}{word}"])
        cli._add_recorded_overrides("train", started_by_lightning=False)
        assert sys.argv[2:4] == brought


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("experiment=null,paper/fcn8s", "experiment=null,paper/fcn8s: a sweep cannot include null. Choose from"),
        (
            "logger=null,none",
            "logger=null,none: a sweep cannot include null. Choose from: csv, default, mlflow, none",
        ),
        ("logger=choice(csv,null)", "logger=choice(csv,null): a sweep cannot include null"),
    ],
)
def test_null_in_a_list_of_options_is_an_error(sweep, word: str, message: str):
    assert message in sweep(word, fixed=())


def test_swept_options_cannot_set_launcher_or_sweeper(in_sweep, tmp_path, monkeypatch):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nhydra:\n  sweeper:\n    params: {optim.lr: 'interval(1e-4,1e-2)'}\n"
    (tmp_path / "experiment" / "own.yaml").write_text(text)
    with pytest.raises(CompactHydraException, match=r"job 1: .* sets hydra\.sweeper, which applies"):
        in_sweep("experiment=baseline/small_dense,own", f"hydra.searchpath=[{tmp_path}]")


@pytest.mark.parametrize("word", ["model.backbone.x=[1,2]", "+model.backbone.x={a:1}", "model.x='a,b'", "model.x=null"])
def test_deferred_overrides_are_restored(word: str):
    key = word.partition("=")[0].lstrip("+")
    swept, waiting = grid_sweeper.defer_group_settings(["model=fcn8s,fcn16s", word], f"Could not override '{key}'.")
    assert swept == "model=fcn8s,fcn16s" and waiting != word and grid_sweeper._restored(waiting) == word


@pytest.mark.parametrize(
    "word",
    ["seed=3", "optim.lr=1,2", "~model.backbone.x", "model.x=", "model.x=choice(1)", "sweep.x=1", "model.x=(", "x.y"],
)
def test_other_overrides_are_not_deferred(word: str):
    key = word.partition("=")[0].lstrip("~")
    assert grid_sweeper.defer_group_settings(["model=fcn8s,fcn16s", word], f"Could not override '{key}'.")[1] == word


# --- more seeds


def finish(folder: Path, *numbers: int) -> None:
    """Write what a job leaves that has finished."""
    for number in numbers:
        (folder / str(number)).mkdir(exist_ok=True)
        (folder / str(number) / "run.json").write_text('{"status": "finished"}')
        (folder / str(number) / "metrics.json").write_text('{"miou": 0.5}')
        (folder / str(number) / "confusions.npz").touch()


@pytest.mark.slow  # several sweeps in this process
def test_a_sweep_is_extended_and_resumed(sweep, tmp_path):
    assert len(sweep("model=fcn8s,fcn16s")) == 2  # without a seed
    finish(tmp_path / "s", 0, 1)
    jobs = [of_job(job) for job in sweep("sweep.extend=s", "seed=4,5", fixed=())]
    assert jobs == [[f"model={model}", f"seed={seed}"] for seed in (4, 5) for model in ("fcn8s", "fcn16s")]
    record = sweep_record(tmp_path)
    assert record["added_seeds"] == [4, 5] and record["overrides"] == [*QUICK, "model=fcn8s,fcn16s"]
    assert [job["folder"] for job in record["jobs"]] == list("012345")
    assert [job["name"] for job in record["jobs"]][-2:] == ["model=fcn8s seed=5", "model=fcn16s seed=5"]

    finish(tmp_path / "s", 2, 3)
    assert [of_job(job) for job in sweep("sweep.resume=s", fixed=())] == jobs[2:]
    for typed, number in (("seed=1", 0), ("seed=6,5", 4)):  # 1 is the default
        message = sweep("sweep.extend=s", typed, fixed=())
        assert f"the sweep already has this seed (job {number}). Type seeds that it does not have, such as " in message
    message = sweep("sweep.extend=s", QUICK[0], "seed=6", fixed=())
    assert "only in the record:  model=fcn8s,fcn16s\nType only new seeds" in message
    assert sweep_record(tmp_path)["added_seeds"] == [4, 5]


@pytest.mark.slow  # several sweeps in this process
def test_changed_files_prevent_an_extension_and_a_confirmation(sweep, own_file, tmp_path):
    words = own_file("optim: {lr: 0.1}")
    assert len(sweep(*words, "seed=1,2")) == 2
    own_file("optim: {lr: 0.2}")
    message = sweep(words[0], "sweep.extend=s", "seed=3", fixed=())
    assert "sweep.extend=s: configuration files, or fcnlab itself, have changed" in message
    assert "job 0, 1: optim.lr=0.2 (was 0.1)" in message and sweep_record(tmp_path)["added_seeds"] == []
    with_scores(tmp_path, 0.5, 0.5)
    message = sweep(words[0], "sweep.confirm=first", "sweep.best=1", "seed=3", fixed=())
    assert "sweep.confirm=first: configuration files, or fcnlab itself, have changed" in message
    assert "job 0: optim.lr=0.2 (was 0.1)" in message and not (tmp_path / "s").exists()


def with_scores(folder: Path, *scores: float) -> None:
    """Rename the sweep s to first, and give its jobs these scores."""
    record = sweep_record(folder)
    for job, score in zip(record["jobs"], scores, strict=True):
        job["miou"] = score
    (folder / "s" / "sweep.json").write_text(json.dumps(record))
    (folder / "s").rename(folder / "first")


@pytest.mark.slow  # several sweeps in this process
def test_the_best_settings_are_confirmed_in_a_new_sweep(sweep, tmp_path, monkeypatch):
    weights = "model.weights=D/${seed}.ckpt"
    assert len(sweep("model=fcn8s,fcn16s", weights, "optim={lr:0.1},{lr:0.2}")) == 4
    with_scores(tmp_path, 0.4, 0.2, 0.3, 0.5)
    confirm = ("sweep.confirm=first", "sweep.best=2", "seed=8,9")
    expected = [
        [weights, f"seed={seed}", model, rate]
        for model, rate in (("model=fcn16s", "optim={lr:0.2}"), ("model=fcn8s", "optim={lr:0.1}"))
        for seed in (8, 9)
    ]
    jobs = sweep(*confirm, fixed=())
    assert [of_job(job) for job in jobs] == expected
    assert all("sweep.recorded=true" in job for job in jobs)  # the record names the data, and nobody typed them
    finish(tmp_path / "s", 0, 3)
    assert [of_job(job) for job in sweep("sweep.resume=s", fixed=())] == expected[1:3]
    command = sweep_record(tmp_path)["command"]
    finish(tmp_path / "s", 1, 2)
    assert [of_job(job)[-1] for job in sweep("sweep.extend=s", "seed=10", fixed=())] == ["seed=10"] * 2

    in_process: list[list[str]] = []
    monkeypatch.setattr(launchers.BasicLauncher, "launch", lambda self, words, first: in_process.extend(words) or [])
    (tmp_path / "s").rename(tmp_path / "second")
    sweep(*confirm, "hydra/launcher=basic", fixed=())
    assert [of_job(job) for job in in_process] == expected
    (tmp_path / "s" / "multirun.yaml").unlink()
    assert [of_job(job) for job in sweep(*shlex.split(command)[3:], fixed=())] == expected
