"""Small and optional pieces around the training loop."""

from fcnlab.callbacks.ema import EMA
from fcnlab.callbacks.metrics_file import MetricsFile
from fcnlab.callbacks.pictures import FixedPictures
from fcnlab.callbacks.random_state import RandomState
from fcnlab.callbacks.stopping import EndWithValidation, StopOnNaN

__all__ = ["EMA", "EndWithValidation", "FixedPictures", "MetricsFile", "RandomState", "StopOnNaN"]
