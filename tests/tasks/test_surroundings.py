"""Test fcnlab on limited machines: no shared memory, few open files, an unusable home."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
BARE = """
mkdir /tmp/bare.$$ && mount -t tmpfs x /tmp/bare.$$ && for each in null zero random urandom; do
  touch /tmp/bare.$$/$each && mount --bind /dev/$each /tmp/bare.$$/$each || exit 99
done && mount --rbind /tmp/bare.$$ /dev
"""
READ_ONLY = "mount -t tmpfs -o ro,size=64m x /dev/shm"
LITTLE = "mount -t tmpfs -o size=64k x /dev/shm"


@pytest.fixture
def confined(small, shapes_root, tmp_path):
    """Run an fcnlab command after some shell lines with private mounts; return its exit code and output."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode:
        pytest.skip("this machine makes no mount namespaces")

    def run(setup: str, verb: str, *words: str, **environment: str | None) -> tuple[int, str]:
        env = os.environ | {"WANDB_MODE": "offline"} | environment
        command = [sys.executable, "-m", "fcnlab", verb, *words]
        script = f'{{ {setup}\n}} || exit 99; exec "$@"'
        completed = subprocess.run(
            ["unshare", "-rm", "bash", "-c", script, "x", *command],
            env={name: value for name, value in env.items() if value is not None},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        if completed.returncode == 99:
            pytest.skip(f"this machine does not let {setup} be")
        return completed.returncode, completed.stdout

    return run


@pytest.fixture
def words(small, shapes_root) -> tuple[str, ...]:
    fixed = ("trainer=smoke", "trainer.accelerator=cpu", "trainer.max_steps=2", "trainer.val_check_interval=2")
    return (*small, f"data.root={shapes_root}", *fixed, "hydra.run.dir=run")


@pytest.mark.parametrize("setup", [BARE, READ_ONLY, LITTLE], ids=["none", "read-only", "little"])
def test_without_shared_memory_there_are_no_workers(confined, words, tmp_path, setup):
    code, message = confined(setup, "train", *words, "data.num_workers=2", "logger=csv")
    assert code == 0 and "Traceback" not in message, message
    assert message.count("using 0 workers instead of 2, because ") in (1, 2)
    images = next(path for path in (tmp_path / "run/predictions").iterdir())
    overrides = ("checkpoint=run/checkpoints/best.ckpt", f"input={images.parent}", "output=out", "num_workers=2")
    code, message = confined(setup, "predict", *overrides)
    assert code == 0 and "using 0 workers instead of 2, because " in message and "Traceback" not in message, message
    data = [word for word in words if word.startswith("data.")]
    code, message = confined(setup, "doctor", *data, "data.num_workers=2")
    assert (
        code == 0 and "only 0 of 2 workers can be used" in " ".join(message.split()) and "Traceback" not in message
    ), message


@pytest.mark.parametrize("limit", [28, 36, 64])
def test_a_limit_of_open_files_reduces_the_workers(confined, words, limit):
    code, message = confined(f"ulimit -n {limit}", "train", *words, "data.num_workers=4", "logger=csv")
    assert code == 0 and "Traceback" not in message and "Error" not in message, message
    assert "workers instead of 4, because this process may open" in message and "ulimit -n 4096" in message


@pytest.mark.parametrize(
    "setup", ["", "mount -t tmpfs -o ro x home", "mount -t tmpfs -o size=4k x home; head -c 4096 /dev/zero > home/x"]
)
def test_an_unusable_home_does_not_harm_a_run(confined, words, tmp_path, setup):
    """Without HOME, W&B's process would write its log to the terminal."""
    (tmp_path / "home").mkdir()
    free = dict.fromkeys(("WANDB_DATA_DIR", "WANDB_CACHE_DIR", "XDG_CACHE_HOME", "XDG_DATA_HOME"))
    home = str(tmp_path / "home") if setup else None
    code, message = confined(setup or "true", "train", *words, **free, HOME=home)
    assert code == 0 and "Traceback" not in message, message
    assert " INFO " not in message and "ERROR" not in message and "Warning: W&B" not in message, message
    tables = list(tmp_path.glob("run/wandb/offline-run-*/files/media/table/final/*.json"))
    assert len(tables) == 3  # classes, confusion matrix, images
    if setup:
        assert any(map(Path.is_file, (tmp_path / "run/wandb/wandb_data_dir/artifacts/staging").iterdir()))
