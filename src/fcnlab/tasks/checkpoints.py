"""Reading a checkpoint back: from the file alone, and without running anything that it names."""

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import fcnlab
from fcnlab.config import check_targets, check_trust, plain
from fcnlab.data import Pictures
from fcnlab.errors import UserError
from fcnlab.models import FCN
from fcnlab.models.weights import load_strictly


def checkpoint_record(cfg: DictConfig, pictures: Pictures) -> dict[str, Any]:
    """What goes into every checkpoint of a run, so that it can be used without the run's folder: plain values only."""
    return {
        "version": fcnlab.__version__,
        "variant": HydraConfig.get().runtime.choices["model"],
        "model": without_weights(plain(cfg.model)),
        "classes": list(pictures.classes),
        "palette": pictures.palette.tolist(),
    }


def without_weights(model: dict[str, Any]) -> dict[str, Any]:
    """The model's config with nothing to load: the checkpoint's own weights come after."""
    changed = {"weights": "none"} | ({"reset_heads": False} if "reset_heads" in model else {})
    nested = {key: without_weights(value) for key, value in model.items() if isinstance(value, dict)}
    return model | nested | {key: value for key, value in changed.items() if key in model}


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of ``fcnlab train``.

    Raises
    ------
    UserError
        No such file; damaged; not written by fcnlab; it holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            f"checkpoint={path} is no file. A run's checkpoints are RUN/checkpoints/best.ckpt and last.ckpt."
        )
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"checkpoint={path} is damaged or holds more than tensors and plain values; refused."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise UserError(f"checkpoint={path} cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(checkpoint, dict) or not {"fcnlab", "state_dict"} <= set(checkpoint):
        raise UserError(
            f"checkpoint={path} was not written by fcnlab train. For bare weights, use model.weights={path}."
        )
    return checkpoint


def rebuild_net(checkpoint: dict[str, Any], source: str, trust: Sequence[str]) -> FCN:
    """The net of a checkpoint, with its weights.

    Raises
    ------
    UserError
        Its config names code outside ``fcnlab.models`` and the trusted packages; config and weights do not fit.
    """
    model = checkpoint["fcnlab"]["model"]
    check_trust(model, ("fcnlab.models", *trust), source)
    model = without_weights(model)
    check_targets(OmegaConf.create({"model": model}))
    net = instantiate(model, _convert_="all")
    state = {
        key.removeprefix("net."): value for key, value in checkpoint["state_dict"].items() if key.startswith("net.")
    }
    load_strictly(net, state, source)
    return net
