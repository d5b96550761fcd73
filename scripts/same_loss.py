"""Train with the code of a commit and with the working tree, and compare the curves bit by bit.

    python scripts/same_loss.py BASE [key=value ...]        (make same-loss BASE=COMMIT ARGS="key=value ...")

Both train on generated shapes, on a CPU with one thread, with the same seed. Prints the first difference of the two
metrics.csv and exits with 1 if there is one. Each run draws its own shapes, so that a change of the shapes shows, too.
"""

import argparse
import csv
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from itertools import zip_longest
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
SETTINGS = (
    "trainer=smoke", "trainer.accelerator=cpu", "trainer.max_steps=40", "trainer.val_check_interval=20",
    "trainer.log_every_n_steps=1", "logger=csv", "data.dataset.num_train=64", "data.dataset.num_val=16",
    "data.dataset.size=96", "data.crop_size=64", "data.batch_size=4", "data.num_workers=0",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="the commit to compare with, such as main or HEAD~1")
    parser.add_argument("settings", nargs="*", help="settings of both runs, such as loss=dice")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="same-loss-") as name:
        folder = Path(name)
        unpack_commit(args.base, folder / "code")
        base = train(folder / "code", folder / "base", args.settings)
        current = train(REPOSITORY, folder / "current", args.settings)
        difference = first_difference(base, current)
    if difference:
        sys.exit(f"The curves of {args.base} and of the working tree differ. {difference}")
    print(f"{args.base} and the working tree have equal curves: {len(base)} rows of metrics.csv, bit by bit.")


def unpack_commit(commit: str, folder: Path) -> None:
    archive = subprocess.run(["git", "-C", REPOSITORY, "archive", commit], stdout=subprocess.PIPE)
    if archive.returncode:  # git has said why
        sys.exit(f"BASE={commit} is not a commit of this repository.")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")


def train(code: Path, folder: Path, settings: list[str]) -> list[dict[str, str]]:
    """Train with the code in a checkout; return the rows of metrics.csv."""
    folder.mkdir()
    environment = os.environ | {"PYTHONPATH": str(code / "src"), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = ["train", *SETTINGS, f"data.root={folder / 'shapes'}", f"hydra.run.dir={folder / 'run'}", *settings]
    command = [sys.executable, "-m", "fcnlab", *words]
    print(f"Training with the code of {code}", flush=True)
    result = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if result.returncode:
        sys.exit(f"{result.stdout.decode()}\nThe run with the code of {code} ended with {result.returncode}.")
    with (folder / "run" / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def first_difference(base: list[dict[str, str]], current: list[dict[str, str]]) -> str | None:
    """Return a sentence about the first row and column that differ; None if all values are equal.

    Values are compared as text: metrics.csv contains all digits of a number. The order of columns does not matter.
    """
    for number, (first, second) in enumerate(zip_longest(base, current, fillvalue={}), 1):
        for column in dict.fromkeys((*first, *second)):
            before, after = first.get(column, ""), second.get(column, "")
            if before != after:
                step = first.get("step") or second.get("step")
                return f"Row {number}, step {step}, {column}: {before or 'nothing'} before, {after or 'nothing'} now."
    return None


if __name__ == "__main__":
    main()
