"""Test refused command lines: each is explained without a traceback, and starts nothing."""

import sys

import pytest

from fcnlab import cli
from fcnlab.sweeps import launchers


@pytest.fixture
def message(fcnlab, capfd, tmp_path):
    """Return the message of a refused command, which creates no run."""

    def say(*words: str) -> str:
        code = fcnlab(*words)
        text = capfd.readouterr().err
        assert code in (1, 2) and "Traceback" not in text and not list(tmp_path.glob("**/run.json")), text
        return text

    return say


COMPUTED = "cannot be resolved: "


@pytest.mark.parametrize(
    ("line", "output"),
    [
        ("-m --cfg job", "--cfg shows the configuration of one run. Remove -m"),
        ("-m --info", "--info shows the configuration of one run. Remove -m"),
        ("-m -c hydra", "-c shows the configuration of one run. Remove -m"),
        ("--info config --cfg job", "Only one of --run, --multirun, --cfg, --info"),
        ("--resolve", "--resolve has no effect without --cfg. Add --cfg job"),
        (
            "--experimental-rerun job.pickle",
            "--experimental-rerun executes code. To repeat a run, type from_run=FOLDER",
        ),
        ("--exp=job.pickle", "--experimental-rerun executes code"),
        ("-m --package model", "--package has no effect without --cfg"),
        ("--help model=nothing", "Unknown option model=nothing. Available options: fcn16s"),
        ("--help seed=1,2", "seed=1,2 lists several values. Add -m to run a sweep over them, or type 'seed=[1,2]'"),
        ("hydra.run.dir=out/${nothing}", f"hydra.run.dir {COMPUTED}Interpolation key 'nothing' not found"),
        ("hydra.run.dir=out/${foo:1}", f"hydra.run.dir {COMPUTED}Unsupported interpolation type foo"),
        ("hydra.run.dir=${hydra.run.dir}", f"hydra.run.dir {COMPUTED}Recursive interpolation"),
        ("hydra.run.dir=${oc.env:NOT_THERE,/proc/no/x}", "/proc/no: No such file or directory. Choose another"),
        ("hydra.job.name=${foo:1}", f"hydra.run.dir {COMPUTED}Unsupported interpolation type foo"),
        ("hydra.job.env_copy=[NOT_THERE]", "Hydra rejects these settings: KeyError: 'NOT_THERE'"),
        ("hydra.job_logging.root.level=FOO", "Hydra rejects these settings: Unable to configure root logger"),
        ("-m hydra.sweep.dir=out/${experiment} seed=1", f"hydra.sweep.dir {COMPUTED}Interpolation key 'experiment'"),
        ("-m hydra.sweep.dir=${foo:1} seed=1", f"hydra.sweep.dir {COMPUTED}Unsupported interpolation type foo"),
        ("-m hydra.sweep.dir=${oc.env:NOT_THERE,/proc/x} seed=1", "/proc/x: No such file or directory. Choose another"),
        (
            "-m hydra.sweep.dir=${oc.env:NOT_THERE,/dev/null/x} seed=1",
            "hydra.sweep.dir=/dev/null/x: /dev/null is not a folder",
        ),
        ("-m hydra/launcher=basic hydra.sweep.dir=${oc.env:NOT_THERE,/proc/x} seed=1", "/proc/x: No such file"),
        ("-m hydra.sweep.subdir=${nothing} seed=1", f"hydra.sweep.subdir {COMPUTED}Interpolation key 'nothing'"),
        ("-m hydra.launcher.slots=${foo:1} seed=1", "Unsupported interpolation type foo"),
        ("-m hydra.launcher=null seed=1", "Hydra launcher is not configured"),
        ("-m hydra.sweeper._target_=os.path.join", "Invalid plugin 'os.path.join'"),
        (
            "-m hydra/launcher=basic hydra.launcher.slots=2",
            "hydra.launcher.slots is not a setting of the chosen hydra/launcher",
        ),
        (
            "-m +hydra.launcher.timeout_min=2",
            "hydra.launcher.timeout_min is not a setting of the chosen hydra/launcher",
        ),
        (
            "-m hydra/sweeper=optuna hydra.sweeper.max_batch_size=2",
            "hydra.sweeper.max_batch_size is not a setting of the",
        ),
        ("-m hydra/sweeper=optuna +hydra.sweeper.max_batch_size=2", "hydra.sweeper.max_batch_size is not a setting of"),
        ("hydra.sweeper.n_trials=2", "hydra/sweeper=OPTION --cfg hydra -p hydra.sweeper"),
        ("-m hydra.sweeper.params=[1]", "hydra.sweeper.params=[1] must map settings to values, such as {seed:'1,2'}"),
        (
            "-m hydra.sweeper.params={seed:'range(1,3),5'}",
            "seed=range(1,3),5: a list of values cannot be inside another value",
        ),
        ("-m hydra/sweeper=optuna hydra.sweeper.params=3", "hydra.sweeper.params=3 must map settings to values"),
        ("-m hydra/sweeper=optuna optim.lr=range(1,inf)", "optim.lr=range(1,inf): cannot convert float infinity"),
        (
            "-m hydra/sweeper=optuna optim.lr=range(1,1e9)",
            "optim.lr=range(1,1e9) has 999999999 values; a range may have at most",
        ),
        (
            "-m hydra.sweeper.params={hydra.run.dir:x}",
            "hydra.sweeper.params: hydra.run.dir=x applies to the whole sweep",
        ),
        ("-m =1,2", "Config group override must be a string"),
    ],
)
def test_a_refused_command_line_is_explained(message, line: str, output: str):
    assert output in message("train", *line.split())


