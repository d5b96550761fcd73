"""``fcnlab eval``."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from fcnlab.config.components import Settings, leaves_of, to_plain
from fcnlab.config.trust import DATA_COMPONENTS, check_components
from fcnlab.config.validation import ConfigError, check_requirements, validate_config
from fcnlab.data import DataModule
from fcnlab.data.formats.voc import LIST_SUFFIX
from fcnlab.evaluation.evaluation import describe_scores, evaluate_and_record, score_table
from fcnlab.evaluation.splits import check_classes, check_splits, required_image_size, warn_about_fewer_workers
from fcnlab.files.reading import read_json_facts, read_yaml
from fcnlab.messages import log_info, log_warning
from fcnlab.metrics.conventions import Convention, all_conventions, as_facts, conventions_table
from fcnlab.metrics.scores import SCORES, Scores
from fcnlab.runs.lineage import FOLD, absolute, from_facts, has_folds, may_share_list
from fcnlab.runs.origins import nested_map, scored_data
from fcnlab.runs.provenance import commit
from fcnlab.runs.run_folder import RunFolder
from fcnlab.runs.run_record import recorded_config
from fcnlab.runs.score_record import add_to_record
from fcnlab.runs.selection import Facts, recorded_selection, selection_of_ensemble
from fcnlab.runs.settings import differences, is_free, shown_changes
from fcnlab.runs.source_fingerprint import source_fingerprints
from fcnlab.signals import StopSignals
from fcnlab.tracking.artifacts import use_checkpoint, use_data
from fcnlab.tracking.links import TrackedRun, add_links, recorded_run, scored_runs, tracked_run
from fcnlab.training.callbacks import GracefulStop, SampleImages
from fcnlab.training.checkpoints import TrainedNet, read_nets, selection_of
from fcnlab.training.components import build_network, open_data
from fcnlab.training.hardware import check_machine
from fcnlab.training.ineffective_settings import ineffective_in_scoring, ineffective_of_wandb
from fcnlab.training.lineage import file_facts, starting_weights, trained_of, training_of_checkpoint
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
    for message in chain(ineffective_in_scoring(run.context), ineffective_of_wandb(cfg, run.context)):
        log_warning(message)
    inference, postprocess = build_inference(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    trained_nets = [] if cfg.checkpoint is None else read_nets(to_plain(cfg)["checkpoint"], cfg.trust)
    nets = [each.net for each in trained_nets] or [build_network(cfg.model)]
    classes = trained_nets[0].classes if trained_nets else None
    data_config = cfg.data if cfg.data is not None else common_data([each.path for each in trained_nets], cfg.trust)
    models = [{"model": each.checkpoint["fcnlab"]["model"]} for each in trained_nets]
    began = {
        "commit": commit(),
        "source": source_fingerprints(to_plain(cfg), {"data": to_plain(data_config)}, *models),
    }
    data = open_data(data_config, cfg.data is None or cfg.sweep.recorded, folder)
    for each in trained_nets:
        check_fold(each, data_config, data)
    check_splits(data, "test", min_size=required_image_size(inference, *nets))
    check_classes(classes, data)
    segmenter = Segmenter(
        nets[0],
        data.split("test").classes,
        inference=inference,
        postprocess=postprocess,
        ensemble=nets[1:],
        **evaluation_speed(cfg, nets[0]),
    )
    signals = StopSignals()
    drawing = SampleImages(folder / "predictions", cfg.num_images)
    trainer = build_trainer(cfg, folder, False, [drawing, GracefulStop(signals)])
    warn_about_fewer_workers(data, "test", processes=trainer.num_devices)
    tracked = tracked_runs(trained_nets)
    with (
        signals,
        open_loggers(cfg, run.context, scored=list(tracked.values())) as loggers,
        signals.reraise_as_interrupted(),
    ):
        run.accept(cfg)
        trainer.loggers = loggers
        log_inputs(loggers, trained_nets, data)
        selected, origin = selection_in_runs(trained_nets, data), origin_of(cfg, trained_nets)
        scored = evaluate_and_record(
            trainer,
            segmenter,
            data,
            run.context,
            cfg.seed,
            began,
            cfg.evaluation.keep_predictions,
            selected=selected,
            wandb_run=tracked_run(loggers),
            **origin,
        )
        add_links(loggers, tracked)
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


def trained_by(net: TrainedNet) -> Mapping[str, Any]:
    """Return a checkpoint's description of its training run."""
    return nested_map(net.checkpoint["fcnlab"], "trained")


