"""A run's folder on a disk that is full, or read-only. Permission bits do not bind root, so it is mounted."""

import os
import shlex
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
STEPS = ("trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1")


@pytest.fixture
def on_a_disk(tmp_path, small, shapes_root):
    """Run a shell script in ``disk``, which is one of 16 MB; ``$TRAIN`` is the command of a small training there."""
    (tmp_path / "disk").mkdir()
    words = [*small, *STEPS, f"data.root={shapes_root}", "trainer=smoke", "trainer.accelerator=cpu", "logger=csv"]
    train = shlex.join([sys.executable, "-W", "ignore", "-m", "fcnlab", "train", *words, "hydra.run.dir=run"])
    disk = shlex.quote(str(tmp_path / "disk"))

    def run(script: str) -> str:
        mounted = f"mount -t tmpfs -o size=16m tmpfs {disk} && cd {disk} || exit 77\n{script}"
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", mounted],
            env=os.environ | {"TRAIN": train, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=600,
        )  # fmt: skip
        assert done.returncode != 77, done.stdout
        return done.stdout

    if why := why_not_mounted(disk):
        pytest.skip(f"no disk can be mounted here: {why}")
    return run


def why_not_mounted(folder: str) -> str:
    """What keeps this user from mounting a disk that only he sees; nothing, where it works."""
    try:
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size=1m tmpfs {folder} && mount -o remount,ro {folder}"],
            capture_output=True,
            text=True,
        )
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"


def test_a_full_disk_on_resume_leaves_every_record_whole(on_a_disk):
    message = on_a_disk("""
        $TRAIN >/dev/null || exit 1
        cp -r run/.hydra before
        dd if=/dev/zero of=ballast bs=4k 2>/dev/null
        $TRAIN trainer.max_steps=6 checkpoint=auto; echo "code $?"
        diff -r before run/.hydra && echo whole
        rm ballast
        $TRAIN trainer.max_steps=6 checkpoint=auto >/dev/null && echo ended
    """)
    assert "Traceback" not in message and "no space left on the device" in message
    assert [line for line in message.splitlines() if line in ("code 1", "whole", "ended")] == [
        "code 1",
        "whole",
        "ended",
    ]


def test_a_disk_that_is_full_once_best_is_saved_keeps_the_best_few(on_a_disk):
    """What is free has room for one checkpoint and for the run's small files, and not for a second one."""
    message = on_a_disk("""
        TRAIN="$TRAIN model.backbone.width=8 checkpointing.keep_top=1"
        $TRAIN hydra.run.dir=straight >/dev/null || exit 1
        room=$(($(stat -c %s straight/checkpoints/best.ckpt) * 3 / 2 / 4096))
        mkdir other && mv straight other/
        dd if=/dev/zero of=ballast bs=4k 2>/dev/null
        truncate -s -$((room * 4096)) ballast
        $TRAIN; echo "code $?"
        ls run/checkpoints
        rm ballast
        $TRAIN checkpoint=auto >/dev/null && echo ended
        ls run/checkpoints | sort > names && ls other/straight/checkpoints | sort | diff - names && echo equal
    """)
    assert "Traceback" not in message and "could not be written" in message
    assert message[message.index("code 1") :].splitlines() == ["code 1", "best.ckpt", "ended", "equal"]


@pytest.mark.parametrize("begun", [True, False])
def test_a_read_only_folder_is_told_in_a_sentence(on_a_disk, begun):
    message = on_a_disk(f"""
        {"$TRAIN >/dev/null || exit 1" if begun else ""}
        mount -o remount,ro . || exit 77
        $TRAIN trainer.max_steps=6 {"checkpoint=auto" if begun else ""}; echo "code $?"
    """)
    assert "is not writable. Nothing was changed" in message
    assert "Traceback" not in message and message.endswith("code 1\n")
