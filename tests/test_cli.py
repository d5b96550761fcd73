"""The command line as a user meets it."""

import errno
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from fcnlab.cli import VERBS, _of_the_disk, _split, main
from fcnlab.config.overrides import in_quotes
from fcnlab.config.recorded_overrides import apply_sweep_resume
from fcnlab.errors import UserError, limit_of_process


def test_help_lists_the_verbs(capsys, fcnlab):
    assert fcnlab("--help") == 0
    said = capsys.readouterr().out
    assert all(f"fcnlab {verb}" in said for verb in VERBS)


def test_help_imports_neither_torch_nor_hydra():
    code = "import sys; sys.argv = ['fcnlab', '--help']\nfrom fcnlab.cli import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "print([name for name in ('torch', 'hydra', 'lightning', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("[]\n")


@pytest.mark.parametrize("verb", VERBS)
def test_a_verbs_help_imports_no_torch_and_names_its_groups(verb):
    code = f"import sys; sys.argv = ['fcnlab', '{verb}', '--help']\nfrom fcnlab.cli import main\ntry: main()\n"
    code += "except SystemExit: pass\nprint('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")
    assert f"fcnlab {verb}" in done.stdout
    groups = "model/backbone: alexnet, caffenet, googlenet"
    assert verb in ("compare", "bench") or groups in done.stdout  # the two have none


def test_an_unknown_verb_names_the_known_ones(capsys, fcnlab, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fcnlab", "trian"])
    with pytest.raises(SystemExit, match="no verb 'trian'; there are train, eval, predict, doctor"):
        main()


def test_a_comma_inside_a_folders_name_splits_no_list(tmp_path, monkeypatch):
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


def test_a_run_stays_in_the_folder_of_its_command(fcnlab, capsys):
    for words in (["train"], ["train", "-m", "seed=1,2"], ["compare", "runs=."]):
        assert fcnlab(*words, "hydra.job.chdir=true") == 1
        assert "hydra.job.chdir=true: relative paths would mean" in capsys.readouterr().err


def test_the_verb_may_stand_anywhere(fcnlab, capsys):
    assert fcnlab("--cfg", "job", "train") == 0
    assert "schedule:" in capsys.readouterr().out


def test_the_other_ranks_of_a_run_are_started_with_the_rewritten_words(fcnlab, capsys):
    assert fcnlab("--config-name=train", "--cfg", "job") == 0
    assert "schedule:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=fcn9s"], "fcn8s"),  # the options there are
        (["modle=fcn8s"], "modle"),
        (["+optim.momentun=0.9", "optim=sgd"], "did you mean optim.momentum?"),
        (["data=voc", "data.root=nowhere"], "Set data.root to the folder that contains VOCdevkit/."),
        (["data.batch_size=1000"], "data.batch_size=1000 is more than the 24 training images"),
        (["seed=one"], "seed"),
        (["model.backbone.weights=missing.pth"], "no weights file at missing.pth"),
        (["schedule.warmup=0.5"], "from 0 to 0.1"),
        (["model/backbone=googlenet", "model.backbone.weights=none", "data.crop_size=30"], "it needs 31"),
    ],
)
def test_a_mistake_is_told_without_a_traceback(words, said, fcnlab, capsys, shapes_root):
    few = ("data.dataset.num_train=24", "data.dataset.num_val=8", "data.dataset.size=64", "data.batch_size=4")
    few = () if "data=voc" in words else few
    assert fcnlab("train", f"data.root={shapes_root}", "trainer=smoke", "logger=none", *few, *words) == 1
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "experiment=paper/fcn33s"], "Could not find 'experiment/paper/fcn33s'"),
        (["train", "experiment=paper/fcn16s"], "model.weights=VALUE: PATH of the FCN-32s"),
        (["train", "experiment=paper/verify_fcn8s"], "experiment=paper/verify_fcn8s is one of fcnlab eval"),
        (["eval", "experiment=paper/fcn32s"], "experiment=paper/fcn32s is one of fcnlab train"),
        (["eval", "experiment=paper/verify_fcn8s"], "model.weights=VALUE: PATH of pytorch-fcn's fcn8s_from_caffe.pth"),
        (["eval", "checkpoint=best.ckpt", "data=vocc"], "Could not find 'data/vocc'"),
        (["eval", "checkpoint=best.ckpt", "model=fcn9s"], "Could not find 'model/fcn9s'"),
    ],
)
def test_options_of_optional_groups_are_not_passed_over(words, said, fcnlab, capsys):
    assert fcnlab(*words) == 1
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("fcnlab ", {"train", "eval", "predict", "doctor"}),
        ("fcnlab tr", {"train"}),
        ("fcnlab train model=", {"model=fcn8s", "model=fcn32s", "model=fcn16s", "model=fcn8s_atonce"}),
        ("fcnlab train model/backbone=g", {"model/backbone=googlenet"}),
        ("fcnlab eval checkp", {"checkpoint="}),
    ],
)
def test_completion(line, offered, fcnlab, capsys, monkeypatch):
    monkeypatch.setenv("COMP_LINE", line)
    assert fcnlab("-sc", "query=bash") == 0
    assert offered <= set(capsys.readouterr().out.split())


