"""A run's folder on a full or read-only disk. It is mounted, because permission bits do not restrict root."""

import os
import shlex
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow
STEPS = ("trainer.max_steps=4", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1")


@pytest.fixture
def run_on_disk(tmp_path, small, shapes_root):
    """Run a shell script in ``disk``, which has 16 MB; ``$TRAIN`` is the command of a small training run there."""
    (tmp_path / "disk").mkdir()
    words = [*small, *STEPS, f"data.root={shapes_root}", "trainer=smoke", "trainer.accelerator=cpu", "logger=csv"]
    train = shlex.join([sys.executable, "-W", "ignore", "-m", "fcnlab", "train", *words, "hydra.run.dir=run"])
    disk = shlex.quote(str(tmp_path / "disk"))

    def run(script: str) -> str:
        mounted = f"mount -t tmpfs -o size=16m tmpfs {disk} && cd {disk} || exit 77\n{script}"
        completed = subprocess.run(
            ["unshare", "-m", "sh", "-c", mounted],
            env=os.environ | {"TRAIN": train, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=600,
        )  # fmt: skip
        assert completed.returncode != 77, completed.stdout
        return completed.stdout

    if why := mount_error(disk):
        pytest.skip(f"no disk can be mounted here: {why}")
    return run


def mount_error(folder: str) -> str:
    """Return why this user cannot mount a private disk; empty if it works."""
    try:
        completed = subprocess.run(
            ["unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size=1m tmpfs {folder} && mount -o remount,ro {folder}"],
            capture_output=True,
            text=True,
        )
    except OSError as error:
        return str(error)
    return "" if completed.returncode == 0 else completed.stderr.strip() or f"exit code {completed.returncode}"


def test_a_full_disk_on_resume_damages_no_record(run_on_disk):
    message = run_on_disk("""
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


def test_a_disk_full_after_saving_best_keeps_the_best_few(run_on_disk):
    """The free space holds one checkpoint and the run's small files, but no second checkpoint."""
    message = run_on_disk("""
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


@pytest.mark.parametrize("started", [True, False])
def test_a_read_only_folder_is_reported_in_a_sentence(run_on_disk, started):
    message = run_on_disk(f"""
        {"$TRAIN >/dev/null || exit 1" if started else ""}
        mount -o remount,ro . || exit 77
        $TRAIN trainer.max_steps=6 {"checkpoint=auto" if started else ""}; echo "code $?"
    """)
    assert "is not writable. Nothing was changed" in message
    assert "Traceback" not in message and message.endswith("code 1\n")
