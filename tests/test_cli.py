"""Test the command line as users see it."""

import errno
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fcnlab.cli import _as_name_list, _disk_error_message, _split, main
from fcnlab.config.hydra_errors import _run_and_explain
from fcnlab.config.overrides import check_interpolations, in_quotes, list_as_typed
from fcnlab.config.recorded_overrides import apply_sweep_resume
from fcnlab.errors import LONGEST_MESSAGE, UserError, limit_of_process
from fcnlab.library_internals.hydra import value_of
from fcnlab.verbs import ACTIONS, VERBS


def test_help_lists_the_verbs(capsys, fcnlab):
    assert fcnlab("--help") == 0
    message = capsys.readouterr().out
    assert all(f"fcnlab {verb}" in message for verb in VERBS)


def test_help_imports_neither_torch_nor_hydra():
    code = "import sys; sys.argv = ['fcnlab', '--help']\nfrom fcnlab.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'hydra', 'lightning', 'numpy') if name in sys.modules])"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.endswith("[]\n")


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_command_imports_no_torch(verb):
    code = f"import sys; sys.argv = ['fcnlab', '{verb}', '--help']\nfrom fcnlab.cli import main\ntry: main()\n"
    code += "except SystemExit: pass\nprint('torch' in sys.modules)"
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert completed.stdout.endswith("False\n")
    assert f"fcnlab {verb}" in completed.stdout


SCORING = {"augment", "data", "inference", "postprocess", "speed", "trainer"}
TRAINING = {"augment", "callbacks", "data", "logger", "loss", "model", "model/backbone", "optim", "schedule", "speed"}
GROUPS = {
    "train": {
        *(*TRAINING, "trainer", "hydra/launcher", "hydra/sweeper"),
        *("experiment/paper", "experiment/baseline", "experiment/cpu"),
    },
    "eval": {
        *SCORING,
        "logger",
        "model",
        "model/backbone",
        "experiment/paper",
        "experiment/published",
        "hydra/launcher",
    },
    "predict": SCORING,
    "doctor": {"augment", "data"},
    "compare": set(),
    "watch": set(),
    "figure": set(),
    "export": set(),
    "card": set(),
    "bench": set(),
    "wandb": set(),
    "new": set(),
}


def groups_in_help(output: str) -> dict[str, list[str]]:
    """Return the options of each group in the help."""
    lines = re.findall(r"^([a-z/_]+): (.*)$", output, re.MULTILINE)
    return {group: options.split(", ") for group, options in lines}


@pytest.mark.parametrize("verb", VERBS)
def test_the_help_of_a_command_lists_the_groups_that_it_has(fcnlab, capsys, repository, verb):
    """Experiments belong to the command in their header, and Hydra's options are in no file of conf/."""
    assert fcnlab(verb, "--help") == 0
    output = groups_in_help(capsys.readouterr().out)
    assert set(output) == GROUPS[verb]
    for group, options in output.items():
        files = sorted((repository / "conf" / group).glob("*.yaml"))
        if group.startswith("experiment"):
            files = [path for path in files if f"# fcnlab {verb} experiment=" in path.read_text()]
        own = ["basic"] if group.startswith("hydra/") else []
        assert options == sorted([*own, *(path.stem for path in files)]), group


def test_help_lists_the_options_of_a_user_folder(fcnlab, capsys, tmp_path):
    for name in ("data/leaves", "experiment/mine"):
        path = tmp_path / "own" / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text("a: 1\n")
    assert fcnlab("train", "--config-dir", "own", "--help") == 0
    output = groups_in_help(capsys.readouterr().out)
    assert "leaves" in output["data"] and output["experiment"] == ["mine"]