def tracked_runs(nets: Sequence[TrainedNet]) -> dict[str, TrackedRun]:
    """Return the training runs of checkpoints that are in W&B, by the ids of their records."""
    return scored_runs(trained_by(each) for each in nets)


def log_inputs(loggers: Sequence[Logger], nets: Sequence[TrainedNet], data: DataModule) -> None:
    """Log the scored checkpoints and the data as inputs of the evaluation in W&B."""
    for each in nets:
        use_checkpoint(loggers, each.file, recorded_run(trained_by(each).get("wandb_run")))
    use_data(loggers, data, "test")


def origin_of(cfg: DictConfig, nets: Sequence[TrainedNet]) -> dict[str, Any]:
    """Return the training runs and the files of the evaluated weights, for the record.

    An ensemble has no training run of its own: "ensemble" lists those of its networks.
    """
    if not nets:
        return {"trained": None, "weights": starting_weights({"model": to_plain(cfg.model)})}
    origins = [
        {
            "trained": training_of_checkpoint(each.checkpoint, each.path),
            "weights": {"checkpoint": file_facts(each.path) | dict(each.file.artifact or {})},
        }
        for each in nets
    ]
    return origins[0] if len(origins) == 1 else {"trained": None, "weights": None, "ensemble": origins}


def selection_in_runs(nets: Sequence[TrainedNet], data: DataModule) -> Facts | None:
    """Return how the evaluated checkpoint was selected, or of an ensemble's, the one with the most optimistic score."""
    selections = [selection_in_run(each.checkpoint, each.path) for each in nets]
    return (
        selections[0] if len(selections) == 1 else selection_of_ensemble(selections, lambda: data.fingerprints("test"))
    )


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


def check_fold(net: TrainedNet, data: DictConfig, opened: DataModule) -> None:
    """Check that a fold of a cross-validation is not scored by a network that has trained on its images.

    Raises
    ------
    ConfigError
        The network's run held out another fold of the same list, or no fold.
    """
    training = from_facts(trained_of(net.checkpoint))
    if training is None or data.get("folds") is None or data.get("test_list") or data.get("allow_overlap"):
        return
    recorded, present = training.settings, leaves_of(to_plain(data), "data")
    if not may_share_list(training, present, absolute(data.get("root"), None), len(opened.whole("val"))):
        return
    if not has_folds(recorded):
        raise ConfigError(
            f"checkpoint={net.path} has trained on data.train_list={data.train_list} without data.folds, so also on the"
            f" images of fold {data.fold} of {data.folds}. Leave data.folds and data.fold out, or set data.test_list,"
            " or checkpoint= of a run with these folds"
        )
    keys = ("data.folds", "data.fold", "data.fold_group", "data.stratify")
    if any(recorded.get(key) != present.get(key) for key in keys):
        raise ConfigError(
            f"checkpoint={net.path} held out fold {recorded.get('data.fold')} of {recorded.get('data.folds')}, so it"
            f" has trained on images of fold {data.fold} of {data.folds}. Leave data= out to score it on its own fold,"
            " or set data.test_list"
        )


