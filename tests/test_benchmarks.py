"""Test that the benchmarks run and compute correctly; no test depends on speed."""

import importlib
import importlib.util
import json
import os
import re
import runpy
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from fcnlab.tasks import bench

FOLDER = Path(__file__).parents[1] / "benchmarks"
CPU = torch.device("cpu")
TINY = ("model/backbone=tiny", "model.backbone.width=4")
TORCHFCN = {  # a minimal torchfcn: the names that are used, and an import of a missing package
    "__init__": "raise ImportError('nothing should run this')",
    "models/__init__": """
        import fcn
        from torch import nn
        class FCN8sAtOnce(nn.Module):
            def __init__(self, n_class=21):
                super().__init__()
                self.score = nn.Conv2d(3, n_class, 1)
            def forward(self, x):
                return self.score(x)
        """,
    "trainer": """
        import fcn, pytz, torchfcn
        from torch.nn.functional import cross_entropy
        def cross_entropy2d(score, target, size_average=True):
            return cross_entropy(score, target, ignore_index=-1, reduction="mean" if size_average else "sum")
        """,
    "utils": """
        import numpy as np
        def _fast_hist(truth, prediction, n):
            return np.histogram2d(truth, prediction, bins=n, range=[[0, n], [0, n]])[0].astype(int)
        """,
    "datasets/__init__": "",
    "datasets/voc": """
        import numpy as np, torch
        from PIL import Image
        class VOCClassSegBase:
            def __init__(self, root):
                raise OSError(root)
            def __getitem__(self, index):
                files = self.files[self.split][index]
                image, label = (np.array(Image.open(files[key])).astype(int) for key in ("img", "lbl"))
                label[label == 255] = -1
                return torch.from_numpy(image).movedim(-1, 0).float(), torch.from_numpy(label)
        """,
}


@pytest.fixture
def script(monkeypatch):
    """Return the names that a script defines; it can import the modules next to it."""
    monkeypatch.syspath_prepend(FOLDER)
    return lambda name: runpy.run_path(str(FOLDER / f"{name}.py"))


@pytest.fixture
def other_library(monkeypatch, tmp_path, script):
    """Install a stand-in for pytorch-fcn, and load it like rivals.py does."""
    for name, code in TORCHFCN.items():
        path = tmp_path / "site" / "torchfcn" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(code))
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path / "site")
    yield importlib.import_module("rivals").pytorch_fcn()
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ("torchfcn", "fcn", "pytz"):
            del sys.modules[name]


def test_ratios_are_taken_within_rounds(script):
    results = script("measuring")["summary"](
        {"old": np.array([1.0, 4, 9]), "new": np.array([1.0, 2, 3])}, "old", items=2
    )
    assert results["old"]["ratio"] == 1 and results["new"]["ratio"] == 2  # of 1, 2, 3: not of the medians or the sums
    assert (results["new"]["ratio_q25"], results["new"]["ratio_q75"]) == (1.5, 2.5)
    assert results["new"]["ms"] == 1000 and results["new"]["per_second"] == 1


def test_every_round_runs_every_variant_by_its_number(script):
    seen = {"spin": [], "sleep": []}

    def spin(number: int) -> None:
        seen["spin"].append(number)
        end = time.process_time() + 0.01
        while time.process_time() < end:
            pass

    def sleep(number: int) -> None:
        seen["sleep"].append(number)
        time.sleep(0.01)

    times = script("measuring")["in_turns"]({"spin": spin, "sleep": sleep}, 5)
    assert seen == {"spin": [0, 0, 1, 2, 3, 4], "sleep": [0, 0, 1, 2, 3, 4]}
    assert np.median(times["spin"]) >= 0.01 > 0.005 > np.median(times["sleep"])  # waiting is not counted as work


def test_the_input_pipeline_benchmark_runs(script, tmp_path):
    pipeline = script("input_pipeline")
    images = pipeline["open_images"](str(tmp_path / "none"), 8, tmp_path)
    results = pipeline["measure"](images, 64, tmp_path)
    assert len(results) == 5 and all(row["ratio"] > 0 for row in results.values())


def test_the_input_pipeline_benchmark_reports_its_images(script, monkeypatch, capsys):
    pipeline = script("input_pipeline")
    monkeypatch.setattr(sys.modules["measuring"], "on_cores", lambda number: None)  # this process continues
    monkeypatch.setattr(sys, "argv", ["input_pipeline", "--num_images", "8", "--crop", "64", "--root", "none"])
    pipeline["main"]()
    assert re.search(r"8 images of VOC2012 train, .*, crops of 64", capsys.readouterr().out)


