"""``fcnlab card``."""

import logging
from pathlib import Path

from omegaconf import DictConfig

from fcnlab.comparison.intervals import draws
from fcnlab.comparison.score_intervals import score_intervals
from fcnlab.config.components import to_plain
from fcnlab.config.validation import ConfigError, validate_config
from fcnlab.files.writing import atomic_write
from fcnlab.inference import WholeImage
from fcnlab.models import FCN
from fcnlab.publication.card_records import card_records
from fcnlab.publication.model_card import TO_FILL_IN, Model, Publication, model_card
from fcnlab.publication.output_file import check_output_file
from fcnlab.runs.run_folder import RunFolder
from fcnlab.tasks.compare import existing_folder
from fcnlab.training.checkpoints import TrainedNet, read_nets

log = logging.getLogger("fcnlab")
FILE = "README.md"


def card(cfg: DictConfig, run: RunFolder) -> None:
    """Write the model card of a checkpoint."""
    validate_config(cfg)
    is_named = cfg.output is not None
    path = Path(cfg.output) if is_named else run.path / FILE
    check_output_file(path, cfg.overwrite, is_named)
    publication = _publication(cfg)
    folders = [existing_folder(name, "evaluations") for name in cfg.evaluations]
    (net,) = read_nets(cfg.checkpoint, cfg.trust, run.context.typed_folders)
    records = card_records(net, folders)
    if not records.evaluations:
        log.warning(
            "The card has no scores: %s. fcnlab eval checkpoint=%s scores it, and evaluations=FOLDER adds these scores",
            *(records.without_scores, cfg.checkpoint),
        )
    intervals = [
        score_intervals(each.areas, draws(len(each.names), cfg.resamples), cfg.confidence)
        for each in records.evaluations
    ]
    text = model_card(model_of(net, list(cfg.trust)), records, intervals, publication, cfg.confidence)
    run.accept(cfg)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace")
    log.info("Model card: %s. %d lines are marked %s", path, text.count(TO_FILL_IN), TO_FILL_IN.strip("*"))


def check_not_empty(cfg: DictConfig, *keys: str) -> None:
    """Check that optional texts are not typed without a text.

    Raises
    ------
    ConfigError
        One of them is empty.
    """
    for key in keys:
        if cfg[key] is not None and not cfg[key].strip():
            raise ConfigError(f"{key}= is empty: set a text, or leave it out")


def _publication(cfg: DictConfig) -> Publication:
    check_not_empty(cfg, "name", "license")
    return Publication(cfg.name, cfg.license, to_plain(cfg)["datasets"])


def model_of(net: TrainedNet, trust: list[str]) -> Model:
    """Return the facts on a network that its checkpoint knows."""
    network, facts = net.net, net.checkpoint["fcnlab"]
    version = facts.get("version")
    return Model(
        file=net.path.name,
        title=network.title,
        is_fcn=isinstance(network, FCN),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        classes=net.classes,
        smallest=WholeImage().minimum_image_size(network),
        version=version if isinstance(version, str) else None,
        trust=trust,
    )
