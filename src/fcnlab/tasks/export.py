"""``fcnlab export``."""

import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fcnlab.comparison.formats import counted
from fcnlab.config.validation import ConfigError, validate_config
from fcnlab.errors import UserError
from fcnlab.files.writing import atomic_write, write_json
from fcnlab.messages import log_info, log_warning
from fcnlab.publication.card_records import CardRecords, card_records
from fcnlab.publication.export_facts import Stated, export_facts, stated_in
from fcnlab.publication.export_formats import FORMATS, Export, Format, Request, runner_of
from fcnlab.publication.exported_program import ImageSize
from fcnlab.publication.output_file import check_output_file
from fcnlab.publication.parity import Parity, images_to_compare, measure, sizes_to_compare, static_sizes
from fcnlab.runs.run_folder import RunFolder
from fcnlab.tasks.card import check_not_empty, model_of
from fcnlab.training.checkpoints import read_nets
from fcnlab.training.lineage import file_facts
from fcnlab.training.weights_file import read_facts

NAME = "model"  # of the file, in the output folder


def export(cfg: DictConfig, run: RunFolder) -> None:
    """Write the network of a checkpoint as a file for other programs, and check that it computes the same."""
    validate_config(cfg)
    check_not_empty(cfg, "license")
    format = FORMATS[cfg.format]
    path, is_named = _path(cfg, run, format), cfg.output is not None
    for each in (path, description_path(path)):
        check_output_file(each, cfg.overwrite, is_named)
    format.check_installed()
    _report_ineffective(cfg, format)
    folders = run.context.typed_folders
    (trained,) = read_nets(cfg.checkpoint, cfg.trust, folders)
    request = Request(trained, _static(cfg) if format.is_program else None, cfg.scores, list(cfg.trust), folders)
    _check_static(request)
    records, stated = card_records(trained, []), stated_in(read_facts(trained.path))
    _report_sources(cfg, records, stated)
    run.accept(cfg)
    began = time.monotonic()
    exported = format.export(request)
    facts = exported.facts | export_facts(
        model_of(trained, list(cfg.trust)),
        trained.net,
        trained.checkpoint["fcnlab"]["palette"],
        records,
        file_facts(trained.path),
        cfg.license,
        stated,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, keep_suffix=True) as part:
        exported.write(part, facts)
        seconds = time.monotonic() - began
        parity = _checked_parity(exported, request, part)
    measured = {"file": file_facts(path) | {"bytes": path.stat().st_size}, "seconds": round(seconds, 1)}
    write_json(description_path(path), measured | {"parity": _as_facts(parity)} | facts)
    log_info(f"Exported in {seconds:.0f} s: {path} ({path.stat().st_size / 1e6:.1f} MB). {_usable(exported, request)}")


def description_path(path: Path) -> Path:
    """Return the JSON file beside an exported file."""
    return path.with_name(f"{path.name}.json")


def _path(cfg: DictConfig, run: RunFolder, format: Format) -> Path:
    if cfg.output is None:
        return run.path / f"{NAME}{format.suffix}"
    path = Path(cfg.output)
    if path.suffix != format.suffix:
        raise ConfigError(f"output must end in {format.suffix} for format={cfg.format}, got {cfg.output}")
    return path


def _report_ineffective(cfg: DictConfig, format: Format) -> None:
    for name in ("static", "scores"):
        if cfg[name] and not format.is_program:
            log_warning(f"{name} has no effect with format={cfg.format}: it holds weights, and fcnlab runs them")


def _report_sources(cfg: DictConfig, records: CardRecords, stated: Stated) -> None:
    """Say which facts are those of an exported file that is exported again, and why there are no scores."""
    if cfg.license is None and stated.license:
        log_info(f"The licence is the one that {cfg.checkpoint} states: {stated.license}. license=TEXT sets another")
    if records.evaluations:
        return
    if stated.scores:
        log_info(f"The scores are those that {cfg.checkpoint} states, because {records.without_scores}")
    else:
        log_warning(f"the exported file has no scores: {records.without_scores}")


def _static(cfg: DictConfig) -> ImageSize | None:
    if cfg.static is None:
        return None
    rows, cols = map(int, cfg.static.split("x"))
    return rows, cols


def _check_static(request: Request) -> None:
    if request.static and min(request.static) < request.minimum:
        rows, cols = request.static
        raise ConfigError(
            f"static must have at least {request.minimum} pixels on each side, which this network needs, got"
            f" {rows}x{cols}"
        )


def _checked_parity(exported: Export, request: Request, path: Path) -> Parity | None:
    """Compare the written file with the checkpoint.

    Raises
    ------
    UserError
        It computes something else.
    """
    actual = exported.open(path)
    if actual is None:
        log_warning(
            "the file was not compared with the checkpoint, because onnxruntime is not installed: pip install"
            " 'fcnlab[export]'"
        )
        return None
    sizes = static_sizes(*request.static) if request.static else sizes_to_compare(exported.smallest)
    parity = measure(runner_of(request.trained), actual, images_to_compare(sizes))
    if not parity.is_good:
        raise UserError(
            f"the exported network computes something else than checkpoint={request.trained.path}, so no file was"
            f" written: {parity}. This is a bug of fcnlab or of a library: please report it"
        )
    log_info(f"Compared with the checkpoint: {parity}.")
    return parity


def _as_facts(parity: Parity | None) -> dict[str, Any] | None:
    return None if parity is None else parity._asdict() | {"tolerance": parity.tolerance}


def _usable(exported: Export, request: Request) -> str:
    if request.static:
        return f"It takes one RGB image of {request.static[0]}x{request.static[1]} pixels at a time"
    return f"It takes RGB images of at least {counted(exported.smallest, 'pixel')} on each side"
