"""Failures of a conformance suite as single sentences, and comparisons of tensors."""

import pytest
import torch
from torch import Tensor


def require(condition: bool, sentence: str) -> None:
    """Fail a test with a sentence, without a traceback, unless a condition holds."""
    if not condition:
        pytest.fail(sentence, pytrace=False)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference divided by the norm of the expected values; nan if a value is not finite."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp(min=torch.finfo(torch.float64).tiny))


def require_near(actual: Tensor, expected: Tensor, tolerance: float, sentence: str) -> None:
    """Fail with a sentence and the relative error unless tensors have one shape and differ by at most a tolerance."""
    require(actual.shape == expected.shape, f"{sentence}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}.")
    error = relative_error(actual, expected)
    require(error <= tolerance, f"{sentence}: the relative error is {error:.2g}, allowed is {tolerance:g}.")