def test_an_unknown_command_names_the_nearest_one(capsys, fcnlab, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fcnlab", "trian"])
    with pytest.raises(SystemExit, match=r"Unknown command 'trian'\. Did you mean 'train'\?"):
        main()


def test_the_word_after_wandb_is_an_action(fcnlab, capsys):
    assert fcnlab("wandb", "psh", "runs=a") == 1
    assert "Unknown word 'psh'. Did you mean 'push'?" in capsys.readouterr().err
    assert fcnlab("wandb", "runs=a") == 1
    assert re.findall(r"^  fcnlab wandb (\w+)", capsys.readouterr().err, re.MULTILINE) == list(ACTIONS["wandb"])
    assert fcnlab("wandb", "report", "runs=a,b", "--cfg", "job") == 0
    output = capsys.readouterr().out
    assert "action: report\nruns:\n- a\n- b\n" in output


def test_a_comma_inside_a_folder_name_does_not_split_a_list(tmp_path, monkeypatch):
    """As hydra.sweep.subdir=${hydra.job.override_dirname} makes them."""
    monkeypatch.chdir(tmp_path)
    for name in ("s/optim.lr=0.1,seed=1", "s/optim.lr=0.1,seed=2", "a", "a,b"):
        (tmp_path / name).mkdir(parents=True)
    assert _split("s/optim.lr=0.1,seed=1,s/optim.lr=0.1,seed=2,a") == [
        "s/optim.lr=0.1,seed=1",
        "s/optim.lr=0.1,seed=2",
        "a",
    ]
    assert _split("a,b") == ["a,b"] and _split("b,a") == ["b", "a"] and _split("no,where") == ["no", "where"]


@pytest.mark.parametrize("word", ["compare runs=a${b}c", "card name=a${b}c"])
def test_a_name_with_the_characters_of_an_interpolation_is_taken_literally(fcnlab, capsys, word):
    verb, setting = word.split()
    assert fcnlab(verb, setting, "--cfg", "job", "--resolve") == 0
    assert "a${b}c" in capsys.readouterr().out


def test_changing_the_working_directory_is_refused(fcnlab, capsys):
    for words in (["train"], ["train", "-m", "seed=1,2"], ["compare", "runs=."]):
        assert fcnlab(*words, "hydra.job.chdir=true") == 1
        assert "hydra.job.chdir=true is not supported: relative paths would" in capsys.readouterr().err


def test_the_command_name_may_be_anywhere(fcnlab, capsys):
    assert fcnlab("--cfg", "job", "train") == 0
    assert "schedule:" in capsys.readouterr().out


def test_other_ranks_start_with_the_rewritten_command(fcnlab, capsys):
    assert fcnlab("--config-name=train", "--cfg", "job") == 0
    assert "schedule:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model=fcn9s"], "fcn8s"),  # the options there are
        (["modle=fcn8s"], "modle"),
        (["+optim.momentun=0.9", "optim=sgd"], "Did you mean optim.momentum?"),
        (["data=voc", "data.root=nowhere"], "Set data.root to the folder that contains VOCdevkit/."),
        (["data.batch_size=1000"], "data.batch_size=1000 is larger than the 24 training images"),
        (["seed=one"], "seed"),
        (["model.backbone.weights=missing.pth"], "no weights file at missing.pth"),
        (["schedule.warmup=0.5"], "from 0 to 0.1"),
        (["model/backbone=googlenet", "model.backbone.weights=none", "data.crop_size=30"], "set at least 31"),
    ],
)
def test_a_user_error_has_no_traceback(words, message, fcnlab, capsys, shapes_root):
    few = ("data.dataset.num_train=24", "data.dataset.num_val=8", "data.dataset.size=64", "data.batch_size=4")
    few = () if "data=voc" in words else few
    assert fcnlab("train", f"data.root={shapes_root}", "trainer=smoke", "logger=none", *few, *words) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train", "experiment=paper/fcn33s"],
            "Unknown option experiment=paper/fcn33s. Did you mean experiment=paper/fcn32s?",
        ),
        (["train", "experiment=paper/fcn16s"], "model.weights=VALUE: PATH of the FCN-32s"),
        (["train", "experiment=paper/verify_fcn8s"], "experiment=paper/verify_fcn8s is for fcnlab eval"),
        (["eval", "experiment=paper/fcn32s"], "experiment=paper/fcn32s is for fcnlab train"),
        (["eval", "experiment=paper/verify_fcn8s"], "model.weights=VALUE: PATH of pytorch-fcn's fcn8s_from_caffe.pth"),
        (["eval", "checkpoint=best.ckpt", "data=vocc"], "Unknown option data=vocc. Did you mean data=voc?"),
        (["eval", "checkpoint=best.ckpt", "model=fcn9s"], "Unknown option model=fcn9s. Did you mean model=fcn8s?"),
    ],
)
def test_unknown_options_of_optional_groups_are_reported(words, message, fcnlab, capsys):
    assert fcnlab(*words) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("fcnlab ", {"train", "eval", "predict", "doctor"}),
        ("fcnlab tr", {"train"}),
        (
            "fcnlab train model=",
            {
                "model=fcn8s",
                "model=fcn32s",
                "model=fcn16s",
                "model=fcn8s_atonce",
                "model=smp_unet",
                "model=torchvision_deeplabv3",
                "model=torchvision_fcn",
            },
        ),
        ("fcnlab train model/backbone=g", {"model/backbone=googlenet"}),
        ("fcnlab eval checkp", {"checkpoint="}),
    ],
)
def test_completion(line, offered, fcnlab, capsys, monkeypatch):
    monkeypatch.setenv("COMP_LINE", line)
    assert fcnlab("-sc", "query=bash") == 0
    assert offered <= set(capsys.readouterr().out.split())


