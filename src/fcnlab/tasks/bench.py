"""``fcnlab bench``: run benchmarks. This does not import torch: each benchmark is a script in its own process."""

import ast
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fcnlab.config.locations import package_data_folder
from fcnlab.config.validation import ConfigError, validate_config
from fcnlab.cores import visible_cores
from fcnlab.data.checks.report import markdown_columns, text_columns
from fcnlab.errors import UserError
from fcnlab.files.writing import atomic_write, write_json
from fcnlab.runs.provenance import command
from fcnlab.runs.run_folder import RunFolder
from fcnlab.sweeps.processes import start_process

log = logging.getLogger("fcnlab")
BENCHMARKS = package_data_folder("benchmarks")
DEVICES = ("auto", "cpu", "cuda")
THREADS = 2  # with one thread, all benchmarks together take over 15 minutes

Results = dict[str, dict[str, Any]]  # the output of each benchmark's script, by its name


def bench(cfg: DictConfig, run_folder: RunFolder) -> None:
    """Run the chosen benchmarks in turn, and write bench.json, bench.md and a file for each to the run's folder.

    Raises
    ------
    UserError
        A benchmark's script failed. A benchmark that this machine cannot run is reported, and is not a failure.
    """
    validate_config(cfg)
    known = describe_benchmarks(BENCHMARKS)
    selected = chosen(cfg, known)
    run_folder.accept(cfg)
    folder = run_folder.path
    failed, results = [], {}
    for name in selected:
        log.info("%s: %s", name, known[name])
        path = folder / f"{name}.json"
        if run([str(BENCHMARKS / f"{name}.py"), *options(cfg), "--json", str(path)]) or not path.is_file():
            failed.append(name)
        else:
            results[name] = json.loads(path.read_text())
    write(folder, results, command(run_folder.context))
    log.info("\n%s\n%s\nResults: %s", text_columns(*table(results)), "\n".join(missing(results)), folder)
    if failed:
        raise UserError(
            f"failed: {', '.join(failed)}. Their output above contains the errors; other results are saved."
        )


def describe_benchmarks(folder: Path) -> dict[str, str]:
    """Return the description of each benchmark's script, by name; scripts without a ``main`` are helper modules."""
    trees = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.py"))}
    return {
        name: (ast.get_docstring(tree) or name).splitlines()[0]
        for name, tree in trees.items()
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)
    }


def chosen(cfg: DictConfig, known: Mapping[str, str]) -> list[str]:
    """Return the names of the chosen benchmarks, all by default.

    Raises
    ------
    ConfigError
        A benchmark, the device or the number of threads is invalid.
    """
    selected = list(known if cfg.benchmarks is None else cfg.benchmarks)
    unknown = [name for name in selected if name not in known]
    if unknown:
        available = "\n".join(f"  {name}: {about}" for name, about in known.items())
        raise ConfigError(f"benchmarks={','.join(unknown)}: unknown benchmark. Available benchmarks:\n{available}")
    if cfg.device not in DEVICES:
        raise ConfigError(f"device={cfg.device} is not valid: choose {', '.join(DEVICES)}")
    if cfg.threads is not None and not 1 <= cfg.threads <= visible_cores():
        raise ConfigError(f"threads={cfg.threads} is not valid: choose 1 to {visible_cores()}, the available cores")
    return selected


def options(cfg: DictConfig) -> list[str]:
    """Return the options of every benchmark's script."""
    threads = cfg.threads or min(THREADS, visible_cores())
    return ["--threads", str(threads), "--device", cfg.device]


def run(arguments: Sequence[str]) -> int:
    """Run a script as a process with the output shown here, and return its exit code; it ends with this process."""
    process = start_process([sys.executable, *arguments], environment=None, log=None, held=())
    try:
        return process.wait()
    finally:
        process.kill_all()


def table(results: Results) -> tuple[list[str], list[list[str]]]:
    """Return a header and a row for each ratio; the reference has 1.00."""
    rows = []
    for name, result in results.items():
        for variant, row in result["found"].items():
            quartiles = f"{row['ratio_q25']:.2f} to {row['ratio_q75']:.2f}" if "ratio_q25" in row else "counted"
            rows.append([f"{name}: {variant}", f"{row['ratio']:.2f}", quartiles, result["against"]])
    return ["", "median", "quartiles", ""], rows


def missing(results: Results) -> list[str]:
    """Return a line for each variant that this machine could not measure."""
    return [f"{name}: not measured: {why}" for name, result in results.items() for why in result["not_measured"]]


def write(folder: Path, results: Results, command: str) -> None:
    """Write ``bench.json`` and ``bench.md``."""
    write_json(folder / "bench.json", {"command": command, "benchmarks": results})
    facts = {key: value for result in results.values() for key, value in result["environment"].items()}
    parts = [
        f"# {command}\n",
        ", ".join(f"{key} {value}" for key, value in facts.items()) + "\n",
        markdown_columns(*table(results)),
        "\n\n".join(missing(results)) + "\n",
    ]
    with atomic_write(folder / "bench.md") as part:
        part.write_text("\n".join(parts), encoding="utf-8", errors="replace")
