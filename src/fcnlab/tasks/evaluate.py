"""``fcnlab eval``."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from fcnlab.callbacks import FixedPictures, Interruption
from fcnlab.config import ConfigError, check_needs, check_targets, plain
from fcnlab.data import DataModule
from fcnlab.launching import as_typed
from fcnlab.launching.manifest import facts_of
from fcnlab.results.origins import part
from fcnlab.results.passport import Convention, as_facts, passport, passport_table
from fcnlab.results.reading import read_yaml
from fcnlab.results.record import add_to_record
from fcnlab.results.scores import SCORES, Scores
from fcnlab.results.selection import Facts, recorded_selection
from fcnlab.segmenter import Segmenter
from fcnlab.signals import StopSignals
from fcnlab.tasks.building import (
    build_inference,
    build_trainer,
    check_machine,
    evaluation_speed,
    open_data,
    open_loggers,
    say,
    warn,
)
from fcnlab.tasks.checkpoints import read_checkpoint, rebuild_net, selection_of
from fcnlab.tasks.fingerprint import fingerprint
from fcnlab.tasks.ineffective import ineffective_in_scoring
from fcnlab.tasks.lineage import file_facts, trained_when_scored, weights_used
from fcnlab.tasks.recording import recorded_config
from fcnlab.tasks.run_folder import RunFolder
from fcnlab.tasks.scoring import commit, score, table, words_of
from fcnlab.tasks.splits import check_splits, needed_size, warn_of_fewer_workers
from fcnlab.trust import DATA, check_components


def evaluate(cfg: DictConfig, run: RunFolder) -> float | None:
    """Score a checkpoint, or a model with its own weights, on the test list of the data."""
    folder = run.path
    check_needs(cfg, as_typed(HydraConfig.get().overrides.task))
    _check_what_is_asked(cfg)  # first: without data, model.num_classes cannot be computed
    check_targets(cfg)
    check_machine(cfg)
    for sentence in ineffective_in_scoring("eval"):
        warn(sentence)
    inference, postprocess = build_inference(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    if cfg.checkpoint is None:
        net, classes, selected, its_model = instantiate(cfg.model, _convert_="all"), None, None, None
        trained, weights = None, weights_used({"model": plain(cfg.model)})
    else:
        checkpoint = read_checkpoint(cfg.checkpoint)
        its_model = checkpoint["fcnlab"]["model"]
        net = rebuild_net(checkpoint, f"checkpoint={cfg.checkpoint}", cfg.trust)
        classes, selected = checkpoint["fcnlab"]["classes"], selection_in_run(checkpoint, Path(cfg.checkpoint))
        trained = trained_when_scored(checkpoint, Path(cfg.checkpoint))
        weights = {"checkpoint": file_facts(Path(cfg.checkpoint))}
    data_config = cfg.data if cfg.data is not None else recorded_data(cfg)
    began = {"commit": commit(), "source": fingerprint(plain(cfg), {"model": its_model, "data": plain(data_config)})}
    data = open_data(data_config, named_by_record=cfg.data is None or cfg.sweep.recorded)
    check_splits(data, "test", min_size=needed_size(inference, net))
    check_classes(classes, data)
    speed = evaluation_speed(cfg, net)
    segmenter = Segmenter(net, data.split("test").classes, inference=inference, postprocess=postprocess, **speed)
    signals = StopSignals()
    trainer = build_trainer(cfg, False, [FixedPictures(folder / "predictions", cfg.pictures), Interruption(signals)])
    warn_of_fewer_workers(data, "test", processes=trainer.num_devices)
    with signals, open_loggers(cfg) as loggers, signals.told_apart():
        run.accept(cfg)
        trainer.loggers = loggers
        origin = {"trained": trained, "weights": weights}
        scored = score(trainer, segmenter, data, folder, cfg.seed, began, selected=selected, **origin)
    if scored is None:
        return None
    found = scored.scores
    say(table(found, data.split("test").classes))
    if cfg.published is not None:
        add_to_record(folder, published=plain(cfg.published))
        say(beside_published(found, cfg.published))
    if cfg.passport:
        say(passport_table(add_passport(folder)))
    say(f"{words_of(scored, segmenter.scored_as, data)} The record: {folder}")
    return found.miou


def selection_in_run(checkpoint: dict[str, Any], path: Path) -> Facts | None:
    """How a checkpoint was selected; the record of its run, where it is still there, knows of later validations."""
    selected = selection_of(checkpoint)
    if selected is None:
        return None
    recorded = (
        recorded_selection(facts_of(path.absolute().parent.parent, "metrics.json")) if selected["monitor"] else None
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


def add_passport(folder: Path) -> list[Convention]:
    """Score the matrices of the record under other conventions too, and say so in the record."""
    with np.load(folder / "confusions.npz") as confusions:
        conventions = passport(confusions["matrices"])
    add_to_record(folder, passport=as_facts(conventions))
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
    check_components(data, DATA, cfg.trust, str(record))
    data |= _root_then(record.parent, data)
    recorded = OmegaConf.create({"data": data})
    check_targets(recorded)
    return recorded.data


def _root_then(run: Path, data: Mapping[str, Any]) -> dict[str, str]:
    """Where a relative ``data.root`` of a run led when it was typed, if something is still there.

    In the folder of today's command may lie other data under the same name.
    """
    root = data.get("root")
    try:
        cwd = part(part(read_yaml(run, ".hydra/hydra.yaml"), "hydra"), "runtime").get("cwd")
        found = isinstance(root, str) and isinstance(cwd, str) and Path(cwd, root).is_dir()
    except (OSError, ValueError):  # a record that is damaged does not tell
        return {}
    return {"root": str(Path(str(cwd), str(root)))} if found else {}


def check_classes(classes: list[str] | None, data: DataModule) -> None:
    """Scores of one set's classes against another's truth would be numbers without a meaning."""
    known = list(data.split("test").classes)
    if classes is not None and classes != known:
        raise ConfigError(
            f"the checkpoint knows {len(classes)} classes ({', '.join(classes[:4])}, …), {data.split('test').title} has"
            f" {len(known)} ({', '.join(known[:4])}, …): give the data= that it was trained for"
        )
