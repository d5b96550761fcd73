"""Write an archive for VOC's evaluation server: ``fcnlab predict ... submission=FILE``."""

from collections.abc import Callable, Sequence
from pathlib import Path

import lightning as L
from hydra.utils import instantiate
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig

from fcnlab.data import DataModule
from fcnlab.data.formats.voc import LIST_SUFFIX
from fcnlab.errors import UserError, unwritable_reason
from fcnlab.evaluation.splits import check_classes, check_splits, required_image_size, warn_about_fewer_workers
from fcnlab.evaluation.voc_submission import submission
from fcnlab.messages import log_info
from fcnlab.models import Network
from fcnlab.runs.drawing import Labels
from fcnlab.runs.run_folder import RunFolder
from fcnlab.training.segmenter import Segmenter
from fcnlab.training.speed import evaluation_speed
from fcnlab.training.trainer import build_inference, build_trainer

COMPETITIONS = ("comp5", "comp6")
SUFFIXES = (".tar.gz", ".tgz")


def check_submission(cfg: DictConfig) -> None:
    """Check the settings of a submission."""
    if not cfg.submission.endswith(SUFFIXES):
        raise UserError(f"submission={cfg.submission} must end in {SUFFIXES[0]}, the format that the server accepts")
    if cfg.competition not in COMPETITIONS:
        raise UserError(
            f"competition={cfg.competition} is not valid: choose comp5 (trained on VOC only) or comp6 (trained on other"
            " data, too, such as ImageNet or SBD)"
        )
    if cfg.data is None or "year" not in cfg.data.dataset:
        raise UserError("submission=... requires a VOC data set: add data=voc data.root=FOLDER data.test_list=test")
    if cfg.input is not None or cfg.output is not None:
        raise UserError(
            "input=... and output=... have no effect with submission=..., which uses data.test_list: leave them out"
        )
    _check_list(cfg)
    _check_replaced(cfg)


def _check_list(cfg: DictConfig) -> None:
    """Check that the server knows the list: its name is part of the archive's folder."""
    get = cfg.data.get
    if get("folds") is not None and not get("test_list"):
        raise UserError(
            f"data.folds={get('folds')} without data.test_list predicts a fold, which the server does not accept: add"
            " data.test_list=test"
        )
    name, title = ("test_list", get("test_list")) if get("test_list") else ("val_list", get("val_list"))
    if str(title).endswith(LIST_SUFFIX):
        raise UserError(
            f"data.{name}={title} is a list of your own, which the server does not accept: set data.test_list to a list"
            " of the devkit, such as test"
        )


def _check_replaced(cfg: DictConfig) -> None:
    """Check that the archive does not replace another file."""
    path = Path(cfg.submission)
    archive_setting = cfg.data.get("archive") or ()
    archives = [archive_setting] if isinstance(archive_setting, str) else list(archive_setting)
    if any(path.resolve() == Path(archive).resolve() for archive in archives):
        raise UserError(f"submission={path} would overwrite data.archive: choose another file")
    if reason := unwritable_reason(path.parent):
        raise UserError(f"submission={path}: {reason}. Choose a file in another folder")
    if path.is_dir() or (path.exists() and not cfg.overwrite):
        raise UserError(f"submission={path} exists: choose another file, or add overwrite=true to replace it")


def write_submission(cfg: DictConfig, run: RunFolder, nets: Sequence[Network], classes: list[str]) -> None:
    """Predict all images of the test list by one network or an ensemble; write them in the server's folder layout."""
    data: DataModule = instantiate(cfg.data, _convert_="all")
    inference, postprocess = build_inference(cfg)
    check_splits(data, "test", min_size=required_image_size(inference, *nets), target=False)
    check_classes(classes, data)
    dataset = data.split("test")
    folder = f"results/VOC{cfg.data.dataset.year}/Segmentation/{cfg.competition}_{data.lists['test']}_cls"
    speed = evaluation_speed(cfg, nets[0])
    segmenter = Segmenter(
        nets[0], dataset.classes, inference=inference, postprocess=postprocess, ensemble=nets[1:], **speed
    )
    warn_about_fewer_workers(data, "test")
    with submission(Path(cfg.submission), folder, dataset.palette) as add:
        writer = AddPredictions(dataset.names, add)
        trainer = build_trainer(cfg, run.path, False, [writer])
        if trainer.world_size > 1:
            raise UserError("a submission requires a single process: add trainer.devices=1")
        run.accept(cfg)
        trainer.predict(segmenter, datamodule=data, return_predictions=False)
        if writer.added != len(dataset):
            raise UserError(
                f"the submission is incomplete, with {writer.added} of {len(dataset)} images: leave trainer.limit_* out"
            )
    log_info(f"{dataset.title}: {writer.added} images in {cfg.submission}, under {folder}/")


class AddPredictions(Callback):
    """Add each prediction to the archive when its batch ends."""

    def __init__(self, names: Sequence[str], add: Callable[[str, Labels], None]):
        self.names, self.add, self.added = names, add, 0

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module, outputs, batch, batch_idx: int, dataloader_idx=0):
        for prediction, index in zip(outputs, batch["index"], strict=True):
            self.add(self.names[int(index)], prediction.cpu().numpy())
            self.added += 1
