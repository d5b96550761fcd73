"""Test the whole ``fcnlab compare`` command."""

import csv
import html
import json
import subprocess
import sys

import pytest

from run_folders import toy_matrices


def test_a_sweep_is_compared_without_torch(sweep, make_run, tmp_path):
    """Runs in a separate process and checks the output files, the exit code and the imported modules."""
    make_run("late", status="running")
    (sweep / "blank").mkdir()
    code = "import sys; from fcnlab.cli import main\ntry: main()\n"
    code += "finally: print('TORCH' if {'torch', 'lightning', 'wandb'} & set(sys.modules) else 'NO TORCH')"
    words = [f"runs={sweep}/0,{sweep}", "baseline=model=fcn8s", "resamples=200", "hydra.run.dir=out"]
    completed = subprocess.run(
        [sys.executable, "-c", code, "compare", *words], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert completed.stdout.endswith("NO TORCH\n") and "2 groups are worse: model=fcn16s (-" in completed.stdout
    assert (
        f"{sweep}/late: still running, or killed before it ended" in completed.stdout
        and f"{sweep}/blank: an empty folder" in completed.stdout
    )
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert {
        "comparison.html",
        "comparison.md",
        "groups.csv",
        "pairs.csv",
        "per_image.csv",
        "runs.csv",
        "compare.log",
    } <= written
    with (tmp_path / "out" / "pairs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["first"], row["second"]) for row in rows] == [(f"model=fcn{n}s", "model=fcn8s") for n in (16, 32)]
    page = (tmp_path / "out" / "comparison.html").read_text()
    assert "left-out" in page and "an empty folder" in page and "runs=" in page and "fcnlab compare" in page


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "runs is not set. Set it as runs=VALUE"),
        (["runs=nowhere"], "runs=nowhere: the folder does not exist"),
        (["runs=here"], "no finished run found"),
        (["runs=runs", "baseline=fcn9s"], "baseline=fcn9s matches no group; the groups are 'all runs'"),
        (["runs=runs", "resamples=10"], "resamples must be 100 to 1000000 or null, got 10."),
        (["runs=runs", "confidence=95"], "confidence must be 0.5 to 0.999, such as 0.95, got 95.0."),
        (["runs=runs", "basline=a"], "basline"),
        (["runs=runs", "split_by=[cuda,torch]"], "split_by=[cuda] is not valid: choose from commit, torch, device"),
        (["runs=runs", "split_by=[torch]", "merge_over=[torch]"], "contradicts merge_over=[torch]"),
        (["runs=runs", "merge_over=[sorce]"], "merge_over=sorce is not a setting in which these runs differ"),
        (["runs=runs", "plan=true"], "plan=true needs a pilot of two groups with at least 3 seeds each"),
        (["runs=runs", "worst=-1"], "worst must be a whole number of at least 0, got -1."),
        (["runs=runs", "equivalence=0"], "equivalence must be more than 0 and at most 100 points or null, got 0.0."),
        (["runs=a b,it's=1"], "runs=a b: the folder does not exist"),
    ],
)
def test_a_user_error_is_reported_without_a_traceback(fcnlab, make_run, tmp_path, capsys, words, message):
    make_run("a", toy_matrices(0.7))
    (tmp_path / "here").mkdir()
    assert fcnlab("compare", *words) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_worst_images_need_an_export(fcnlab, sweep, capsys):
    assert fcnlab("compare", f"runs={sweep}", "worst=3", "resamples=100") == 0
    assert "worst=3 has no effect without export=FOLDER" in capsys.readouterr().out
    assert fcnlab("compare", f"runs={sweep}", "worst=3", "resamples=100", "export=paper") == 0
    printed = capsys.readouterr().out
    assert "no effect" not in printed
    assert "The worst images of model=fcn8s, model=fcn16s, model=fcn32s are not drawn" in printed


