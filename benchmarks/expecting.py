"""What a training says before it starts that it will take, in minutes and memory, against what it took.

python benchmarks/expecting.py --voc ../shared/data --weights ../shared/weights/bvlc_googlenet.safetensors
                                          some ten minutes; without --voc and --weights two runs alone

Each row is a `fcnlab train`, a process of its own on one thread (--threads), whose metrics.json has both numbers.
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


def cost(name: str, folder: Path, asked: dict[str, str], threads: int) -> dict[str, float]:
    """What a run's record says of its cost."""
    run = folder / name.replace(" ", "_").replace(",", "")
    words = [word.format(folder=folder, **asked) for word in (*RUNS[name], "logger=csv")]
    command = [sys.executable, "-m", "fcnlab", "train", *words, f"hydra.run.dir={run}"]
    print(f"{name}: fcnlab train {' '.join(words)}", flush=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    return json.loads((run / "metrics.json").read_text())["cost"]


def row(found: dict[str, float]) -> dict[str, float]:
    """Minutes and GiB, and how many times as much as was expected a run took."""
    return {
        "ratio": round(found["training_minutes"] / found["expected_minutes"], 3),
        "expected_minutes": found["expected_minutes"],
        "took_minutes": found["training_minutes"],
        "memory_took_/_expected": round(found["training_peak_memory_mib"] / found["expected_memory_mib"], 3),
        "expected_MiB": found["expected_memory_mib"],
        "took_MiB": found["training_peak_memory_mib"],
    }


def main() -> None:
    asked = measuring.options(__doc__, voc="", weights="")
    paths = {name: str(Path(path).absolute()) for name in ("voc", "weights") if (path := getattr(asked, name))}
    possible = [name for name, words in RUNS.items() if all(_is_known(word, paths) for word in words)]
    with TemporaryDirectory() as folder:
        found = {name: row(cost(name, Path(folder), paths, asked.threads)) for name in possible}
    lacking = ["nets on real images (--voc, --weights)"] if len(possible) < len(RUNS) else []
    measuring.report("Expected and taken", found, asked.json, against="minutes took / expected", not_measured=lacking)


def _is_known(word: str, paths: dict[str, str]) -> bool:
    return all(f"{{{name}}}" not in word or name in paths for name in ("voc", "weights"))


if __name__ == "__main__":
    main()