@pytest.fixture
def resumed_command(tmp_path, monkeypatch):
    """Return the overrides of a command line that resumes a sweep with recorded overrides."""

    def words(recorded: list, *typed: str) -> list[str]:
        (tmp_path / "sweep.json").write_text(json.dumps({"overrides": recorded}))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["fcnlab", "--config-name=train", *typed])
        apply_sweep_resume(sys.argv, "train")
        return [word for word in sys.argv[1:] if word != "--config-name=train"]

    return words


RECORDED = ["model=fcn32s,fcn8s", "+x='a b'"]
PLACE = "hydra.sweep.dir='.'"


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["seed=1,2"], ["seed=1,2"]),
        (["sweep.resume=.", "-m"], ["sweep.resume=.", *RECORDED, PLACE, "-m"]),
        (["sweep.resume=."], ["--multirun", "sweep.resume=.", *RECORDED, PLACE]),
        (
            ["-m", "hydra.launcher.slots=1", "sweep.resume=.", "--config-dir", "mine"],
            ["-m", "hydra.launcher.slots=1", "sweep.resume=.", *RECORDED, PLACE, "--config-dir", "mine"],
        ),
        (["-m", "sweep.resume=.", "seed=1"], ["-m", "sweep.resume=.", PLACE, "seed=1"]),
    ],
)
def test_a_sweep_resumes_with_its_recorded_overrides_if_none_are_typed(resumed_command, typed, words):
    assert resumed_command(RECORDED, *typed) == words


def test_the_folder_to_resume_may_be_quoted(resumed_command, tmp_path):
    (tmp_path / "a b=c,d").mkdir()
    (tmp_path / "a b=c,d" / "sweep.json").write_text(json.dumps({"overrides": ["seed=1,2"]}))
    words = ["-m", "sweep.resume='a b=c,d'", "seed=1,2", "hydra.sweep.dir='a b=c,d'"]
    assert resumed_command([], *words[:2]) == words


@pytest.mark.parametrize(
    ("verb", "message"),
    [("train", "resume with checkpoint=last"), ("eval", "repeat"), ("compare", "repeat the command")],
)
def test_the_message_for_a_full_disk_says_how_to_continue(verb: str, message: str):
    output = _disk_error_message(verb, OSError(errno.ENOSPC, "No space left on device", "x.json"), Path("run"))
    assert output and f"fcnlab {verb}: no space left on the device for x.json" in output and message in output
    assert verb == "train" or "checkpoint" not in output


def test_the_message_for_a_file_error_names_the_file():
    """An error without a file name may be our own mistake, which needs a traceback."""
    for name, way_out in (("run/predictions", "Fix it"), ("elsewhere", "Choose another file or folder")):
        output = _disk_error_message("train", OSError(errno.EISDIR, "Is a directory", name), Path("run"))
        assert output and f"fcnlab train: {name}: Is a directory. " in output and way_out in output
    assert _disk_error_message("train", OSError(errno.EISDIR, "Is a directory"), Path("run")) is None
    few = _disk_error_message("train", OSError(errno.EMFILE, "Too many open files"), Path("run"))
    assert few is not None and "no more files may be opened" in few and "ulimit -n 4096" in few
    read_only = _disk_error_message("eval", OSError(errno.EROFS, "Read-only file system"), Path("run"))
    assert read_only and "the file system is read-only" in read_only


@pytest.mark.parametrize(("verb", "slots"), [("train", True), ("eval", True), ("predict", False), ("doctor", False)])
def test_train_and_eval_run_sweep_jobs_in_processes(fcnlab, capsys, verb: str, slots: bool):
    assert fcnlab(verb, "--cfg", "hydra") == 0
    assert ("SlotsLauncher" in capsys.readouterr().out) is slots


@pytest.mark.parametrize("word", ["hydra.run.dir=/etc", "--config-dir=x", "+a._target_=os.system", "a=${oc.env:HOME}"])
def test_the_record_of_a_sweep_may_contain_only_settings(resumed_command, word: str):
    with pytest.raises(UserError, match="its record is refused, because of the override"):
        resumed_command(["seed=1,2", word], "-m", "sweep.resume=.")