def test_a_pilot_is_planned_and_tested_for_equivalence(fcnlab, sweep, tmp_path, capsys):
    words = [f"runs={sweep}", "baseline=fcn8s", "plan=true", "equivalence=50", "resamples=200", "hydra.run.dir=out"]
    assert fcnlab("compare", *words) == 0
    printed = capsys.readouterr().out
    assert printed.count("The observed difference would need") == 2 and "72 images" in printed
    with (tmp_path / "out" / "pairs.csv").open(newline="") as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == ["equivalent", "worse"]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], ("source.fcnlab=aaa", "source.fcnlab=bbb")),
        (["merge_over=[source]"], ("all runs",)),
        (["split_by=[torch]", "merge_over=[source]"], ("torch=2.9.0", "torch=2.10.0")),
    ],
)
def test_groups_are_split_and_merged_and_every_output_reports_it(fcnlab, make_run, tmp_path, capsys, words, names):
    make_run("a", seed=1, source="aaa", torch="2.9.0")
    make_run("b", seed=2, source="bbb", torch="2.10.0")
    assert fcnlab("compare", "runs=runs", "resamples=100", "hydra.run.dir=out", *words) == 0
    message = capsys.readouterr().out
    page, pipes = ((tmp_path / "out" / name).read_text() for name in ("comparison.html", "comparison.md"))
    for text in (message, page, pipes.replace("\\", "")):  # as a Markdown viewer shows it
        assert all(name in text for name in names)
        assert ("set merge_over=[source] to ignore it" in text) == (not words)
        assert ("Runs are merged over source.fcnlab, scoring.source.fcnlab: aaa, bbb." in text) == bool(words)
        assert ("Set split_by=[torch] to group them by it" in text) == ("split_by=[torch]" not in words)
    with (tmp_path / "out" / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {(row["source.fcnlab"], row["torch"]) for row in rows} == {("aaa", "2.9.0"), ("bbb", "2.10.0")}
    assert {row["device"] for row in rows} == {"cpu: x86_64"}


def test_folders_with_odd_names(fcnlab, make_run, tmp_path, capsys):
    make_run("it's=a [run]")
    assert fcnlab("compare", f"runs={tmp_path}/runs/it's=a [run]", "resamples=100") == 0
    assert "1 group, 1 run on" in capsys.readouterr().out


def test_the_recorded_command_names_the_folders_of_config_files(fcnlab, make_run, tmp_path):
    make_run("a")
    own = tmp_path / "own"
    own.mkdir()
    words = (f"hydra.searchpath=[{own}]", "runs=runs", "resamples=100", "hydra.run.dir=out")
    assert fcnlab("compare", "--config-dir", "own", *words) == 0
    page = html.unescape((tmp_path / "out" / "comparison.html").read_text())
    assert f"fcnlab compare --config-dir {own} 'hydra.searchpath=[{own}]' " in page


def test_real_runs_are_compared(train, fcnlab, tmp_path, capsys):
    """The files that ``fcnlab train`` and ``fcnlab eval`` write can be read."""
    for model in ("fcn32s", "fcn8s"):
        train(f"model={model}", "trainer.max_steps=2", folder=f"runs/{model}")
    checkpoint = tmp_path / "runs" / "fcn8s" / "checkpoints" / "best.ckpt"
    words = ("eval", f"checkpoint={checkpoint}", "inference=flip", "trainer.accelerator=cpu")
    assert fcnlab(*words, f"hydra.run.dir={tmp_path}/runs/flipped") == 0
    sources = [json.loads(path.read_text())["provenance"]["source"] for path in tmp_path.glob("runs/*/metrics.json")]
    assert len(sources) == 3 and all(
        fingerprints == sources[0] and "fcnlab" in fingerprints for fingerprints in sources
    )
    capsys.readouterr()
    assert fcnlab("compare", "runs=runs", "hydra.run.dir=out", "resamples=200") == 0
    message = capsys.readouterr().out
    for name in ("model=fcn32s inference=whole", "model=fcn8s inference=whole", "model=fcn8s inference=flip"):
        assert name in message
    assert "Not all runs were scored with the same inference: inference=flip, inference=whole." in message
    assert (tmp_path / "out" / "comparison.html").stat().st_size > 50_000  # with images
