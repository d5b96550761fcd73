"""fcnlab's side of the benchmarks: training and evaluation steps without a trainer."""

from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torch.optim import Optimizer

import rivals
from fcnlab.config.composition import compose_command, without_hydra
from fcnlab.hydra_registration import register_schemas
from fcnlab.models import FCN
from fcnlab.training.segmenter import Segmenter
from fcnlab.training.speed import training_speed

VGG16 = ("model/backbone=vgg16", "model.backbone.weights=none")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
Batch = dict[str, Tensor]


class Ours(NamedTuple):
    """A model in its Segmenter, on its device, with random weights."""

    segmenter: Segmenter
    cfg: DictConfig

    def loss(self, batch: Batch, precision: torch.dtype = torch.float32) -> Tensor:
        """Return the loss of a training step, under autocast as with ``trainer.precision=bf16-mixed``."""
        with self._autocast(precision):
            return self.segmenter._step(batch, "train")["loss"]

    @torch.inference_mode()
    def evaluate(self, batch: Batch, precision: torch.dtype = torch.float32) -> dict[str, Any]:
        """Run a validation step."""
        with self._autocast(precision):
            return self.segmenter._step(batch, "val")

    def optimizer(self) -> Optimizer:
        return instantiate(self.cfg.optim, _convert_="all")(self.segmenter.net)

    def _autocast(self, precision: torch.dtype) -> torch.autocast:
        reduced = precision is torch.bfloat16
        return torch.autocast(self.segmenter.device.type, torch.bfloat16, enabled=reduced)


def build(*words: str, device: torch.device) -> Ours:
    """Build a model from overrides of ``fcnlab train``."""
    cfg = composed(*words, f"trainer={'gpu' if device.type == 'cuda' else 'cpu'}")
    net = rivals.drawn(net_of(cfg))
    loss = instantiate(cfg.loss, _convert_="all")
    segmenter = Segmenter(net, ["class"] * cfg.data.num_classes, loss, **training_speed(cfg, net))
    return Ours(segmenter.to(device), cfg)


def net_of(cfg: DictConfig) -> FCN:
    """Return the model with its initial weights."""
    return instantiate(cfg.model, _convert_="all")


def composed(*words: str) -> DictConfig:
    """Return the configuration of ``fcnlab train`` with these overrides."""
    register_schemas()
    return without_hydra(compose_command("train", words))


def batch(images: int, rows: int, cols: int, device: torch.device) -> Batch:
    """Return a batch of noise, as the data loader returns it."""
    image = torch.randint(256, (images, 3, rows, cols), dtype=torch.uint8, device=device)
    mask = torch.randint(21, (images, rows, cols), dtype=torch.uint8, device=device)
    return {"image": image, "mask": mask, "index": torch.arange(images)}
