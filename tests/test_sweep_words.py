"""What is typed after ``-m`` and what each job gets: the words of single runs, with processes that do nothing."""

import json
import re
from pathlib import Path

import pytest

from fcnlab.launching import launchers

QUICK = ("trainer=smoke", "logger=none", "data.root=.")


class Ended:
    """A job's process that has done its work at once."""

    def poll(self) -> int:
        return 0

    def is_left(self) -> bool:
        return False

    def kill_all(self) -> None: ...


@pytest.fixture
def sweep(fcnlab, monkeypatch, tmp_path, capfd):
    """``fcnlab VERB -m WORDS`` in the folder s: the words of each job's process, or what was said instead."""
    monkeypatch.setattr("fcnlab.launching.sweeping.LOOK_EVERY", 0.0)

    def run(*words: str, verb: str = "train", fixed: tuple[str, ...] = QUICK) -> list[list[str]] | str:
        started: list[list[str]] = []

        def start(verb, words, config_dir, environment, log, held=()):
            started.append(list(words))
            return Ended()

        monkeypatch.setattr(launchers, "start", start)
        code = fcnlab(verb, "-m", *fixed, *words, "hydra.sweep.dir=s")
        said = capfd.readouterr().err
        assert code == 0 or "Traceback" not in said, said
        return started if code == 0 else said

    return run


def of_job(words: list[str]) -> list[str]:
    """A job's words but for those that all have, and those that make it a job."""
    return [word for word in words if word not in QUICK and not word.startswith(("sweep.", "hydra."))]


def sweep_record(folder: Path) -> dict:
    return json.loads((folder / "s" / "sweep.json").read_text())


# --- as typed


def test_interpolations_travel_as_typed(sweep, tmp_path, monkeypatch):
    """Each job looks them up itself: here would be the first seed's weights, and this machine's folders."""
    monkeypatch.setenv("SCRATCH", "/here")
    words = ['model.weights="D/fcn8s_seed${seed}.ckpt"', "seed=1,2", "data.cache_dir='${oc.env:SCRATCH}/c'"]
    jobs = sweep(*words)
    assert [of_job(job) for job in jobs] == [[words[0], f"seed={seed}", words[2]] for seed in (1, 2)]
    record = sweep_record(tmp_path)
    assert record["overrides"] == [*QUICK, *words]
    assert [of_job(job["overrides"]) for job in record["jobs"]] == [of_job(job) for job in jobs]
    (tmp_path / "s" / "0").mkdir(exist_ok=True)
    assert len(sweep(*words, "sweep.resume=s")) == 2  # the same sweep


def test_a_jobs_number_may_be_its_seed_and_its_folder(sweep):
    jobs = sweep("seed=${hydra:job.num}", "optim.lr=0.1,0.2", "hydra.sweep.subdir='${hydra:job.num}-${optim.lr}'")
    assert [of_job(job) for job in jobs] == [["seed=${hydra:job.num}", f"optim.lr={rate}"] for rate in (0.1, 0.2)]
    for number, job in enumerate(jobs):
        assert f"hydra.job.num={number}" in job
        assert next(word for word in job if word.startswith("hydra.run.dir=")).endswith(f"/s/{number}-{0.1 + number / 10}")


def test_no_code_reads_overrides_but_as_typed(repository):
    """A list of them, iterated, has its interpolations resolved: by another run's settings, or not at all."""
    lines = [line for path in (repository / "src").rglob("*.py") for line in path.read_text().splitlines()]
    read = [line.strip() for line in lines if re.search(r"overrides\.(task|hydra)\b", line)]
    assert len(read) > 10 and not [line for line in read if not re.search(r"as_typed\(|to_yaml\(|``", line)]
