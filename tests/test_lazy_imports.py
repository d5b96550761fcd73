"""What commands import before they work: counted in fresh interpreters, never timed."""

import os
import subprocess
import sys

import pytest

# What a training on a net of our own does not use, and who would bring it.
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
SAY_ALL = "import sys, os; open('names', 'w').write('\\n'.join(sys.modules)); sys.stdout.flush(); os._exit(0)"


@pytest.fixture
def python(tmp_path, repository):
    """Run a fresh interpreter in an empty folder; the modules whose names it has written to the file ``names``."""

    def run(*words: str) -> set[str]:
        paths = os.pathsep.join([str(repository / "benchmarks"), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"PYTHONPATH": paths.rstrip(os.pathsep)}
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return set((tmp_path / "names").read_text().split())

    return run


def test_a_training_imports_what_it_uses(python, small, shapes_root):
    ends = ["+callbacks.begins._target_=fit_begins.FitBegins", "+callbacks.begins.modules=names"]
    found = python("-m", "fcnlab", "train", *small, f"data.root={shapes_root}", "logger=csv", *ends)
    assert {"torch", "lightning.pytorch", "torchmetrics.metric", "albumentations", "fcnlab.training.segmenter"} <= found
    assert not found & UNUSED.keys()
    assert len(found) < 3600  # 3,446 today; 4,318 and matplotlib with what is unused


@pytest.mark.slow
def test_an_evaluation_imports_neither_torchvision_nor_albumentations(python):
    found = python(
        "-c", f"from fcnlab.lazy_imports import import_verb; import_verb('fcnlab.tasks.evaluate'); {SAY_ALL}"
    )
    assert "lightning.pytorch" in found and not found & (UNUSED.keys() | {"albumentations"})


def test_a_comparison_imports_no_torch(python):
    found = python("-c", f"from fcnlab.lazy_imports import import_verb; import_verb('fcnlab.tasks.compare'); {SAY_ALL}")
    assert "fcnlab.tasks.compare" in found and not found & {"torch", "lightning", "torchmetrics"}


@pytest.mark.parametrize(("words", "most"), [(("--help",), 150), (("train", "--cfg", "job"), 700)])
def test_to_show_something_imports_no_torch(python, words, most):
    message = f"import atexit\natexit.register(lambda: exec({SAY_ALL!r}))\n"
    run = f"import sys; sys.argv = {['fcnlab', *words]!r}\nfrom fcnlab.cli import main\nmain()"
    found = python("-c", message + run)
    assert "fcnlab.cli" in found and not found & {"torch", "lightning", "numpy"} and len(found) < most


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
{SAY_ALL}
"""


@pytest.mark.slow
def test_whoever_asks_for_more_of_torchmetrics_has_all_of_it(python):
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
{SAY_ALL}
"""


@pytest.mark.slow
def test_whoever_draws_a_metric_has_matplotlib(python):
    pytest.importorskip("matplotlib")
    assert "matplotlib.pyplot" in python("-c", DRAWN)
