"""Test that the annotation check of make test-slow can fail, and accepts what type checkers accept."""

import io
import os
import re
import subprocess
import sys
from typing import IO, TextIO

import pytest
import torch
from jaxtyping import Float, jaxtyped
from torch import Tensor

from annotations import checked

WRONG_CALLS = """
import torch
from fcnlab.models.geometry import FeatureMap
from fcnlab.models.upsampling import bilinear_kernel

def test_a_wrong_argument():
    FeatureMap(torch.zeros(3, 4, 5), 8, 0.5)  # no batch

def test_a_wrong_result(monkeypatch):
    monkeypatch.setattr(torch, "outer", lambda first, second: first)
    bilinear_kernel(2, 4)

def test_a_sound_call():
    FeatureMap(torch.zeros(2, 3, 4, 5), 8, 0)
    assert bilinear_kernel(2, 4).shape == (4, 4)
"""


@pytest.mark.slow
def test_wrong_shapes_fail_with_the_options_of_make(repository, tmp_path):
    option = re.search(r"--jaxtyping-packages=\S+", (repository / "Makefile").read_text()).group()
    (tmp_path / "test_calls.py").write_text(WRONG_CALLS)
    completed = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", option, "test_calls.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(repository / "tests")},
        capture_output=True,
        text=True,
    )
    assert "2 failed, 1 passed" in completed.stdout, completed.stdout + completed.stderr
    assert re.findall(r"FAILED test_calls.py::(\w+) - jaxtyping.TypeCheckError", completed.stdout) == [
        "test_a_wrong_argument",
        "test_a_wrong_result",
    ]


@jaxtyped(typechecker=checked)
def cropped(image: Float[Tensor, "rows cols"], rows: float) -> Float[Tensor, "{rows} cols"]:
    return image[:2]


@jaxtyped(typechecker=checked)
def read(data: IO[bytes], text: TextIO) -> str:
    return text.read() + data.read().decode()


def test_a_result_of_another_shape_is_refused():
    assert cropped(torch.zeros(5, 4), 2).shape == (2, 4), "an int is a float"
    with pytest.raises(TypeError, match="return value"):
        cropped(torch.zeros(5, 4), 3)


def test_in_memory_files_are_accepted_as_files():
    assert read(io.BytesIO(b"b"), io.StringIO("a")) == "ab"
    with pytest.raises(TypeError, match="typechecking parameter 'data'"):
        read(io.StringIO("b"), io.StringIO("a"))