def test_the_other_library_prepares_the_input_of_the_paper(script, tmp_path):
    """BGR minus the mean, channels first, -1 for ignored pixels."""
    pipeline = script("input_pipeline")
    images = pipeline["open_images"](str(tmp_path / "none"), 1, tmp_path)
    image, label = pipeline["pytorch_fcn"](images, 0)
    rows, cols = images.size(0)
    assert image.shape == (3, rows, cols) and image.dtype.is_floating_point and label.shape == (rows, cols)
    blue = images.image(0)[..., 2]
    np.testing.assert_allclose(image[0].numpy(), blue - 104.00698793, atol=1e-4)
    np.testing.assert_array_equal(label.numpy() == -1, images.mask(0) == 255)


@pytest.mark.filterwarnings("ignore")  # Lightning's warnings, which the command line hides
def test_the_end_to_end_benchmark_runs(script, small, tmp_path):
    """The benchmark itself compares the losses of the last logged step."""
    words = [*small, f"data.root={tmp_path / 'shapes'}"]
    results = script("end_to_end")["measure"](words, rounds=2, block=2, images=4, folder=tmp_path)
    assert set(results) == {"bare PyTorch loop", "fcnlab train"} and all(row["ratio"] > 0 for row in results.values())
    parts = ("loader", "forward", "loss", "backward", "clipping", "optimiser", "average")
    assert sum(results["bare PyTorch loop"][part] for part in parts) == pytest.approx(1, abs=0.2)
    assert (tmp_path / "metrics.csv").is_file()


def test_the_confusion_benchmark_runs(script, tmp_path):
    """The benchmark itself compares the integers."""
    confusion = script("confusion")
    results = confusion["measure"](2, confusion["images"](1))
    assert len(results) == 3
    script("measuring")["report"]("title", results, tmp_path / "sub" / "found.json")
    assert json.loads((tmp_path / "sub" / "found.json").read_text())["found"] == results


def test_the_listed_benchmarks_are_the_runnable_scripts(script):
    """Other scripts are helpers. Each benchmark has a description and a duration, and accepts the verb's options."""
    known = bench.describe_benchmarks(FOLDER)
    assert {path.stem for path in FOLDER.glob("*.py")} - set(known) >= {"measuring", "rivals", "ours"}
    assert set(known) >= {"work", "forward", "step", "loss_head", "evaluation_step", "confusion", "memory"}
    for name, about in known.items():
        code = (FOLDER / f"{name}.py").read_text()
        assert about and f"python benchmarks/{name}.py" in code and "measuring.options(__doc__" in code


def test_the_help_lists_the_benchmarks(fcnlab, capsys):
    assert fcnlab("bench", "--help") == 0
    (names,) = re.findall(r"^  Names: (.*(?:\n {9}.*)*)", capsys.readouterr().out, re.MULTILINE)
    scripts = {path.stem for path in FOLDER.glob("*.py") if "\ndef main(" in path.read_text()}
    assert set(re.findall(r"\w+", names)) == scripts


def test_a_step_needs_a_fraction_of_the_work_of_the_other_library(script):
    """The reference network is ours with padding=paper up to a few thousandths; the promised ratio is checked."""
    work = script("work")
    size = (375, 500)
    results = work["measure"](
        {name: work["NETS"][name] for name in (work["AS_THE_RIVAL"], "fcnlab")}, work["AS_THE_RIVAL"], size
    )
    actual = results["375x500: fcnlab"]
    assert actual["ratio"] >= 1.8
    assert actual["GMAC_forward"] == pytest.approx(vgg16_macs(*size), rel=0.01)


