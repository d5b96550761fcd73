"""The estimated time and memory of training runs against the measured ones.

python benchmarks/expecting.py --voc ../shared/data --weights ../shared/weights/bvlc_googlenet.safetensors
                                          about ten minutes; only two runs without --voc and --weights

Each row is a `fcnlab train` in its own process with one thread (--threads); its metrics.json has both numbers.
"""

import measuring  # first: it sets what the libraries read when they are loaded  # isort: skip

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

VOC = ("data=voc", "data.root={voc}", "+trainer.limit_test_batches=4")
GOOGLENET = (*VOC, "model/backbone=googlenet", "model.backbone.weights={weights}")
SHAPES = ("+trainer.limit_test_batches=4", "data.root={folder}/shapes")
RUNS: dict[str, tuple[str, ...]] = {
    "tiny, shapes": (*SHAPES, "trainer.max_steps=150", "trainer.val_check_interval=50"),
    "tiny, 4 batches accumulated, 2 workers": (
        *(*SHAPES, "trainer.max_steps=30", "trainer.val_check_interval=15", "data.num_workers=2"),
        "trainer.accumulate_grad_batches=4",
    ),
    "vgg16, crops of 128": (
        *(*VOC, "model/backbone=vgg16", "model.backbone.weights=none", "data.crop_size=128", "data.batch_size=2"),
        *("trainer.max_steps=20", "trainer.val_check_interval=20", "+trainer.limit_val_batches=4"),
    ),
    "googlenet, crops of 257": (
        *(*GOOGLENET, "trainer.max_steps=20", "trainer.val_check_interval=10", "+trainer.limit_val_batches=10"),
    ),
    "googlenet, long validations": (
        *(*GOOGLENET, "data.crop_size=160", "data.batch_size=2", "trainer.max_steps=10"),
        *("trainer.val_check_interval=5", "+trainer.limit_val_batches=40"),
    ),
}


def cost(name: str, folder: Path, paths: dict[str, str], threads: int) -> dict[str, float]:
    """Run a training and return the cost that it records."""
    run = folder / name.replace(" ", "_").replace(",", "")
    words = [word.format(folder=folder, **paths) for word in (*RUNS[name], "logger=csv")]
    command = [sys.executable, "-m", "fcnlab", "train", *words, f"hydra.run.dir={run}"]
    print(f"{name}: fcnlab train {' '.join(words)}", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return json.loads((run / "metrics.json").read_text())["cost"]


def row(found: dict[str, float]) -> dict[str, float]:
    """Return minutes and MiB, measured and estimated, and their ratios."""
    return {
        "ratio": round(found["training_minutes"] / found["expected_minutes"], 3),
        "expected_minutes": found["expected_minutes"],
        "took_minutes": found["training_minutes"],
        "memory_took_/_expected": round(found["training_peak_memory_mib"] / found["expected_memory_mib"], 3),
        "expected_MiB": found["expected_memory_mib"],
        "took_MiB": found["training_peak_memory_mib"],
    }


def main() -> None:
    args = measuring.options(__doc__, voc="", weights="")
    paths = {name: str(Path(path).absolute()) for name in ("voc", "weights") if (path := getattr(args, name))}
    possible = [name for name, words in RUNS.items() if all(_is_known(word, paths) for word in words)]
    with TemporaryDirectory() as folder:
        found = {name: row(cost(name, Path(folder), paths, args.threads)) for name in possible}
    lacking = ["models on real images (--voc, --weights)"] if len(possible) < len(RUNS) else []
    measuring.report(
        "Estimated and measured cost", found, args.json, against="minutes measured / estimated", not_measured=lacking
    )


def _is_known(word: str, paths: dict[str, str]) -> bool:
    return all(f"{{{name}}}" not in word or name in paths for name in ("voc", "weights"))


if __name__ == "__main__":
    main()
