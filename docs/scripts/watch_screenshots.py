"""Take the screenshots of docs/how-to/watch.md in Chromium, of an example sweep whose numbers are made up.

python docs/scripts/watch_screenshots.py [FOLDER]        (a folder for the example; otherwise a temporary one)
"""

import asyncio
import base64
import json
import math
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
from PIL import Image

from fcnlab.files.writing import write_json
from fcnlab.runs.drawing import panel, save_png
from fcnlab.runs.score_record import write_record
from fcnlab.sweeps.manifest import Job, Manifest

IMAGES = Path(__file__).parents[1] / "images"
MODELS = {"fcn32s": 0.36, "fcn16s": 0.58, "fcn8s": 0.65}  # the final mIoU of the example
CLASSES = ("background", "boat", "bus", "cat")
PALETTE = np.array([(0, 0, 0), (0, 0, 128), (0, 128, 128), (64, 0, 0)], np.uint8)
STEPS = 800
COLOURS = 256  # of a screenshot, which keeps the files small
CHROMIUM = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update"
    " --hide-scrollbars --remote-debugging-port=0 about:blank"
)


class Browser:
    """A page of Chromium, steered over its DevTools protocol; a context manager.

    ``errors`` are the errors of the page: messages of its console, and violations of its policy.
    """

    def __init__(self, profile: Path):
        self.profile, self.errors = profile, list[str]()
        self._answers: dict[int, asyncio.Future] = {}

    async def __aenter__(self) -> "Browser":
        words = ["chromium", *CHROMIUM.split(), f"--user-data-dir={self.profile}"]
        self._process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = self.profile / "DevToolsActivePort"
        while not port_file.exists() or not port_file.read_text().count("\n"):
            await asyncio.sleep(0.1)
        port = port_file.read_text().split()[0]
        self._session = aiohttp.ClientSession()
        async with self._session.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [each for each in await answer.json() if each["type"] == "page"]
        self._socket = await self._session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=1 << 26)
        self._listener = asyncio.create_task(self._listen())
        for domain in ("Page", "Runtime", "Log"):
            await self.send(f"{domain}.enable")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._listener.cancel()
        await self._session.close()
        self._process.terminate()
        self._process.wait()

    async def _listen(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            if "id" in event:
                self._answers.pop(event["id"]).set_result(event)
            elif event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded"):
                self.errors.append(json.dumps(event["params"])[:500])

    async def send(self, method: str, **values: Any) -> dict[str, Any]:
        """Send a command, and return its result."""
        number = len(self._answers) + int(1000 * time.monotonic())
        while number in self._answers:
            number += 1
        self._answers[number] = asyncio.get_running_loop().create_future()
        answer = self._answers[number]
        await self._socket.send_json({"id": number, "method": method, "params": values})
        return (await answer)["result"]

    async def evaluate(self, code: str) -> Any:
        """Return the value of a JavaScript expression."""
        result = await self.send("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    async def open(self, address: str, width: int, height: int, dark: bool, until: str) -> None:
        """Open a page at a size, and wait until an expression is true."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.send("Emulation.setDeviceMetricsOverride", **size)
        await self.send("Page.navigate", url=address)
        await self.wait(until)

    async def wait(self, until: str) -> None:
        while not await self.evaluate(f"Boolean({until})"):
            await asyncio.sleep(0.1)

    async def screenshot(self, path: Path, top: float, width: int, height: int) -> None:
        """Save the part of the page below ``top``."""
        clip = {"x": 0, "y": top, "width": width, "height": height, "scale": 1}
        data = await self.send("Page.captureScreenshot", format="png", clip=clip, captureBeyondViewport=True)
        image = Image.open(BytesIO(base64.b64decode(data["data"]))).convert("RGB")
        image.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)


def write_example(sweep: Path, process: int) -> None:
    """Write an example sweep of three networks by three seeds; ``process`` is the one that its running jobs have."""
    random.seed(1)
    claim = f"{process} on {platform.node()}"
    statuses = ["finished"] * 4 + ["failed", "running", "running", "waiting", "waiting"]
    jobs = {}
    for number, status in enumerate(statuses):
        model, seed = list(MODELS)[number // 3], number % 3 + 1
        name = f"model={model} seed={seed}"
        jobs[number] = Job(number, str(number), [f"model={model}", f"seed={seed}"], name, status)
        if status == "failed":
            jobs[number].exit_code = 1
        if status != "waiting":
            write_run(sweep / str(number), jobs[number], MODELS[model] + 0.02 * random.random(), claim)
    Manifest(sweep, "train", ["model=fcn32s,fcn16s,fcn8s", "seed=1,2,3"], jobs=jobs).write()
    (sweep / ".lock").write_text(claim)


def write_run(folder: Path, job: Job, miou: float, claim: str) -> None:
    """Write the folder of one job."""
    folder.mkdir(parents=True)
    last = {"finished": STEPS, "failed": 260}.get(job.status, 640 - 200 * (job.number % 2))
    now = datetime.now(UTC)
    started = now - timedelta(seconds=last / 3)
    ended = None if job.status == "running" else now.isoformat(timespec="seconds")
    facts = {"status": job.status, "starts": 1, "started": started.isoformat(timespec="seconds"), "ended": ended}
    facts |= {"overrides": job.overrides, "host": "workstation", "commit": "0" * 40, "wandb": None}
    facts |= {"reason": "LossIsNan: train/loss is nan at step 261"} if job.status == "failed" else {}
    write_json(folder / "run.json", facts)
    (folder / "config.yaml").write_text(f"trainer: {{max_steps: {STEPS}, max_epochs: -1}}\n")
    (folder / ".lock").write_text(claim)
    lines, log, best = ["step,epoch,train/loss,val/loss,val/miou"], [], 0.0
    for step in range(10, last + 1, 10):
        loss = 0.25 + 2.6 * math.exp(-step / 160) + 0.12 * random.random()
        lines.append(f"{step},{step // 50},{loss:.4f},,")
        if step % 40 == 0:
            score = miou * (1 - math.exp(-step / 230)) + 0.02 * random.random()
            best = max(best, score)
            lines.append(f"{step},{step // 50},,{0.9 * loss + 0.08:.4f},{score:.4f}")
            left = f"about {(STEPS - step) / 3:.0f} s left"
            log.append(f"[12:{step // 60:02}:{step % 60:02}] Step {step} of {STEPS}: {left}")
    (folder / "metrics.csv").write_text("\n".join([*lines, ""]))
    (folder / "train.log").write_text("\n".join([*log, ""]))
    if job.status == "finished":
        write_scores(folder, best)


def write_scores(folder: Path, best: float) -> None:
    """Write the scores and the images of a finished run."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(200, 3000, (200, 4))
    matrices = np.zeros((200, 4, 4), np.int64)
    right = np.clip(rng.normal(best, 0.12, (200, 4)), 0.1, 1) ** 0.55
    for place in range(4):
        matrices[:, place, place] = sizes[:, place] * right[:, place]
        matrices[:, place, (place + 1) % 4] = sizes[:, place] - matrices[:, place, place]
    selection = {"checkpoint": "best", "set": "shapes val", "list": "val", "step": STEPS, "val_miou": best}
    selection |= {"same_images": True}
    cost = {"images_per_second": 41.7, "training_peak_memory_mib": 1630, "training_minutes": 4.1}
    parts = {"protocol": {"set": "shapes val"}, "selection": selection, "cost": cost}
    draw_images(folder / "predictions")
    write_record(folder, "val", [str(place) for place in range(200)], CLASSES, matrices, **parts)


def draw_images(folder: Path) -> None:
    """Draw images of discs; the predictions are coarse copies of the ground truth."""
    rows, cols = np.mgrid[:120, :160]
    for place in range(4):
        rng = np.random.default_rng(place)
        mask = np.zeros((120, 160), np.uint8)
        for label in (1, 2, 3, 1):
            top, left, radius = rng.integers((10, 10, 12), (110, 150, 36))
            mask[(rows - top) ** 2 + (cols - left) ** 2 < radius**2] = label
        image = (90 + 40 * rng.normal(size=(4, 3)))[mask] + 14 * rng.normal(size=(120, 160, 3))
        prediction = mask[4::8, 4::8].repeat(8, 0).repeat(8, 1)
        drawn = panel(image.clip(0, 255).astype(np.uint8), mask, prediction, CLASSES, PALETTE)
        save_png(folder / f"val_{place:06}.png", drawn)


async def take_screenshots(address: str, profile: Path) -> None:
    async with Browser(profile) as browser:
        ready = "document.querySelectorAll('#chart-miou polyline.line').length >= 7"
        await browser.open(address, 1280, 900, False, ready)
        await browser.screenshot(IMAGES / "watch.png", 0, 1280, 1480)
        await browser.open(address, 1280, 900, True, ready)
        await browser.screenshot(IMAGES / "watch_dark.png", 0, 1280, 1480)
        for name, dark in {"watch_narrow.png": False, "watch_narrow_dark.png": True}.items():
            await browser.open(address, 400, 850, dark, ready)
            await browser.screenshot(IMAGES / name, 0, 400, 1750)
        await browser.open(address, 1280, 900, False, ready)
        await browser.evaluate("document.querySelector('#table tbody button').click()")
        await browser.wait("document.querySelector('#images img')")
        await browser.wait("[...document.images].every((image) => image.complete)")
        top = await browser.evaluate("document.getElementById('run').getBoundingClientRect().top + scrollY")
        await browser.screenshot(IMAGES / "watch_run.png", top, 1280, 900)
        print("\n".join(browser.errors))


def main(folder: Path) -> None:
    sweep = folder / "outputs/sweeps/skips"
    write_example(sweep, os.getpid())
    words = [sys.executable, "-m", "fcnlab", "watch"]
    server = subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        address = next(word for word in server.stdout.readline().split() if word.startswith("http"))
        asyncio.run(take_screenshots(address, folder / "profile"))
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
            main(Path(name))