@pytest.fixture
def words_to_resume(tmp_path, monkeypatch):
    """What the words on a command line become, where ``sweep.json`` records some."""

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
def test_a_sweep_goes_on_in_its_folder_with_its_words_where_none_are_typed(words_to_resume, typed, words):
    assert words_to_resume(RECORDED, *typed) == words


def test_a_folder_to_go_on_with_may_be_quoted(words_to_resume, tmp_path):
    (tmp_path / "a b=c,d").mkdir()
    (tmp_path / "a b=c,d" / "sweep.json").write_text(json.dumps({"overrides": ["seed=1,2"]}))
    words = ["-m", "sweep.resume='a b=c,d'", "seed=1,2", "hydra.sweep.dir='a b=c,d'"]
    assert words_to_resume([], *words[:2]) == words


@pytest.mark.parametrize(
    ("verb", "said"), [("train", "go on with checkpoint=last"), ("eval", "repeat"), ("compare", "repeat the command")]
)
def test_a_full_disk_is_told_with_what_the_verb_can_do(verb: str, said: str):
    told = _of_the_disk(verb, OSError(errno.ENOSPC, "No space left on device", "x.json"), Path("run"))
    assert told and f"fcnlab {verb}: no space left on the device for x.json" in told and said in told
    assert verb == "train" or "checkpoint" not in told


def test_an_error_of_a_file_is_told_in_a_sentence_with_the_files_name():
    """One without a name may be a mistake of ours, whose traceback is wanted."""
    for name, way_out in (("run/predictions", "mend that"), ("elsewhere", "Name another file or folder")):
        told = _of_the_disk("train", OSError(errno.EISDIR, "Is a directory", name), Path("run"))
        assert told and f"fcnlab train: {name}: Is a directory. " in told and way_out in told
    assert _of_the_disk("train", OSError(errno.EISDIR, "Is a directory"), Path("run")) is None
    few = _of_the_disk("train", OSError(errno.EMFILE, "Too many open files"), Path("run"))
    assert few is not None and "no more files may be opened" in few and "ulimit -n 4096" in few
    read_only = _of_the_disk("eval", OSError(errno.EROFS, "Read-only file system"), Path("run"))
    assert read_only and "the file system is read-only" in read_only


@pytest.mark.parametrize(("verb", "slots"), [("train", True), ("eval", True), ("predict", False), ("doctor", False)])
def test_what_leaves_scores_is_swept_in_processes(fcnlab, capsys, verb: str, slots: bool):
    assert fcnlab(verb, "--cfg", "hydra") == 0
    assert ("SlotsLauncher" in capsys.readouterr().out) is slots


@pytest.mark.parametrize("word", ["hydra.run.dir=/etc", "--config-dir=x", "+a._target_=os.system", "a=${oc.env:HOME}"])
def test_a_sweeps_record_holds_settings_alone(words_to_resume, word: str):
    with pytest.raises(UserError, match="is no setting of a run; refused"):
        words_to_resume(["seed=1,2", word], "-m", "sweep.resume=.")


def test_python_m_is_the_same(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fcnlab", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("fcnlab: fully convolutional networks")


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_folder(tmp_path, repository):
    """Built from the checkout and unpacked alone: conf/ must be inside, and found there."""
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path], cwd=repository, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel]
    subprocess.run(pip, check=True)
    environment = os.environ | {"PYTHONPATH": str(site)}
    code = "import fcnlab.config.validation; print(fcnlab.config.locations.CONF)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=empty, env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == str(site / "fcnlab" / "conf")
    assert len((site / "fcnlab/data/lists/seg11valid.txt").read_text().split()) == 736
    assert {path.name for path in (site / "fcnlab" / "comparison" / "html").iterdir()} == {
        "page.html",
        "page.css",
        "page.js",
    }
    assert (site / "fcnlab" / "benchmarks" / "measuring.py").is_file()
    small = ["data.dataset.num_train=8", "data.dataset.num_val=2", "data.batch_size=4", "trainer.max_steps=1"]
    run = [site / "bin" / "fcnlab", "train", "trainer=smoke", "logger=none", *small]
    subprocess.run(run, cwd=empty, env=environment, check=True)
    assert list(empty.glob("outputs/train/*/*/metrics.json"))


