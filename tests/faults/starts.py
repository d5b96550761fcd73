"""Interrupt commands while they start, and kill parents while they start a child, at random moments.

    python tests/faults/starts.py --count 20 --seed 1        (make faults)

Each command gets ``count`` Ctrl-C, and as many parents die within 12 ms of starting a child. Broken is: another exit
code than 130, a traceback, a command that hangs; a child that is left. The last line is the report, as JSON.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

SMALL = (
    "trainer=smoke", "trainer.accelerator=cpu", "logger=csv", "data.dataset.num_train=24", "data.dataset.num_val=8",
    "data.dataset.size=64", "data.crop_size=64", "data.batch_size=4", "model.backbone.width=4", "data.root=shapes",
)  # fmt: skip
CHECKPOINT = "checkpoint=run/checkpoints/best.ckpt"
COMMANDS = {
    "train --help": ("train", "--help"),
    "train": ("train", *SMALL),
    "train -m": ("train", "-m", *SMALL, "seed=1,2"),
    "eval": ("eval", CHECKPOINT, "trainer.accelerator=cpu", "logger=csv"),
    "predict": ("predict", CHECKPOINT, "input=run/predictions", "output=out", "trainer.accelerator=cpu"),
    "doctor": ("doctor", "data=shapes", "data.root=shapes"),
    "compare": ("compare", "runs=run"),
    "watch --terminal": ("watch", "runs=run", "--terminal"),
}
PYTHONS_OWN = 0.5  # seconds in which Python itself may still be starting, and ends in its own words
CHILD = "import time; time.sleep(20)  # a child of starts.py"
PARENT = f"""
import os, sys, time
from fcnlab.sweeps.processes import start_process
os.write(1, b"x")
start_process([sys.executable, "-S", "-c", {CHILD!r}], None, None, [])
time.sleep(20)
"""


def start(words: tuple[str, ...]) -> subprocess.Popen:
    """A command as a shell starts it: a terminal's, in which Ctrl-C is not ignored."""
    return subprocess.Popen(
        [sys.executable, "-m", "fcnlab", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def interrupt(words: tuple[str, ...], after: float) -> tuple[str, str]:
    """What became of it, and what it said."""
    process = start(words)
    time.sleep(after)
    if process.poll() is not None:
        return "over", process.communicate()[0]
    os.killpg(process.pid, signal.SIGINT)
    try:
        message = process.communicate(timeout=90)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        return "hangs", process.communicate()[0]
    if "Traceback" in message or "Exception ignored" in message:
        return "traceback", message
    if process.returncode == -signal.SIGINT:  # all was done, and Python was ending: a shell says 130, too
        return "over", message
    return ("a line" if process.returncode == 130 else f"exit code {process.returncode}"), message


def interrupted(count: int) -> tuple[dict[str, dict[str, int]], list[str]]:
    found, broken = {}, []
    for name, words in COMMANDS.items():
        began = time.monotonic()
        start(words).communicate()
        longest = time.monotonic() - began
        ends: Counter[str] = Counter()
        for _ in range(count):
            after = random.uniform(PYTHONS_OWN, longest)
            end, message = interrupt(words, after)
            ends[end] += 1
            if end not in ("a line", "over"):
                broken.append(f"{name} after {after:.2f} s: {end}")
                print(f"BROKEN: {broken[-1]}\n{message[-2000:]}", file=sys.stderr, flush=True)
        found[name] = dict(ends)
    return found, broken


def children() -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
        except OSError:  # it has ended
            continue
        if words.split(b"\0")[-2:-1] == [CHILD.encode()]:
            found.append(int(entry.name))
    return found


def orphans(count: int) -> int:
    """How many children are left by parents that were killed while they started them."""
    left = 0
    for _ in range(count):
        parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
        assert parent.stdout and parent.stdout.read(1)
        time.sleep(random.uniform(0, 0.012))
        parent.kill()
        parent.wait()
        parent.stdout.close()
        time.sleep(0.1)
        if children():
            time.sleep(0.5)  # it may be ending
        for pid in children():
            left += 1
            os.kill(pid, signal.SIGKILL)
    return left


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    random.seed(wanted.seed)
    with tempfile.TemporaryDirectory(prefix="fcnlab-starts-") as work:
        os.chdir(work)
        left = orphans(wanted.count)
        undisturbed = start(("train", *SMALL, "hydra.run.dir=run"))
        message, _ = undisturbed.communicate()
        if undisturbed.returncode:
            sys.exit(f"the undisturbed run failed:\n{message}")
        ends, broken = interrupted(wanted.count)
        os.chdir("/")
    broken += [f"{left} children outlived their parents"] if left else []
    print(json.dumps({"parents": wanted.count, "interrupted": ends, "broken": broken}))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
