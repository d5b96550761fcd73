"""Conformance suites for parts of your own: tests that any backbone, data set, loss or inference method must pass.

Inherit one in a test file of yours, and return your part from ``make``; pytest then runs all of its tests::

    from fcnlab.testing import BackboneContract

    class TestMine(BackboneContract):
        def make(self):
            return Mine()

A failed test says in one sentence what is wrong and what to change. To leave a test out, override it. The suites need
pytest, which fcnlab does not install.
"""

from fcnlab.testing.backbones import BackboneContract
from fcnlab.testing.datasets import DatasetContract
from fcnlab.testing.inference import InferenceContract
from fcnlab.testing.losses import LossContract

__all__ = ["BackboneContract", "DatasetContract", "InferenceContract", "LossContract"]