def test_null_is_case_insensitive(message):
    for word in ("optim=NULL", "optim=Null"):
        assert f"{word.lower()}: null is not an option. Choose from: adamw" in message("train", word)


def test_a_sweep_resumes_with_a_config_dir_whose_name_looks_like_an_override(monkeypatch, tmp_path):
    """The folder's name was mistaken for typed settings, so the recorded ones were left out."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sweep.json").write_text('{"overrides": ["seed=7,8"], "config_dir": "a=b"}')
    monkeypatch.setattr(cli, "_run", lambda verb: None)
    monkeypatch.setattr("sys.argv", ["fcnlab", "train", "--config-dir", "a=b", "sweep.resume=s"])
    cli._command()
    assert sys.argv[1:] == [
        "--multirun",
        "--config-name=train",
        "--config-dir=a=b",
        "sweep.resume=s",
        "seed=7,8",
        "hydra.sweep.dir='s'",
    ]


def test_errors_of_the_program_keep_their_traceback(fcnlab, capfd, monkeypatch):
    monkeypatch.setattr(launchers, "check_contains_no_run", lambda folder: {}["ours"])
    assert fcnlab("train", "-m", "seed=1") == 1
    assert "Traceback" in (text := capfd.readouterr().err) and "KeyError: 'ours'" in text


@pytest.mark.parametrize(
    ("line", "as_one"),
    [
        ("--config-dir a=b seed=1", "--config-dir=a=b seed=1"),
        ("train -cd model=null", "train -cd=model=null"),
        ("--config-d train train", "--config-d=train train"),
        ("--config-dir --cfg job", "--config-dir --cfg=job"),
        ("--cfg job -p data.root", "--cfg=job -p=data.root"),
        ("--info defaults -c job", "--info=defaults -c=job"),
        ("--info train", "--info train"),
        ("-m -- x", "-m -- x"),
    ],
)
def test_an_option_and_its_value_are_joined(line: str, as_one: str):
    assert cli._join_option_values(line.split()) == as_one.split()


def test_overrides_may_be_anywhere(fcnlab, capfd):
    """argparse does not recognize settings after an option if there are also settings before it."""
    assert fcnlab("seed=3", "--cfg", "job", "optim.lr=0.5", "train", "model=fcn16s", "-p", "optim.lr") == 0
    assert capfd.readouterr().out == "0.5\n"


def test_a_config_dir_may_be_named_like_an_override_or_a_command(fcnlab, capfd, tmp_path, monkeypatch):
    (tmp_path / "model=null/train/optim").mkdir(parents=True)
    (tmp_path / "model=null/train/optim/mine.yaml").write_text("_target_: torch.optim.SGD\nlr: 0.125\n")
    monkeypatch.chdir(tmp_path / "model=null")
    for words in (("--config-dir", "train", "train"), ("train", "-cd", "../model=null/train")):
        assert fcnlab(*words, "optim=mine", "--cfg", "job", "-p", "optim.lr") == 0
        assert capfd.readouterr().out == "0.125\n"
