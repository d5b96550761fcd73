"""A trained network as a safetensors file: its weights, and in the metadata the record of its checkpoint as JSON."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from fcnlab.errors import first_line
from fcnlab.models.weights import (
    CHECKSUM,
    RECORD,
    WeightsError,
    checksum,
    is_safetensors,
    load_without_code,
    read_metadata,
)

FACTS = "fcnlab_facts"  # their name in the metadata
KEPT = ("version", "variant", "model", "classes", "palette", "selection", "trained")  # others are needed to resume
OF_THIS_MACHINE = ("root", "wandb_run", "data.root")  # entries of "trained" that a published file does not need
WHOLE_NUMBER = re.compile(r"-?\d{1,20}", re.ASCII)


def write_weights_file(path: Path, net: nn.Module, checkpoint: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write the weights and buffers of a network, by their names in it.

    ``checkpoint`` is that of the network, with its record as "fcnlab". The entries that are only needed to resume a
    run, the folder of the data and the W&B run stay out. ``facts`` are for other readers.
    """
    # Each in its own memory: safetensors refuses tensors that share it, as tied weights do.
    tensors = {name: value.clone(memory_format=torch.contiguous_format) for name, value in net.state_dict().items()}
    record = json.dumps(_record(checkpoint))
    own = {RECORD: record, FACTS: json.dumps(facts), CHECKSUM: checksum(tensors, record)}
    path.write_bytes(save(tensors, {"format": "pt"} | own))  # save_file would let nobody else read it


def _record(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    record = {key: checkpoint["fcnlab"][key] for key in KEPT if key in checkpoint["fcnlab"]}
    if isinstance(record.get("trained"), dict):
        record["trained"] = _published(record["trained"])
        if isinstance(record["trained"].get("settings"), dict):
            record["trained"]["settings"] = _published(record["trained"]["settings"])
    if "selection" in record:
        stopped = bool((checkpoint.get("resume") or {}).get("stopped_early"))
        record["selection"] = {"stopped_early": stopped, **record["selection"]}
    return record | {"step": checkpoint.get("global_step", 0)}


def _published(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if key not in OF_THIS_MACHINE}


def read_weights_file(path: Path) -> dict[str, Any]:
    """Return the content of a file of :func:`write_weights_file` in the form of a checkpoint; its record is unchecked.

    The file is data: no code that it names is run. A file without a record has no entry "fcnlab".

    Raises
    ------
    WeightsError
        The file is damaged (by its checksum, too, if it has one), or its record is no JSON.
    """
    state = {f"net.{name}": value for name, value in load_without_code(path).items()}
    text = read_metadata(path).get(RECORD)
    if text is None:
        return {"state_dict": state}
    try:
        record = json.loads(text, object_hook=_with_numbers)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is damaged: its record is no JSON: {first_line(error)}") from error
    step = record.pop("step", 0) if isinstance(record, dict) else 0
    return {"state_dict": state, "fcnlab": record, "global_step": step}


def read_facts(path: Path) -> dict[str, Any]:
    """Return the facts that a file of :func:`write_weights_file` has for other readers; empty where it has none.

    They are unchecked. A checkpoint has none.

    Raises
    ------
    WeightsError
        The file cannot be read.
    """
    text = read_metadata(path).get(FACTS) if is_safetensors(path) else None
    try:
        facts = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _with_numbers(entries: dict[str, Any]) -> dict[Any, Any]:
    """Return a mapping with its whole numbers as keys, which JSON has turned into texts, as of ``skip_scales``."""
    are_numbers = bool(entries) and all(map(WHOLE_NUMBER.fullmatch, entries))
    return {int(key): value for key, value in entries.items()} if are_numbers else entries
