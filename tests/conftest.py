"""Shared fixtures: the command line in this process, small generated data, and the real data if it is available."""

import functools
import hashlib
import inspect
import logging
import mmap
import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from run_folders import make_run, sweep  # noqa: F401  fixtures

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the tests expect the numbers of a CPU

if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it, but tests send it

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
    """Return settings for a training run of one second."""
    return SMALL


@pytest.fixture(scope="session")
def repository() -> Path:
    """Return the root of the checkout."""
    return REPOSITORY


@pytest.fixture
def shared() -> Path:
    """Return the folder of real images and weights, next to a developer's checkout and in CI."""
    if not SHARED.is_dir():
        pytest.skip(f"no real data: {SHARED} is absent")
    return SHARED


@pytest.fixture(scope="session")
def new_pages():
    """Return a function that takes a number of bytes from the system itself.

    An array may lie in memory that earlier tests have freed; the process does not grow then.
    """

    def take(count: int) -> mmap.mmap:
        pages = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for start in range(0, count, mmap.PAGESIZE):
            pages[start] = 1
        return pages

    return take


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory) -> Path:
    """Return the folder where the tests' shapes are generated once."""
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture(scope="session", autouse=True)
def configs_parsed_once():
    """Read each config file once for all tests, as one command does, and parse each interpolation once."""
    from omegaconf import _utils, base, grammar_parser

    from fcnlab.library_internals.hydra import config_files_kept

    parse = functools.lru_cache(maxsize=None)(grammar_parser.parse)
    with config_files_kept(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(base, "parse", parse)
        patch.setattr(_utils, "parse", parse)
        yield


@pytest.fixture
def composed_once(monkeypatch):
    """Skip Hydra's first composition, which only reads ``hydra.mode``: none of our config files sets it."""
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
    """Run a command line in this process, from an empty folder; return its exit code."""
    from hydra.core.hydra_config import HydraConfig

    from fcnlab.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["fcnlab", *map(str, words)])
        HydraConfig.instance().cfg = None  # like a new process, without the settings of an earlier command
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
            sys.stdout, sys.stderr = streams  # which main has made permanent
            for handler in set(logging.getLogger().handlers) - set(handlers):  # Hydra's, to the run's log
                handler.close()
            logging.getLogger().handlers[:] = handlers
        return 0

    return run


@pytest.fixture
def composed():
    """Compose a config like the command line does, without output paths."""
    from hydra import compose, initialize_config_dir

    from fcnlab.config.locations import CONF
    from fcnlab.hydra_registration import register_schemas

    register_schemas()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        yield lambda *words, name="train": without_hydra(compose(name, overrides=list(words)))


def without_hydra(cfg):
    """Remove ``${hydra:...}``, which exists only inside a run."""
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
    """Train on small shapes in a folder of ``tmp_path``; return the exit code."""

    def run(*words: str, folder: str = "run") -> int:
        fixed = (*SMALL, f"data.root={shapes_root}", "trainer=smoke", "trainer.accelerator=cpu", "logger=csv")
        return fcnlab("train", *fixed, f"hydra.run.dir={tmp_path / folder}", *words)

    return run


@pytest.fixture
def train(train_code, tmp_path):
    """Train on small shapes; return the run's folder."""

    def run(*words: str, folder: str = "run") -> Path:
        assert train_code(*words, folder=folder) == 0
        return tmp_path / folder

    return run


@pytest.fixture
def trained_once(train, tmp_path, tmp_path_factory):
    """Train on small shapes, once for all tests with these settings; return a copy of the run's folder."""

    def trained(*words: str, folder: str = "run") -> Path:
        original = tmp_path_factory.getbasetemp() / "trained" / hashlib.sha256("\n".join(words).encode()).hexdigest()
        if not original.is_dir():
            original.parent.mkdir(exist_ok=True)
            train(*words, folder=folder).rename(original)
        return shutil.copytree(original, tmp_path / folder)

    return trained


@pytest.fixture
def at_call(monkeypatch):
    """Call a function before the n-th call of a method."""

    def arrange(owner: type, method: str, count: int, act) -> None:
        original, calls = inspect.unwrap(getattr(owner, method)), [0]

        @functools.wraps(original)  # Lightning inspects the signature
        def counting(self, *args, **kwargs):
            calls[0] += 1
            if calls[0] == count:
                act()
            return original(self, *args, **kwargs)

        monkeypatch.setattr(owner, method, counting)

    return arrange
