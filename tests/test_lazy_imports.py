"""Test what commands import before they start: counted in fresh interpreters, never timed."""

import os
import subprocess
import sys

import pytest

# Modules that training on a model of fcnlab does not use, and which package would import them.
UNUSED = {
    "torchvision": "torchmetrics, for scores of images; only torchvision's own backbones and weights are made of it",
    "scipy.signal": "torchmetrics, for a function that scipy has dropped",
    "scipy.stats": "scipy.signal",
    "torchmetrics.functional": "torchmetrics: a hundred metrics",
    "matplotlib": "torchmetrics, for annotations; it looks for fonts, and fails without a folder to keep them in",
    "wandb": "Lightning's logger, or ours; not with logger=csv",
    "tensorboard": "Lightning's logger",
    "torch.utils.tensorboard": "Lightning's logger",
    "pandas": "whoever reads a table",
    "skimage": "postprocess=superpixels",
    "optuna": "hydra/sweeper=optuna",
    "submitit": "hydra/launcher=submitit_slurm",
    "IPython": "a notebook",
}
WRITE_MODULES = "import sys, os; open('names', 'w').write('\\n'.join(sys.modules)); sys.stdout.flush(); os._exit(0)"


@pytest.fixture
def python(tmp_path, repository):
    """Run a fresh interpreter in an empty folder; return the module names that it writes to the file ``names``."""

    def run(*words: str) -> set[str]:
        paths = os.pathsep.join([str(repository / "benchmarks"), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": paths.rstrip(os.pathsep)}
        completed = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert completed.returncode == 0, completed.stdout + completed.stderr
        return set((tmp_path / "names").read_text().split())

    return run


def test_training_imports_only_what_it_uses(python, small, shapes_root):
    ends = ["+callbacks.begins._target_=fit_begins.FitBegins", "+callbacks.begins.modules=names"]
    modules = python("-m", "fcnlab", "train", *small, f"data.root={shapes_root}", "logger=csv", *ends)
    assert {
        "torch",
        "lightning.pytorch",
        "torchmetrics.metric",
        "albumentations",
        "fcnlab.training.segmenter",
    } <= modules
    assert not modules & UNUSED.keys()
    # 3,676 today, 220 of which albumentations adds where huggingface_hub is installed; some 870 more with unused ones
    assert len(modules) < 3800


@pytest.mark.slow
def test_an_evaluation_imports_neither_torchvision_nor_albumentations(python):
    modules = python(
        "-c", f"from fcnlab.lazy_imports import import_verb; import_verb('fcnlab.tasks.evaluate'); {WRITE_MODULES}"
    )
    assert "lightning.pytorch" in modules and not modules & (UNUSED.keys() | {"albumentations"})


def test_a_comparison_imports_no_torch(python):
    modules = python(
        "-c", f"from fcnlab.lazy_imports import import_verb; import_verb('fcnlab.tasks.compare'); {WRITE_MODULES}"
    )
    assert "fcnlab.tasks.compare" in modules and not modules & {"torch", "lightning", "torchmetrics"}


@pytest.mark.parametrize(("words", "most"), [(("--help",), 150), (("train", "--cfg", "job"), 700)])
def test_help_and_config_output_import_no_torch(python, words, most):
    message = f"import atexit\natexit.register(lambda: exec({WRITE_MODULES!r}))\n"
    run = f"import sys; sys.argv = {['fcnlab', *words]!r}\nfrom fcnlab.cli import main\nmain()"
    modules = python("-c", message + run)
    assert "fcnlab.cli" in modules and not modules & {"torch", "lightning", "numpy"} and len(modules) < most


WHOLE = f"""
import gc, sys
from fcnlab.lazy_imports import import_verb
task = import_verb("fcnlab.tasks.train")
assert gc.isenabled() and gc.get_freeze_count() and import_verb("fcnlab.tasks.train") is task
from lightning.pytorch.core.module import Metric
from fcnlab.metrics.confusion import ImageConfusions
assert "torchmetrics.functional" not in sys.modules and issubclass(ImageConfusions, Metric)

import torchmetrics
assert not hasattr(torchmetrics, "__no_such_name__") and "torchmetrics.functional" not in sys.modules
from torchmetrics.segmentation import MeanIoU  # a part of it, before the whole
assert issubclass(MeanIoU, Metric)
assert isinstance(torchmetrics.MeanMetric(), Metric) and torchmetrics.Metric is Metric
assert torchmetrics.functional.image.arniqa  # with torchvision in it
whole = {{}}
exec("from torchmetrics import *", whole)
assert len(torchmetrics.__all__) > 80 and not set(torchmetrics.__all__) - set(whole)
from torchmetrics.classification import MulticlassAccuracy
assert torchmetrics.classification.MulticlassAccuracy is MulticlassAccuracy
try:
    torchmetrics.no_such_name
except AttributeError:
    pass
else:
    raise AssertionError

import scipy.signal, torchvision
assert torchvision.models.vgg16 and scipy.signal.hamming and torchmetrics.__spec__.loader.path.endswith("__init__.py")
{WRITE_MODULES}
"""


@pytest.mark.slow
def test_other_uses_of_torchmetrics_import_all_of_it(python):
    assert "torchmetrics.functional" in python("-c", WHOLE)


DRAWN = f"""
import sys
from fcnlab.lazy_imports import import_verb
import_verb("fcnlab.tasks.train")
import torch, torchmetrics
assert "matplotlib" not in sys.modules
metric = torchmetrics.MeanMetric()
metric.update(torch.tensor(1.0))
import os; os.environ["MPLBACKEND"] = "agg"
figure, axes = metric.plot()
from matplotlib.figure import Figure
assert isinstance(figure, Figure) and metric.plot(ax=axes)[1] is axes
assert torchmetrics.utilities.plot.__spec__.loader.path.endswith("plot.py")
{WRITE_MODULES}
"""


@pytest.mark.slow
def test_plotting_a_metric_imports_matplotlib(python):
    pytest.importorskip("matplotlib")
    assert "matplotlib.pyplot" in python("-c", DRAWN)
