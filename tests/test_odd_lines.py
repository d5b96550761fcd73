"""Command lines that Hydra cannot use: each ends in a sentence, with nothing begun."""

import sys

import pytest

from fcnlab import cli
from fcnlab.sweeps import launchers


@pytest.fixture
def said(fcnlab, capfd, tmp_path):
    """What a line that is refused says; it leaves no run."""

    def say(*words: str) -> str:
        code = fcnlab(*words)
        text = capfd.readouterr().err
        assert code in (1, 2) and "Traceback" not in text and not list(tmp_path.glob("**/run.json")), text
        return text

    return say


COMPUTED = "cannot be computed: "


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("-m --cfg job", "--cfg shows the settings of one run: leave -m out"),
        ("-m --info", "--info shows the settings of one run: leave -m out"),
        ("-m -c hydra", "-c shows the settings of one run: leave -m out"),
        ("--info config --cfg job", "Only one of --run, --multirun, --cfg, --info"),
        ("--resolve", "--resolve has no effect without --cfg, which it is for: add --cfg job"),
        ("--experimental-rerun job.pickle", "--experimental-rerun would run what a file holds: type from_run=FOLDER"),
        ("--exp=job.pickle", "--experimental-rerun would run what a file holds"),
        ("-m --package model", "--package has no effect without --cfg"),
        ("--help model=nothing", "Could not find 'model/nothing'"),
        ("--help seed=1,2", "Ambiguous value for argument 'seed=1,2'"),
        ("hydra.run.dir=out/${nothing}", f"hydra.run.dir {COMPUTED}Interpolation key 'nothing' not found"),
        ("hydra.run.dir=out/${foo:1}", f"hydra.run.dir {COMPUTED}Unsupported interpolation type foo"),
        ("hydra.run.dir=${hydra.run.dir}", f"hydra.run.dir {COMPUTED}Recursive interpolation"),
        ("hydra.run.dir=${oc.env:NOT_THERE,/proc/no/x}", "/proc/no: No such file or directory. Name another"),
        ("hydra.job.name=${foo:1}", f"hydra.run.dir {COMPUTED}Unsupported interpolation type foo"),
        ("hydra.job.env_copy=[NOT_THERE]", "Hydra cannot use this command line: KeyError: 'NOT_THERE'"),
        ("hydra.job_logging.root.level=FOO", "Hydra cannot use this command line: Unable to configure root logger"),
        ("-m hydra.sweep.dir=out/${experiment} seed=1", f"hydra.sweep.dir {COMPUTED}Interpolation key 'experiment'"),
        ("-m hydra.sweep.dir=${foo:1} seed=1", f"hydra.sweep.dir {COMPUTED}Unsupported interpolation type foo"),
        ("-m hydra.sweep.dir=${oc.env:NOT_THERE,/proc/x} seed=1", "/proc/x: No such file or directory. Name another"),
        (
            "-m hydra.sweep.dir=${oc.env:NOT_THERE,/dev/null/x} seed=1",
            "hydra.sweep.dir=/dev/null/x: /dev/null is no folder",
        ),
        ("-m hydra/launcher=basic hydra.sweep.dir=${oc.env:NOT_THERE,/proc/x} seed=1", "/proc/x: No such file"),
        ("-m hydra.sweep.subdir=${nothing} seed=1", f"hydra.sweep.subdir {COMPUTED}Interpolation key 'nothing'"),
        ("-m hydra.launcher.slots=${foo:1} seed=1", "Unsupported interpolation type foo"),
        ("-m hydra.launcher=null seed=1", "Hydra launcher is not configured"),
        ("-m hydra.sweeper._target_=os.path.join", "Invalid plugin 'os.path.join'"),
        (
            "-m hydra/launcher=basic hydra.launcher.slots=2",
            "hydra.launcher.slots is no setting of the hydra/launcher that",
        ),
        ("-m +hydra.launcher.timeout_min=2", "hydra.launcher.timeout_min is no setting of the hydra/launcher that"),
        ("-m hydra/sweeper=optuna hydra.sweeper.max_batch_size=2", "hydra.sweeper.max_batch_size is no setting of the"),
        ("-m hydra/sweeper=optuna +hydra.sweeper.max_batch_size=2", "hydra.sweeper.max_batch_size is no setting of"),
        ("hydra.sweeper.n_trials=2", "--cfg hydra -p hydra.sweeper shows what OPTION has"),
        ("-m hydra.sweeper.params=[1]", "hydra.sweeper.params=[1]: give lists of values by setting, as {seed:'1,2'}"),
        ("-m hydra.sweeper.params={seed:'range(1,3),5'}", "seed=range(1,3),5: a list of values cannot be inside another value"),
        ("-m hydra/sweeper=optuna hydra.sweeper.params=3", "hydra.sweeper.params=3: give lists of values by setting"),
        ("-m hydra/sweeper=optuna optim.lr=range(1,inf)", "optim.lr=range(1,inf): cannot convert float infinity"),
        (
            "-m hydra/sweeper=optuna optim.lr=range(1,1e9)",
            "optim.lr=range(1,1e9): 999999999 values, and a range has at",
        ),
        (
            "-m hydra.sweeper.params={hydra.run.dir:x}",
            "hydra.sweeper.params: hydra.run.dir=x is one setting for the whole",
        ),
        ("-m =1,2", "Config group override must be a string"),
    ],
)
def test_what_hydra_cannot_use_is_told_in_a_sentence(said, line: str, told: str):
    assert told in said("train", *line.split())


def test_null_is_null_in_any_letters(said):
    for word in ("optim=NULL", "optim=Null"):
        assert f"{word.lower()}: a run needs one of its options: adamw" in said("train", word)


def test_a_sweep_goes_on_with_options_of_a_folder_that_is_called_as_a_setting(monkeypatch, tmp_path):
    """The folder's name was taken for settings that were typed anew, so that the record's were left out."""
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


def test_mistakes_of_ours_keep_their_traceback(fcnlab, capfd, monkeypatch):
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
def test_an_options_value_is_no_setting(line: str, as_one: str):
    assert cli._with_values(line.split()) == as_one.split()


def test_settings_may_stand_anywhere(fcnlab, capfd):
    """argparse calls what is behind an option, where settings were before it, unrecognized."""
    assert fcnlab("seed=3", "--cfg", "job", "optim.lr=0.5", "train", "model=fcn16s", "-p", "optim.lr") == 0
    assert capfd.readouterr().out == "0.5\n"


def test_a_folder_of_options_may_be_called_as_a_setting_or_a_verb(fcnlab, capfd, tmp_path, monkeypatch):
    (tmp_path / "model=null/train/optim").mkdir(parents=True)
    (tmp_path / "model=null/train/optim/mine.yaml").write_text("_target_: torch.optim.SGD\nlr: 0.125\n")
    monkeypatch.chdir(tmp_path / "model=null")
    for words in (("--config-dir", "train", "train"), ("train", "-cd", "../model=null/train")):
        assert fcnlab(*words, "optim=mine", "--cfg", "job", "-p", "optim.lr") == 0
        assert capfd.readouterr().out == "0.125\n"
