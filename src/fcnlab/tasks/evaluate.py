"""``fcnlab eval``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.components import to_plain
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
    """Evaluate a checkpoint, or a model with its own weights, on the test list of the data.

    Return the mIoU on rank 0, None on other ranks.
    """
    folder = run.path
    check_requirements(cfg, run.context.overrides)
    _check_settings(cfg)  # first: without data, model.num_classes cannot be computed
    validate_config(cfg)
    check_machine(cfg, run.context)
    for message in ineffective_in_scoring(run.context):
        log_warning(message)
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
    data = open_data(data_config, cfg.data is None or cfg.sweep.recorded, folder)
    check_splits(data, "test", min_size=required_image_size(inference, net))
    check_classes(classes, data)
    speed = evaluation_speed(cfg, net)
    segmenter = Segmenter(net, data.split("test").classes, inference=inference, postprocess=postprocess, **speed)
    signals = StopSignals()
    drawing = SampleImages(folder / "predictions", cfg.num_images)
    trainer = build_trainer(cfg, folder, False, [drawing, GracefulStop(signals)])
    warn_about_fewer_workers(data, "test", processes=trainer.num_devices)
    with signals, open_loggers(cfg, run.context) as loggers, signals.reraise_as_interrupted():
        run.accept(cfg)
        trainer.loggers = loggers
        origin = {"trained": trained, "weights": weights}
        scored = evaluate_and_record(
            trainer,
            segmenter,
            data,
            run.context,
            cfg.seed,
            began,
            cfg.evaluation.keep_predictions,
            selected=selected,
            **origin,
        )
    if scored is None:
        return None
    scores = scored.scores
    log_info(score_table(scores, data.split("test").classes))
    if cfg.published is not None:
        add_to_record(folder, published=to_plain(cfg.published))
        log_info(compare_with_published(scores, cfg.published))
    if cfg.conventions:
        log_info(conventions_table(add_conventions(folder)))
    log_info(f"{describe_scores(scored, segmenter.scored_as, data)} Record: {folder}")
    return scores.miou


def selection_in_run(checkpoint: dict[str, Any], path: Path) -> Facts | None:
    """Return how a checkpoint was selected; the record of its run, if present, counts later validations, too."""
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


def _check_settings(cfg: DictConfig) -> None:
    if cfg.checkpoint is None and cfg.model is None:
        raise ConfigError("nothing to evaluate: set checkpoint=PATH, or model=... model.weights=PATH data=...")
    if cfg.checkpoint is not None and cfg.model is not None:
        raise ConfigError(
            "model=... has no effect with checkpoint=PATH, which contains its own model: set only one of them"
        )
    if cfg.checkpoint is None and cfg.data is None:
        raise ConfigError(
            "no data to evaluate on: set data=... (only with checkpoint=PATH, the default is the data of its run)"
        )
    unknown = set(cfg.published or ()) - set(SCORES)
    if unknown:
        raise ConfigError(
            f"published contains unknown scores {', '.join(sorted(unknown))}: choose from {', '.join(SCORES)}"
        )


def compare_with_published(scores: Scores, published: Mapping[str, float]) -> str:
    """Format measured and published scores, in percent."""
    rows = [f"  {'':<9}  measured  published  difference"]
    for name, value in published.items():
        measured = 100 * getattr(scores, name)
        rows.append(f"  {name:<9}  {measured:8.2f}  {value:9.2f}  {measured - value:+10.2f}")
    return "\n".join(rows)


def add_conventions(folder: Path) -> list[Convention]:
    """Score the recorded matrices under all metric conventions, and add the scores to the record."""
    with np.load(folder / "confusions.npz") as confusions:
        conventions = all_conventions(confusions["matrices"])
    add_to_record(folder, conventions=as_facts(conventions))
    return conventions


def recorded_data(cfg: DictConfig) -> DictConfig:
    """Return the data config of the checkpoint's run, from its config.yaml with resolved values.

    Raises
    ------
    UserError
        The checkpoint is not in the folder of a run, or the record's data are not one of fcnlab's data sets.
    """
    record = Path(cfg.checkpoint).absolute().parent.parent / "config.yaml"
    if not record.is_file():
        raise ConfigError(
            f"checkpoint={cfg.checkpoint} is not in the folder of a run ({record} is missing): set data=..."
        )
    config = recorded_config(record.parent, f"checkpoint={cfg.checkpoint}", record.name)
    tree = OmegaConf.to_container(config, resolve=False)
    data = tree.get("data") if isinstance(tree, dict) else None
    if not isinstance(data, dict):
        raise ConfigError(f"checkpoint={cfg.checkpoint}: {record} contains no data config: set data=...")
    check_components(data, DATA_COMPONENTS, cfg.trust, str(record))
    data |= _original_root(record.parent, data)
    recorded = OmegaConf.create({"data": data})
    validate_config(recorded)
    return recorded.data


def _original_root(run: Path, data: Mapping[str, Any]) -> dict[str, str]:
    """Return a run's relative ``data.root`` as an absolute path, if that folder still exists.

    Relative to the present working directory, there may be other data under the same name.
    """
    root = data.get("root")
    try:
        cwd = nested_map(nested_map(read_yaml(run, ".hydra/hydra.yaml"), "hydra"), "runtime").get("cwd")
        exists = isinstance(root, str) and isinstance(cwd, str) and Path(cwd, root).is_dir()
    except (OSError, ValueError):  # a damaged record
        return {}
    return {"root": str(Path(str(cwd), str(root)))} if exists else {}