def vgg16_macs(rows: int, cols: int) -> float:
    """Return the GMACs of same-padded FCN-8s on VGG16 by hand: kernels times cells; pools round up."""
    total, before, sides = 0, 3, [rows, cols]
    for widths in ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)):
        for width in widths:
            total += 9 * before * width * sides[0] * sides[1]
            before = width
        sides = [-(-side // 2) for side in sides]
    return (total + (49 * 512 + 4096) * 4096 * sides[0] * sides[1]) / 1e9


def test_the_other_library_is_loaded_without_its_init_module(other_library, tmp_path):
    assert other_library.net(21)(torch.zeros(1, 3, 4, 5)).shape == (1, 21, 4, 5)
    assert other_library.cross_entropy.__name__ == "cross_entropy2d"
    assert other_library.count(np.array([0, 1, 1]), np.array([0, 1, 0]), 2).tolist() == [[1, 0], [1, 1]]


@pytest.mark.parametrize("name", ["step", "loss_head", "evaluation_step", "memory"])
def test_benchmarks_without_the_other_library_are_reported(name, script, monkeypatch, capsys, tmp_path):
    benchmark = script(name)
    monkeypatch.setattr(sys.modules["rivals"], "pytorch_fcn", lambda: None)
    monkeypatch.setattr(sys.modules["measuring"], "on_cores", lambda number: None)  # this process continues
    monkeypatch.setattr(sys, "argv", [name, "--json", str(tmp_path / "found.json")])
    benchmark["main"]()
    assert "Not measured: pytorch-fcn, which is not installed" in capsys.readouterr().out
    results = json.loads((tmp_path / "found.json").read_text())
    assert results["found"] == {} and "torchfcn==1.9.7" in results["not_measured"][0]


def test_the_forward_benchmark_runs(script, other_library):
    forward = script("forward")
    actual = importlib.import_module("ours")
    builders = {"fcnlab": lambda: actual.net_of(actual.composed(*TINY))}
    results = forward["measure"]({"pytorch-fcn": other_library.net}, builders, (64, 64), 1, CPU)
    assert len(results) == 6 and results["pytorch-fcn, fp32"]["ratio"] == 1
    assert all(row["GMAC"] >= 0 and row["ms"] > 0 for row in results.values())


def test_the_step_benchmark_runs(script, other_library):
    """Both libraries update their weights with the same learning rate."""
    step = script("step")
    results = step["measure"](other_library, TINY, step["Size"](2, 64, 64), 1, CPU)
    assert list(results) == ["2 x 64x64: pytorch-fcn, fp32", "2 x 64x64: fcnlab, fp32", "2 x 64x64: fcnlab, bf16"]


def test_utilization_is_work_per_second_relative_to_the_peak_of_the_gpu(script, other_library):
    step = script("step")
    results = {"pytorch-fcn, fp32": {"per_second": 10.0}}
    macs = 21 * 3 * 64 * 64  # of the stand-in; no gradient of the image is computed
    step["add_utilization"].__globals__["product_speed"] = lambda device: 1e9
    step["add_utilization"](results, {"pytorch-fcn": other_library.net}, step["Size"](2, 64, 64), CPU)
    assert results["pytorch-fcn, fp32"]["percent_of_the_card"] == pytest.approx(100 * 2 * 2 * macs * 10 / 1e9, abs=0.05)


def test_the_fcnlab_step_uses_the_configuration(script):
    actual = importlib.import_module("ours")
    built = actual.build(*TINY, "optim=sgd", "optim.lr=0.5", "speed=off", device=CPU)
    assert not built.segmenter.row_blocks and actual.build(*TINY, device=CPU).segmenter.row_blocks
    optimizer = built.optimizer()
    before = [value.detach().clone() for value in built.segmenter.net.parameters()]
    built.loss(actual.batch(1, 64, 64, CPU)).backward()
    optimizer.step()
    assert any(not torch.equal(old, new) for old, new in zip(before, built.segmenter.net.parameters(), strict=True))


def test_the_loss_head_benchmark_runs(script, other_library):
    """The benchmark itself compares losses and gradients."""
    head = script("loss_head")
    mib = {head["THEIRS"]: 100.0, head["AT_ONCE"]: 50.0, head["BY_ROWS"]: 10.0}
    results = head["measure"](other_library, head["Size"](2, 61, 83), 1, CPU, mib.get)
    assert [row["times_less_memory"] for row in results.values()] == [1, 2, 10]


def test_the_evaluation_step_benchmark_runs(script, other_library, tmp_path):
    """The benchmark itself compares the counted pixels."""
    images = script("input_pipeline")["open_images"](str(tmp_path / "none"), 2, tmp_path)
    results = script("evaluation_step")["measure"](other_library, TINY, images, CPU)
    assert len(results) == 5 and results["pytorch-fcn, fp32"]["ratio"] == 1


def test_the_memory_benchmark_runs(script, other_library):
    memory = script("memory")
    results = memory["measure"]({name: 100.0 * (place + 1) for place, name in enumerate(memory["VARIANTS"])}.get)
    assert [row["ratio"] for row in results.values()] == [1, 0.5, pytest.approx(1 / 3, abs=1e-3)]
    for name in memory["VARIANTS"]:
        memory["step"](other_library, name, TINY, memory["Size"](1, 64, 64))(0)


def test_the_ensemble_benchmark_runs(script):
    ensemble, words = script("ensemble"), (*TINY, "trainer=cpu")
    results = ensemble["measure"](words, 1, lambda networks: 100.0 * int(networks))
    assert [row["MiB"] for row in results.values()] == [100 * size for size in ensemble["SIZES"]]
    assert results["1 network"]["ratio"] == 1 and list(results)[-1] == "5 networks"
    assert ensemble["evaluation"](words, 2)(0).sum() == 375 * 500


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_peak_memory_is_the_largest_extra_allocation(script, new_pages):
    """128 MiB are allocated and freed; memory that is held before and after is not counted."""
    measuring = script("measuring")
    held = new_pages(2**26)  # 64 MiB
    peak = measuring["peak_mib"](lambda: new_pages(2**27).close())
    assert peak == pytest.approx(128, abs=8) and held[0] == 1


BROKEN = "def main(): raise SystemExit(3)\nmain()\n"
WRITES = '''"""A benchmark."""
import json, sys
def main():
    print("live")
    found = {"fast": {"ratio": 2.0, "ratio_q25": 1.5, "ratio_q75": 2.5, "ms": 1}, "counted": {"ratio": 3.0}}
    record = {"against": "times as fast", "environment": {"threads": sys.argv[2]}, "found": found}
    with open(sys.argv[sys.argv.index("--json") + 1], "w") as file:
        json.dump(record | {"not_measured": ["a rival, which is not there"]}, file)
main()
'''


@pytest.fixture
def scripts(monkeypatch, tmp_path):
    """Replace the benchmarks by two, of which one fails, and a script that is not a benchmark."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    for name, code in {"broken": BROKEN, "writes": WRITES, "helper": "print('no benchmark')"}.items():
        (folder / f"{name}.py").write_text(code)
    monkeypatch.setattr(bench, "BENCHMARKS", folder)


def test_bench_continues_after_a_failed_benchmark(fcnlab, scripts, capfd, tmp_path):
    (tmp_path / "own").mkdir()
    assert fcnlab("bench", "--config-dir", "own", "hydra.run.dir=run", "threads=1") == 1
    message = capfd.readouterr()
    assert "live" in message.out and re.search(r"writes: fast +2.00 +1.50 to 2.50 +times as fast", message.out)
    assert "writes: not measured: a rival, which is not there" in message.out
    assert "failed: broken" in message.err and "Traceback" not in message.err
    results = json.loads((tmp_path / "run" / "bench.json").read_text())
    assert results["command"] == f"fcnlab bench --config-dir {tmp_path}/own threads=1"
    assert list(results["benchmarks"]) == ["writes"] and results["benchmarks"]["writes"]["environment"] == {
        "threads": "1"
    }
    page = (tmp_path / "run" / "bench.md").read_text()
    assert "| writes: counted | 3.00 | counted | times as fast |" in page and "a rival, which is not there" in page


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "benchmarks=writes,wirtes",
            "benchmarks=wirtes: unknown benchmark. Available benchmarks:\n  broken: broken\n  writes: A",
        ),
        ("device=gpu", "device=gpu is not valid: choose auto, cpu, cuda"),
        ("threads=0", "threads must be a whole number of at least 1"),
        ("threads=10000", "threads=10000 is not valid: choose 1 to"),
    ],
)
def test_invalid_settings_are_refused_before_any_benchmark(word, message, fcnlab, scripts, capfd):
    assert fcnlab("bench", word) == 1
    output = capfd.readouterr()
    assert message in output.err and "live" not in output.out


@pytest.mark.slow
def test_a_benchmark_as_a_command(fcnlab, tmp_path):
    assert fcnlab("bench", "benchmarks=work", "hydra.run.dir=run") == 0
    results = json.loads((tmp_path / "run" / "work.json").read_text())
    assert results["found"]["375x500: fcnlab"]["ratio"] >= 1.8
    assert {"processor", "torch", "threads"} <= set(results["environment"])


def test_startup_is_a_multiple_of_torch(script):
    startup = script("startup")
    results = startup["times_torch"]({startup["TORCH"]: np.array([1.0, 2, 2]), "job": np.array([3.0, 4, 8])}, "job")
    assert (results["ratio"], results["ratio_q25"], results["ratio_q75"], results["seconds"]) == (3, 2.5, 3.5, 4)


def test_startup_ends_when_training_begins(script, tmp_path):
    words = script("startup")["words_of"]
    assert words(("train", "logger=csv"), tmp_path)[4].endswith("fit_begins.FitBegins")
    assert words(("train", "--cfg", "job"), tmp_path) == ["-m", "fcnlab", "train", "--cfg", "job"]


def test_script_continues_with_closed_output(script, monkeypatch):
    """As for ``fcnlab bench | head -1``."""
    reading, writing = os.pipe()
    os.close(reading)
    monkeypatch.setattr(sys, "argv", ["a benchmark"])
    with os.fdopen(writing, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        monkeypatch.setattr(sys, "stderr", sys.stderr)
        assert script("measuring")["options"]("A benchmark.", rounds=3).rounds == 3
        print("not seen", flush=True)