def common_data(checkpoints: Sequence[Path], trust: Sequence[str]) -> DictConfig:
    """Return the data config of the run of a checkpoint, or of several with the same evaluation data.

    Raises
    ------
    UserError
        As :func:`recorded_data`; or the runs have different evaluation data.
    """
    recorded = [recorded_data(path, trust) for path in checkpoints]
    first, *others = [_choice_of_images(data) for data in recorded]
    for path, settings in zip(checkpoints[1:], others, strict=True):
        if changes := differences(first, settings):
            if changes.keys() <= {FOLD}:
                raise ConfigError(
                    f"checkpoint={path} held out fold {changes[FOLD].new}, and {checkpoints[0]} held out fold"
                    f" {changes[FOLD].old}: each has trained on the images that the other held out, so no fold is a"
                    " fair test of the ensemble. Set data=... to score it on images that no fold contains, such as"
                    " data.val_list=val. For the score of the cross-validation, compare the runs: fcnlab compare"
                    " runs=FOLDER pools their folds"
                )
            raise ConfigError(
                f"checkpoint={path} was trained with {'; '.join(shown_changes(changes, f'{checkpoints[0]}:'))}: set"
                " data=... to choose the images that the ensemble is scored on"
            )
    return recorded[0]


def _choice_of_images(data: DictConfig) -> Settings:
    """Return the settings that determine which images are scored, and their ground truth."""
    settings = {path: value for path, value in leaves_of(to_plain(data), "data").items() if not is_free(path)}
    lists = ("data.val_list", "data.test_list")
    folds = ("data.train_list", "data.folds", "data.fold", "data.fold_group", "data.stratify")
    split = ("data.dataset.num_val", "data.dataset.lists", "data.dataset.split_seed")
    is_fold_scored = data.get("folds") is not None and data.get("test_list") is None
    keys = (*lists, *split, *(folds if is_fold_scored else ()))
    fractions = {path: value for path, value in settings.items() if path.startswith("data.dataset.fractions")}
    return scored_data(settings) | fractions | {key: settings[key] for key in keys if key in settings}


def recorded_data(checkpoint: Path, trust: Sequence[str]) -> DictConfig:
    """Return the data config of the checkpoint's run, from its config.yaml with resolved values.

    Raises
    ------
    UserError
        The checkpoint is not in the folder of a run, or the record's data are not one of fcnlab's data sets.
    """
    record = checkpoint.absolute().parent.parent / "config.yaml"
    if not record.is_file():
        raise ConfigError(f"checkpoint={checkpoint} is not in the folder of a run ({record} is missing): set data=...")
    config = recorded_config(record.parent, f"checkpoint={checkpoint}", record.name)
    tree = OmegaConf.to_container(config, resolve=False)
    data = tree.get("data") if isinstance(tree, dict) else None
    if not isinstance(data, dict):
        raise ConfigError(f"checkpoint={checkpoint}: {record} contains no data config: set data=...")
    check_components(data, DATA_COMPONENTS, trust, str(record))
    data |= _original_paths(record.parent, data)
    recorded = OmegaConf.create({"data": data})
    validate_config(recorded)
    return recorded.data


def _original_paths(run: Path, data: Mapping[str, Any]) -> dict[str, str]:
    """Return a run's relative ``data.root``, and lists that are text files, as absolute paths, if they still exist.

    Relative to the present working directory, there may be other data under the same name.
    """
    lists = {key: data.get(key) for key in ("train_list", "val_list", "test_list")}
    files = {key: path for key, path in lists.items() if isinstance(path, str) and path.endswith(LIST_SUFFIX)}
    paths = files | ({"root": data["root"]} if isinstance(data.get("root"), str) else {})
    try:
        cwd = nested_map(nested_map(read_yaml(run, ".hydra/hydra.yaml"), "hydra"), "runtime").get("cwd")
        if not isinstance(cwd, str):
            return {}
        there = {key: Path(cwd, path) for key, path in paths.items()}
        return {key: str(path) for key, path in there.items() if (path.is_dir() if key == "root" else path.is_file())}
    except (OSError, ValueError):  # a damaged record
        return {}
