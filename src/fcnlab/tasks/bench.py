"""``fcnlab bench``. Nothing here imports torch: each claim is a script, and a process of its own."""

import ast
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fcnlab.config.locations import package_data_folder
from fcnlab.config.overrides import plain_overrides, shell_join
from fcnlab.config.validation import ConfigError, validate_config
from fcnlab.cores import visible_cores
from fcnlab.data.checks.report import markdown_columns, text_columns
from fcnlab.errors import UserError
from fcnlab.files.writing import atomic_write, write_json
from fcnlab.runs.run_folder import RunFolder
from fcnlab.sweeps.processes import start_process

log = logging.getLogger("fcnlab")
BENCHMARKS = package_data_folder("benchmarks")
DEVICES = ("auto", "cpu", "cuda")
THREADS = 2  # what is asked of every machine: with one, all claims together take over 15 minutes

Results = dict[str, dict[str, Any]]  # what each claim's script wrote, by its name


def bench(cfg: DictConfig, run_folder: RunFolder) -> None:
    """Measure some claims, one after the other; leave bench.json, bench.md and a file for each in the run's folder.

    Raises
    ------
    UserError
        A claim's script failed. What this machine cannot measure is said, and is no failure.
    """
    validate_config(cfg)
    known = claims(BENCHMARKS)
    asked = chosen(cfg, known)
    run_folder.accept(cfg)
    folder = run_folder.path
    failed, results = [], {}
    for name in asked:
        log.info("%s: %s", name, known[name])
        path = folder / f"{name}.json"
        if run([str(BENCHMARKS / f"{name}.py"), *options(cfg), "--json", str(path)]) or not path.is_file():
            failed.append(name)
        else:
            results[name] = json.loads(path.read_text())
    write(folder, results)
    log.info("\n%s\n%s\nThe numbers: %s", text_columns(*table(results)), "\n".join(missing(results)), folder)
    if failed:
        raise UserError(
            f"failed: {', '.join(failed)}. What was printed above says why; what else was asked for is there."
        )


def claims(folder: Path) -> dict[str, str]:
    """What each claim's script says of itself, by name: a script with a ``main`` is one, the others help them."""
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.py"))}
    return {
        name: (ast.get_docstring(tree) or name).splitlines()[0]
        for name, tree in trees.items()
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
    }


def chosen(cfg: DictConfig, known: Mapping[str, str]) -> list[str]:
    """The claims that are asked for, all by default.

    Raises
    ------
    ConfigError
        There is no such claim, device or number of cores.
    """
    asked = list(known if cfg.claims is None else cfg.claims)
    unknown = [name for name in asked if name not in known]
    if unknown:
        there_are = "\n".join(f"  {name}: {about}" for name, about in known.items())
        raise ConfigError(f"claims={','.join(unknown)}: no such claim. There are\n{there_are}")
    if cfg.device not in DEVICES:
        raise ConfigError(f"device={cfg.device}: choose {', '.join(DEVICES)}")
    if cfg.threads is not None and not 1 <= cfg.threads <= visible_cores():
        raise ConfigError(f"threads={cfg.threads}: choose 1 to {visible_cores()}, the cores that there are")
    return asked


def options(cfg: DictConfig) -> list[str]:
    """What every claim's script takes."""
    threads = cfg.threads or min(THREADS, visible_cores())
    return ["--threads", str(threads), "--device", cfg.device]


def run(words: Sequence[str]) -> int:
    """A script as a process that says what it says here; it ends when this one does."""
    started = start_process([sys.executable, *words], environment=None, log=None, held=())
    try:
        return started.wait()
    finally:
        started.kill_all()


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """A header and a row for each ratio; 1.00 is what the others are compared with."""
    rows = []
    for name, result in results.items():
        for variant, row in result["found"].items():
            quartiles = f"{row['ratio_q25']:.2f} to {row['ratio_q75']:.2f}" if "ratio_q25" in row else "counted"
            rows.append([f"{name}: {variant}", f"{row['ratio']:.2f}", quartiles, result["against"]])
    return ["", "median", "quartiles", ""], rows


def missing(results: Results) -> list[str]:
    """What this machine could not measure, in a line each."""
    return [f"{name}: not measured: {said}" for name, result in results.items() for said in result["not_measured"]]


def write(folder: Path, results: Results) -> None:
    """``bench.json`` for programs, ``bench.md`` for people."""
    command = shell_join(["fcnlab", "bench", *plain_overrides(HydraConfig.get().overrides.task)])
    write_json(folder / "bench.json", {"command": command, "claims": results})
    facts = {key: value for result in results.values() for key, value in result["environment"].items()}
    parts = [
        f"# {command}\n",
        ", ".join(f"{key} {value}" for key, value in facts.items()) + "\n",
        markdown_columns(*table(results)),
        "\n\n".join(missing(results)) + "\n",
    ]
    with atomic_write(folder / "bench.md") as part:
        part.write_text("\n".join(parts), encoding="utf-8", errors="replace")