def test_python_m_is_the_same(tmp_path):
    completed = subprocess.run(
        [sys.executable, "-m", "fcnlab", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert completed.stdout.startswith("fcnlab: experiments with fully convolutional networks")


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(tmp_path, repository):
    """It is built from the checkout and unpacked alone: conf/ must be inside and be found."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=repository, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel]
    subprocess.run(pip, check=True)
    environment = os.environ | {"PYTHONPATH": str(site)}
    code = "import fcnlab.config.locations; print(fcnlab.config.locations.CONF)"
    imported_from = subprocess.run(
        [sys.executable, "-c", code], cwd=empty, env=environment, capture_output=True, text=True, check=True
    )
    assert imported_from.stdout.strip() == str(site / "fcnlab" / "conf")
    assert len((site / "fcnlab/data/lists/seg11valid.txt").read_text().split()) == 736
    assert {path.name for path in (site / "fcnlab" / "comparison" / "html").iterdir()} == {
        "page.html",
        "page.css",
        "page.js",
        "theme.js",
        "tables.html",
        "class_differences.html",
        "image_panels.html",
    }
    assert {path.name for path in (site / "fcnlab" / "live_view" / "html").iterdir()} == {
        "watch.html",
        "watch.css",
        "watch.js",
        "charts.js",
    }
    assert (site / "fcnlab" / "benchmarks" / "measuring.py").is_file() and (site / "fcnlab" / "py.typed").is_file()
    small = ["data.dataset.num_train=8", "data.dataset.num_val=2", "data.batch_size=4", "trainer.max_steps=1"]
    run = [site / "bin" / "fcnlab", "train", "trainer=smoke", "logger=none", *small]
    subprocess.run(run, cwd=empty, env=environment, check=True)
    assert list(empty.glob("outputs/train/*/*/metrics.json"))


def test_version(fcnlab, capsys):
    assert fcnlab("--version") == 0
    assert capsys.readouterr().out == f"fcnlab {version('fcnlab')}\n"


# --- surroundings


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train", "hydra.run.dir=rün"],
            """hydra.run.dir=rün cannot be parsed: quote its value: "hydra.run.dir='rün'"\n""",
        ),
        (["train", "model.backbone.weights=a,ü"], """quote its value: "model.backbone.weights='a,ü'"\n"""),
        (["train", "-m", "+x=a,ü"], """quote its value: "+x=a,'ü'"\n"""),
        (["eval", "checkpoint=a=b(c"], """quote its value: "checkpoint='a=b(c'"\n"""),
        (
            ["train", r'schedule.warmup="${oc.decode:\"0.1\"}"'],
            """Type it without escaped quotes: 'schedule.warmup=${oc.decode:"0.1"}'\n""",
        ),
        (
            ["train", "-m", r"optim.lr=choice('${oc.decode:\'0.1\'}',0.2)"],
            """escaped quotes: 'optim.lr=choice(${oc.decode:'"'"'0.1'"'"'},0.2)'\n""",
        ),
        (["train", r"optim.lr='${oc.env:A'"], "expecting BRACE_CLOSE. Check its ${...}\n"),
        (["train", "seed"], "seed cannot be parsed: missing EQUAL at '<EOF>' (key=value)\n"),
        (["train", "seed=[1"], "seed=[1 cannot be parsed: no viable alternative at input '[1' (key=value)\n"),
    ],
)
def test_an_override_that_hydra_cannot_parse_is_reported(fcnlab, capsys, words, message):
    assert fcnlab(*words) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"fcnlab {words[0]}: {words[-1]} cannot be parsed: ") and error.endswith(message)


def test_hydra_parses_the_quoted_override():
    for value in ("rün", "a b", "it's", "a\\", "x=(y", "a,ü"):
        word = in_quotes(f"input={value}", is_list=False) or f"input={value}"
        assert OverridesParser.create().parse_override(word).value() == value
    assert in_quotes("größe=3", is_list=False) is None  # its key


@pytest.mark.parametrize(
    ("word", "values"),
    [
        (r'x="${oc.decode:\"0.1\"}",0.2', ['${oc.decode:"0.1"}', 0.2]),
        (r"x=choice('a ${oc.env:\'B\'}', b)", ["a ${oc.env:'B'}", "b"]),
        (r"""x='${oc.env:\'B\'}',"${oc.env:\"C\"} d" """.strip(), ["${oc.env:'B'}", '${oc.env:"C"} d']),
    ],
)
def test_hydra_parses_the_override_without_escaped_quotes(word: str, values: list):
    with pytest.raises(UserError, match=r" cannot be parsed: .* Type it without escaped quotes: ") as error:
        check_interpolations(word)
    (readable,) = shlex.split(str(error.value).rpartition("quotes: ")[2])
    check_interpolations(readable)
    parsed = value_of(OverridesParser.create().parse_override(readable)).list
    assert [getattr(value, "text", value) for value in parsed] == values


def test_values_of_options_are_not_parsed_as_overrides(fcnlab, capsys, tmp_path):
    (tmp_path / "cönf").mkdir()
    assert fcnlab("train", "--config-dir", "cönf", "--cfg", "job") == 0


@pytest.mark.parametrize("typed", ["'rün'", '"rün"', "rün", "['rün']"])
def test_a_quoted_path_is_a_list_of_one(fcnlab, capsys, typed):
    assert fcnlab("compare", f"runs={typed}") == 1
    assert "runs=rün: the folder does not exist" in capsys.readouterr().err
    assert fcnlab("bench", f"benchmarks={typed}") == 1
    assert "benchmarks=rün: unknown benchmark" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["train"], ["train", "--help"], ["compare", "runs=a"], ["train", "-m", "seed=1,2"]])
def test_a_removed_working_directory_is_reported(fcnlab, capsys, tmp_path, monkeypatch, words):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert fcnlab(*words) == 1
    assert capsys.readouterr().err == (
        f"fcnlab {words[0]}: the current directory no longer exists (No such file or directory). Use cd to leave it\n"
    )
    assert fcnlab("--help") == 0


LIMITS = [
    (RuntimeError("can't start new thread"), "cannot start another thread or process"),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "cannot start another thread or process"),
    (ImportError("libtorch_cuda.so: failed to map segment from shared object"), "out of memory"),
    (MemoryError("Unable to allocate 9.3 GiB"), "out of memory"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"), "out of memory"),
    (OSError(errno.EMFILE, "Too many open files"), "too many files are open"),
]
BEFORE_HYDRA, IN_A_TASK = "fcnlab.cli.time.time", "fcnlab.tasks.compare.compare"


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [
        *((BEFORE_HYDRA, *limit) for limit in LIMITS),
        *((IN_A_TASK, *limit) for limit in LIMITS[:-1]),  # for files, _disk_error_message says how to resume the run
    ],
)
def test_a_limit_of_the_process_is_reported_without_a_traceback(fcnlab, capsys, monkeypatch, error, message, place):
    def raises(*_):
        raise error

    monkeypatch.setattr(place, raises)
    assert fcnlab("compare", "runs=.") == 1
    output = capsys.readouterr().err
    assert message in output and str(error).splitlines()[0] in output and "raise the limit (ulimit" in output
    assert "Traceback" not in output


def test_other_errors_are_not_limits():
    for error in (RuntimeError("wrong"), ImportError("no module"), BrokenPipeError(errno.EPIPE, "x"), ValueError()):
        assert limit_of_process(error) is None


def test_a_process_that_cannot_start_a_thread_reports_it(fcnlab, capsys, monkeypatch):
    def start(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", start)
    assert fcnlab("--version") == 1
    assert capsys.readouterr().err.startswith("fcnlab: cannot start another thread or process (can't start")


def test_a_long_message_is_printed_shortened(capsys):
    def fail():
        raise UserError(f"a={'x' * 1_000_000} is invalid")

    with pytest.raises(SystemExit):
        _run_and_explain("train", fail, fail)
    printed = capsys.readouterr().err
    assert printed.startswith("fcnlab train: a=xxx") and printed.endswith("xxx is invalid\n")
    assert len(printed) == LONGEST_MESSAGE + 1


@pytest.mark.parametrize("value", ["sweep", "outputs/a,outputs/b-2", "~/x", "null", "a b", "it's", "${x}", "a=b"])
def test_a_recorded_command_has_lists_as_they_are_typed(value):
    """They mean the same, and plain names have no brackets and quotes."""
    list_of_names = _as_name_list(f"runs={value}", ("runs",), ())
    typed = list_as_typed(list_of_names, ("runs",))
    assert _as_name_list(typed, ("runs",), ()) == list_of_names
    assert typed == f"runs={value}" or set(value) & set(" '$=")
    assert list_as_typed(f"other={value}", ("runs",)) == f"other={value}"


def test_the_missing_record_of_the_basic_launcher_is_explained(tmp_path):
    words = ["fcnlab", f"sweep.extend={tmp_path}", "seed=4"]
    with pytest.raises(UserError, match=r"Give a folder with sweep\.json\.$"):
        apply_sweep_resume([*words], "train")
    (tmp_path / "multirun.yaml").touch()
    with pytest.raises(UserError, match=r"hydra/launcher=basic writes none\. Type its settings again"):
        apply_sweep_resume([*words], "train")
