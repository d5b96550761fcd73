"""What all tests share: the command line in this process, small generated data, and the real data if it is there."""

import functools
import hashlib
import inspect
import logging
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from run_folders import make_run, sweep  # noqa: F401  fixtures

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests' numbers are a CPU's

if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup has it ignored, and tests send it

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED = REPOSITORY.parent / "shared"
SMALL = (
    "data.dataset.num_train=24",
    "data.dataset.num_val=8",
    "data.dataset.size=64",
    "data.crop_size=64",
    "data.batch_size=4",
    "data.num_workers=0",
    "model.backbone.width=4",
)


@pytest.fixture(scope="session")
def small() -> tuple[str, ...]:
    """Settings that make a training take a second."""
    return SMALL


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout."""
    return REPOSITORY


@pytest.fixture
def shared() -> Path:
    """The real images and weights beside a developer's checkout and in CI."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data: {SHARED} is absent")
    return SHARED


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory) -> Path:
    """Where the tests' shapes are drawn, once."""
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture
def composed_once(monkeypatch):
    """Hydra composes a run's settings twice, the first time to see ``hydra.mode``, which no file of ours sets."""
    from hydra._internal.hydra import Hydra

    look = Hydra.get_mode
    unsure = ("hydra.mode", "hydra.searchpath")

    def mode(self, config_name, overrides):
        elsewhere = any(
            source.provider == "command-line" for source in self.config_loader.get_sources()
        )  # --config-dir
        if elsewhere or any(key in word for word in overrides for key in unsure):
            return look(self, config_name, overrides)
        return None

    monkeypatch.setattr(Hydra, "get_mode", mode)


@pytest.fixture
def fcnlab(monkeypatch, tmp_path, composed_once):
    """Run a command line in this process, from an empty folder; give its exit code."""
    from hydra.core.hydra_config import HydraConfig

    from fcnlab.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fcnlab", *map(str, words)])
        HydraConfig.instance().cfg = None  # a process starts without the settings of an earlier command
        handlers, streams = list(logging.getLogger().handlers), (sys.stdout, sys.stderr)
        try:
            main()
        except SystemExit as stop:
            if isinstance(stop.code, str):  # the interpreter would print it
                print(stop.code, file=sys.stderr)
                return 1
            return stop.code or 0
        finally:
            sys.stdout.flush()
            sys.stdout, sys.stderr = streams  # which main has made to last
            for handler in set(logging.getLogger().handlers) - set(handlers):  # Hydra's, to the run's log
                handler.close()
            logging.getLogger().handlers[:] = handlers
        return 0

    return run


@pytest.fixture
def composed():
    """A config as the command line would compose it, outputs going nowhere."""
    from hydra import compose, initialize_config_dir

    from fcnlab.config.locations import CONF
    from fcnlab.hydra_registration import register_schemas

    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *words, name="train": without_hydra(compose(name, overrides=list(words)))


def without_hydra(cfg):
    """``${hydra:...}`` is known only inside a run."""
    from omegaconf import OmegaConf

    return OmegaConf.create(OmegaConf.to_yaml(cfg).replace("${hydra:runtime.output_dir}", "/nowhere"))


@pytest.fixture
def whole_probe():
    """Request the full cost estimate, as outside of tests."""


@pytest.fixture
def quick_probe(request, monkeypatch):
    """Shorten the cost estimate, which takes a third of a small run: it measures once, and counts no memory.

    Tests that request ``whole_probe``, and other processes, run the full estimate.
    """
    if "whole_probe" in request.fixturenames:
        return
    from fcnlab.training import cost_estimate

    monkeypatch.setattr(cost_estimate, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(cost_estimate, "PROBE_FRACTION", 0.0)
    monkeypatch.setattr(cost_estimate, "training_memory", lambda *_: cost_estimate.MemoryEstimate(0, 0, 0, 0))


@pytest.fixture
def train_code(fcnlab, quick_probe, shapes_root, tmp_path):
    """Train on small shapes in a folder of ``tmp_path``; give the exit code."""

    def run(*words: str, folder: str = "run") -> int:
        fixed = (*SMALL, f"data.root={shapes_root}", "trainer=smoke", "trainer.accelerator=cpu", "logger=csv")
        return fcnlab("train", *fixed, f"hydra.run.dir={tmp_path / folder}", *words)

    return run


@pytest.fixture
def train(train_code, tmp_path):
    """Train on small shapes; give the run's folder."""

    def run(*words: str, folder: str = "run") -> Path:
        assert train_code(*words, folder=folder) == 0
        return tmp_path / folder

    return run


@pytest.fixture
def trained_once(train, tmp_path, tmp_path_factory):
    """Train on small shapes, once for all tests with these settings; give a copy of the run's folder, as if moved."""

    def trained(*words: str, folder: str = "run") -> Path:
        made = tmp_path_factory.getbasetemp() / "trained" / hashlib.sha256("\n".join(words).encode()).hexdigest()
        if not made.is_dir():
            made.parent.mkdir(exist_ok=True)
            train(*words, folder=folder).rename(made)
        return shutil.copytree(made, tmp_path / folder)

    return trained


@pytest.fixture
def at_call(monkeypatch):
    """Do something when a method is called for the n-th time, before it runs."""

    def arrange(owner: type, method: str, count: int, act) -> None:
        original, calls = inspect.unwrap(getattr(owner, method)), [0]

        @functools.wraps(original)  # Lightning looks at the signature
        def counting(self, *args, **kwargs):
            calls[0] += 1
            if calls[0] == count:
                act()
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, method, counting)

    return arrange
