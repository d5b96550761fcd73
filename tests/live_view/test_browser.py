"""The page of the live view in headless Chromium (Debian)."""

import asyncio
import os
import platform
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcnlab.live_view.monitor import Monitor
from fcnlab.live_view.server import serve
from fcnlab.sweeps.manifest import Job, Manifest
from run_folders import toy_matrices

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium: apt-get install chromium"),
]
HOSTILE = "<img src=x onerror=document.title='hit'>"
SCRIPT = Path(__file__).parents[2] / "docs/scripts/watch_screenshots.py"


@pytest.fixture
def sweep_folder(make_run, tmp_path):
    """Write a sweep of three finished runs and a running one, with a name and a log that are HTML."""
    folders = [make_run(f"s/{number}", toy_matrices(0.6 + number / 10)) for number in range(3)]
    folders.append(make_run("s/3", status="running", settings={"trainer.max_steps": 80}))
    claim = f"{os.getpid()} on {platform.node()}"
    (folders[3] / ".lock").write_text(claim)
    (folders[3] / "train.log").write_text(f"{HOSTILE}\nlast line\n")
    (folders[3] / "predictions").mkdir()
    Image.fromarray(np.zeros((20, 60, 3), np.uint8)).save(folders[3] / "predictions" / "x.png")
    names = ["b", "a", "c", HOSTILE]
    jobs = {
        number: Job(number, str(number), [], name, "running" if number == 3 else "finished")
        for number, name in enumerate(names)
    }
    Manifest(tmp_path / "runs" / "s", "train", [], jobs=jobs).write()
    (tmp_path / "runs" / "s" / ".lock").write_text(claim)
    return tmp_path / "runs" / "s"


def test_the_page(sweep_folder, tmp_path):
    """It shows, sorts, filters and follows the runs, fits 400 pixels, and shows text from files as text."""
    names = "[...document.querySelectorAll('#table tbody button')].map((each) => each.textContent)"
    found: dict = {}

    async def look(browser, address: str) -> None:
        await browser.open(address, 400, 800, False, "document.querySelectorAll('#chart-miou .line').length == 4")
        found["names"] = await browser.evaluate(names)
        found["width"] = await browser.evaluate("document.documentElement.scrollWidth")
        found["best"] = await browser.evaluate("document.getElementById('answers').textContent")
        await browser.evaluate("document.querySelector('#table thead button').click()")
        found["sorted"] = await browser.evaluate(names)
        filtering = "{ const filter = document.getElementById('filter'); filter.value = 'running';"
        await browser.evaluate(filtering + " filter.dispatchEvent(new Event('input')); }")
        found["filtered"] = await browser.evaluate(names)
        await browser.evaluate("document.querySelector('#table tbody button').focus()")
        await browser.evaluate("document.activeElement.click()")
        await browser.wait("document.querySelector('#images img')?.naturalWidth == 60")
        found["log"] = await browser.evaluate("document.getElementById('log').textContent")
        with (sweep_folder / "3" / "metrics.csv").open("a") as file:
            file.write("60,1,0.25,0.875\n")
        await browser.wait("document.querySelector('#table tbody tr').textContent.includes('87.50 at 60')")
        await browser.wait("document.getElementById('answers').textContent.includes('87.50\\u00a0% validation mIoU')")
        found["focus"] = await browser.evaluate("document.activeElement.textContent")
        await browser.evaluate("document.getElementById('theme').click()")
        found["theme"] = await browser.evaluate("document.getElementById('theme').textContent")
        found["title"] = await browser.evaluate("document.title")
        found["errors"] = browser.errors

    async def run() -> None:
        started: asyncio.Future = asyncio.get_running_loop().create_future()
        server = asyncio.create_task(serve(Monitor([sweep_folder.parent]), 0, started.set_result))
        async with runpy.run_path(str(SCRIPT))["Browser"](tmp_path / "profile") as browser:
            await asyncio.wait_for(look(browser, await started), 120)
        server.cancel()
        await asyncio.gather(server, return_exceptions=True)

    asyncio.run(run())
    assert found["names"] == ["b", "a", "c", HOSTILE] and found["sorted"] == sorted(
        found["names"], key=lambda name: "<abc".index(name[0])
    )
    assert found["filtered"] == [HOSTILE] and found["focus"] == HOSTILE
    assert found["width"] == 400 and found["errors"] == [] and found["log"] == f"{HOSTILE}\nlast line"
    assert "validation mIoU at step 40, the highest of 4 runs" in found["best"].replace("\xa0", " ")
    assert found["title"] == "1 running: fcnlab watch" and found["theme"] == "Theme: light"