def test_version(fcnlab, capsys):
    assert fcnlab("--version") == 0
    assert capsys.readouterr().out == f"fcnlab {version('fcnlab')}\n"


# --- surroundings


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["train", "hydra.run.dir=rün"],
            """hydra.run.dir=rün cannot be read: its value needs quotes: "hydra.run.dir='rün'"\n""",
        ),
        (["train", "model.backbone.weights=a,ü"], """needs quotes: "model.backbone.weights='a,ü'"\n"""),
        (["train", "-m", "+x=a,ü"], """needs quotes: "+x=a,'ü'"\n"""),
        (["eval", "checkpoint=a=b(c"], """needs quotes: "checkpoint='a=b(c'"\n"""),
        (["train", "seed"], "seed cannot be read: missing EQUAL at '<EOF>' (key=value)\n"),
        (["train", "seed=[1"], "seed=[1 cannot be read: no viable alternative at input '[1' (key=value)\n"),
    ],
)
def test_a_word_that_hydra_cannot_read_is_told_in_a_sentence(fcnlab, capsys, words, said):
    assert fcnlab(*words) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"fcnlab {words[0]}: {words[-1]} cannot be read: ") and error.endswith(said)


def test_the_quoted_word_is_one_that_hydra_reads():
    for value in ("rün", "a b", "it's", "a\\", "x=(y", "a,ü"):
        word = in_quotes(f"input={value}", is_list=False) or f"input={value}"
        assert OverridesParser.create().parse_override(word).value() == value
    assert in_quotes("größe=3", is_list=False) is None  # its key


def test_values_of_options_are_no_settings(fcnlab, capsys, tmp_path):
    (tmp_path / "cönf").mkdir()
    assert fcnlab("train", "--config-dir", "cönf", "--cfg", "job") == 0


@pytest.mark.parametrize("typed", ["'rün'", '"rün"', "rün", "['rün']"])
def test_a_quoted_path_is_a_list_of_one(fcnlab, capsys, typed):
    assert fcnlab("compare", f"runs={typed}") == 1
    assert "runs=rün: the folder does not exist" in capsys.readouterr().err
    assert fcnlab("bench", f"claims={typed}") == 1
    assert "claims=rün: no such claim" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["train"], ["train", "--help"], ["compare", "runs=a"], ["train", "-m", "seed=1,2"]])
def test_a_folder_that_was_removed_is_told(fcnlab, capsys, tmp_path, monkeypatch, words):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert fcnlab(*words) == 1
    assert capsys.readouterr().err == (
        f"fcnlab {words[0]}: the current folder is no longer there (No such file or directory): cd to another one\n"
    )
    assert fcnlab("--help") == 0


LIMITS = [
    (RuntimeError("can't start new thread"), "no further thread or process can be started"),
    (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "no further thread or process can be started"),
    (ImportError("libtorch_cuda.so: failed to map segment from shared object"), "there is too little memory"),
    (MemoryError("Unable to allocate 9.3 GiB"), "there is too little memory"),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), "there is too little memory"),
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"), "there is too little memory"),
    (OSError(errno.EMFILE, "Too many open files"), "too many files are open"),
]
BEFORE_HYDRA, IN_A_TASK = "fcnlab.cli.time.time", "fcnlab.tasks.compare.compare"


@pytest.mark.parametrize(
    ("place", "error", "said"),
    [
        *((BEFORE_HYDRA, *limit) for limit in LIMITS),
        *((IN_A_TASK, *limit) for limit in LIMITS[:-1]),  # of files _of_the_disk says there how the run goes on
    ],
)
def test_a_limit_of_the_process_is_told_in_a_sentence(fcnlab, capsys, monkeypatch, error, said, place):
    def raises(*_):
        raise error

    monkeypatch.setattr(place, raises)
    assert fcnlab("compare", "runs=.") == 1
    shown = capsys.readouterr().err
    assert said in shown and str(error).splitlines()[0] in shown and "raise the limit (ulimit" in shown
    assert "Traceback" not in shown


def test_an_error_of_the_program_is_no_limit():
    for error in (RuntimeError("wrong"), ImportError("no module"), BrokenPipeError(errno.EPIPE, "x"), ValueError()):
        assert limit_of_process(error) is None


def test_a_process_that_may_start_no_thread_says_so(fcnlab, capsys, monkeypatch):
    def start(_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("threading.Thread.start", start)
    assert fcnlab("--version") == 1
    assert capsys.readouterr().err.startswith("fcnlab: no further thread or process can be started (can't start")
