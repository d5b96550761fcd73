"""A network as an ONNX file, which needs neither fcnlab nor torch to run."""

import json
import logging
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fcnlab.errors import UserError
from fcnlab.messages import only_from
from fcnlab.publication.exported_program import CLASS_MAP, INPUT, SCORES, Program, Runner

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

OPSET = 20  # onnxruntime reads it since 1.17
AXES = {INPUT: {0: "batch", 2: "rows", 3: "cols"}, CLASS_MAP: {0: "batch", 1: "rows", 2: "cols"}}
AXES[SCORES] = AXES[INPUT]


def check_onnx_installed() -> None:
    """Raise a UserError unless the packages that write ONNX are installed."""
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise UserError(f"format=onnx needs {' and '.join(missing)}: pip install 'fcnlab[export]'")


def save_onnx(program: Program, path: Path, facts: Mapping[str, Any], with_scores: bool) -> None:
    """Write a program that returns class map and scores; the file returns the scores only ``with_scores``.

    ``facts`` become the metadata of the model, those that are no texts as JSON.

    Raises
    ------
    UserError
        The program cannot be converted.
    """
    import onnx

    model = _converted(program)
    _name_axes(model)
    if not with_scores:
        del model.graph.output[1]
    for node in model.graph.node:
        del node.metadata_props[:]  # paths of this machine
    del model.graph.value_info[:]  # sizes inside, in terms of names that the inputs no longer have
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def _converted(program: Program) -> "ModelProto":
    try:
        with only_from(logging.WARNING, "onnx_ir"):  # its optimiser logs each constant that occurs twice
            converted = torch.onnx.export(
                program.exported,
                dynamo=True,
                opset_version=OPSET,
                external_data=False,
                verbose=False,
                input_names=[INPUT],
                output_names=[CLASS_MAP, SCORES],
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise UserError(f"torch.onnx cannot convert the network to ONNX: {error}") from error
    assert converted is not None
    return converted.model_proto


def _name_axes(model: "ModelProto") -> None:
    """Give the free sides of input and outputs the names batch, rows and cols."""
    for value in (*model.graph.input, *model.graph.output):
        for axis, name in AXES[value.name].items():
            _name_axis(value, axis, name)


def _name_axis(value: "ValueInfoProto", axis: int, name: str) -> None:
    dimension = value.type.tensor_type.shape.dim[axis]
    if not dimension.HasField("dim_value"):
        dimension.dim_param = name


def open_onnx(path: Path) -> Runner | None:
    """Return a function that runs an ONNX file, and also returns scores that the file keeps to itself.

    None without onnxruntime.
    """
    if find_spec("onnxruntime") is None:
        return None
    import onnx
    import onnxruntime

    model = onnx.load(path)
    if len(model.graph.output) == 1:
        model.graph.output.append(onnx.helper.make_tensor_value_info(SCORES, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> tuple[Tensor, Tensor]:
        class_map, scores = session.run([CLASS_MAP, SCORES], {INPUT: images.numpy()})
        return torch.from_numpy(class_map), torch.from_numpy(scores)

    return run
