"""``fcnlab eval``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.components import to_plain
from fcnlab.config.overrides import plain_overrides
from fcnlab.config.trust import DATA_COMPONENTS, check_components
from fcnlab.config.validation import ConfigError, check_requirements, validate_config
from fcnlab.evaluation.evaluation import describe_scores, evaluate_and_record, score_table
from fcnlab.evaluation.splits import check_classes, check_splits, required_image_size, warn_about_fewer_workers
from fcnlab.files.reading import read_json_facts, read_yaml
from fcnlab.messages import log_info, log_warning
from fcnlab.metrics.conventions import Convention, all_conventions, as_facts, conventions_table
from fcnlab.metrics.scores import SCORES, Scores
from fcnlab.runs.origins import nested_map
from fcnlab.runs.provenance import commit
from fcnlab.runs.run_folder import RunFolder
from fcnlab.runs.run_record import recorded_config
from fcnlab.runs.score_record import add_to_record
from fcnlab.runs.selection import Facts, recorded_selection
from fcnlab.runs.source_fingerprint import source_fingerprints
from fcnlab.signals import StopSignals
from fcnlab.training.callbacks import GracefulStop, SampleImages
from fcnlab.training.checkpoints import read_checkpoint, rebuild_model, selection_of
from fcnlab.training.components import open_data
from fcnlab.training.hardware import check_machine
from fcnlab.training.ineffective_settings import ineffective_in_scoring
from fcnlab.training.lineage import file_facts, starting_weights, training_of_checkpoint
from fcnlab.training.loggers import open_loggers
from fcnlab.training.segmenter import Segmenter
from fcnlab.training.speed import evaluation_speed
from fcnlab.training.trainer import build_inference, build_trainer


def evaluate(cfg: DictConfig, run: RunFolder) -> float | None:
    """Score a checkpoint, or a model with its own weights, on the test list of the data."""
    folder = run.path
    check_requirements(cfg, plain_overrides(HydraConfig.get().overrides.task))
    _check_what_is_asked(cfg)  # first: without data, model.num_classes cannot be computed
    validate_config(cfg)
    check_machine(cfg)
    for sentence in ineffective_in_scoring("eval"):
        log_warning(sentence)
    inference, postprocess = build_inference(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    if cfg.checkpoint is None:
        net, classes, selected, its_model = instantiate(cfg.model, _convert_="all"), None, None, None
        trained, weights = None, starting_weights({"model": to_plain(cfg.model)})
    else:
        checkpoint = read_checkpoint(cfg.checkpoint)
        its_model = checkpoint["fcnlab"]["model"]
        net = rebuild_model(checkpoint, f"checkpoint={cfg.checkpoint}", cfg.trust)
        classes, selected = checkpoint["fcnlab"]["classes"], selection_in_run(checkpoint, Path(cfg.checkpoint))
        trained = training_of_checkpoint(checkpoint, Path(cfg.checkpoint))
        weights = {"checkpoint": file_facts(Path(cfg.checkpoint))}
    data_config = cfg.data if cfg.data is not None else recorded_data(cfg)
    began = {
        "commit": commit(),
        "source": source_fingerprints(to_plain(cfg), {"model": its_model, "data": to_plain(data_config)}),
    }
    data = open_data(data_config, named_by_record=cfg.data is None or cfg.sweep.recorded)
    check_splits(data, "test", min_size=required_image_size(inference, net))
    check_classes(classes, data)
    speed = evaluation_speed(cfg, net)
    segmenter = Segmenter(net, data.split("test").classes, inference=inference, postprocess=postprocess, **speed)
    signals = StopSignals()
    trainer = build_trainer(cfg, False, [SampleImages(folder / "predictions", cfg.num_images), GracefulStop(signals)])
    warn_about_fewer_workers(data, "test", processes=trainer.num_devices)
    with signals, open_loggers(cfg) as loggers, signals.reraise_as_interrupted():
        run.accept(cfg)
        trainer.loggers = loggers
        origin = {"trained": trained, "weights": weights}
        scored = evaluate_and_record(trainer, segmenter, data, folder, cfg.seed, began, selected=selected, **origin)
    if scored is None:
        return None
    found = scored.scores
    log_info(score_table(found, data.split("test").classes))
    if cfg.published is not None:
        add_to_record(folder, published=to_plain(cfg.published))
        log_info(beside_published(found, cfg.published))
    if cfg.conventions:
        log_info(conventions_table(add_conventions(folder)))
    log_info(f"{describe_scores(scored, segmenter.scored_as, data)} The record: {folder}")
    return found.miou


def selection_in_run(checkpoint: dict[str, Any], path: Path) -> Facts | None:
    """How a checkpoint was selected; the record of its run, where it is still there, knows of later validations."""
    selected = selection_of(checkpoint)
    if selected is None:
        return None
    recorded = (
        recorded_selection(read_json_facts(path.absolute().parent.parent, "metrics.json"))
        if selected["monitor"]
        else None
    )
    among = max(selected["among"], recorded["among"] if recorded else 0)
    own = {key: value for key, value in selected.items() if key != "val_miou"}
    return {**own, "among": among, "at_least": bool(selected["monitor"]) and recorded is None}


def _check_what_is_asked(cfg: DictConfig) -> None:
    if cfg.checkpoint is None and cfg.model is None:
        raise ConfigError("nothing to score: give checkpoint=PATH, or model=... model.weights=PATH data=...")
    if cfg.checkpoint is not None and cfg.model is not None:
        raise ConfigError(
            "model=... has no effect with checkpoint=PATH, which brings its own network: give one of them"
        )
    if cfg.checkpoint is None and cfg.data is None:
        raise ConfigError("no data to score on: give data=... (without it, eval takes the data of checkpoint='s run)")
    unknown = set(cfg.published or ()) - set(SCORES)
    if unknown:
        raise ConfigError(f"published names {', '.join(sorted(unknown))}: there are {', '.join(SCORES)}")


def beside_published(found: Scores, published: Mapping[str, float]) -> str:
    """What was measured beside what was published, in percent."""
    rows = [f"  {'':<9}  measured  published  difference"]
    for name, value in published.items():
        measured = 100 * getattr(found, name)
        rows.append(f"  {name:<9}  {measured:8.2f}  {value:9.2f}  {measured - value:+10.2f}")
    return "\n".join(rows)


def add_conventions(folder: Path) -> list[Convention]:
    """Score the matrices of the record under other conventions too, and say so in the record."""
    with np.load(folder / "confusions.npz") as confusions:
        conventions = all_conventions(confusions["matrices"])
    add_to_record(folder, conventions=as_facts(conventions))
    return conventions


def recorded_data(cfg: DictConfig) -> DictConfig:
    """The data config of the checkpoint's own run: of its config.yaml, where every value stands as it was.

    Raises
    ------
    UserError
        The checkpoint lies in no run's folder; the record names anything but data of fcnlab's kinds.
    """
    record = Path(cfg.checkpoint).absolute().parent.parent / "config.yaml"
    if not record.is_file():
        raise ConfigError(f"checkpoint={cfg.checkpoint} lies in no run's folder ({record} is missing): give data=...")
    found = recorded_config(record.parent, f"checkpoint={cfg.checkpoint}", record.name)
    tree = OmegaConf.to_container(found, resolve=False)
    data = tree.get("data") if isinstance(tree, dict) else None
    if not isinstance(data, dict):
        raise ConfigError(f"checkpoint={cfg.checkpoint}: {record} names no data: give data=...")
    check_components(data, DATA_COMPONENTS, cfg.trust, str(record))
    data |= _root_then(record.parent, data)
    recorded = OmegaConf.create({"data": data})
    validate_config(recorded)
    return recorded.data


def _root_then(run: Path, data: Mapping[str, Any]) -> dict[str, str]:
    """Where a relative ``data.root`` of a run led when it was typed, if something is still there.

    In the folder of today's command may lie other data under the same name.
    """
    root = data.get("root")
    try:
        cwd = nested_map(nested_map(read_yaml(run, ".hydra/hydra.yaml"), "hydra"), "runtime").get("cwd")
        found = isinstance(root, str) and isinstance(cwd, str) and Path(cwd, root).is_dir()
    except (OSError, ValueError):  # a record that is damaged does not tell
        return {}
    return {"root": str(Path(str(cwd), str(root)))} if found else {}
