"""Small and optional pieces around the training loop."""

from fcnlab.callbacks.checkpointing import LastCheckpoint, TopCheckpoints, WholeFiles
from fcnlab.callbacks.ema import EMA
from fcnlab.callbacks.interruption import Interruption
from fcnlab.callbacks.metrics_file import MetricsFile
from fcnlab.callbacks.pictures import FixedPictures
from fcnlab.callbacks.progress import Progress
from fcnlab.callbacks.resume import ExactResume
from fcnlab.callbacks.selection import Selection
from fcnlab.callbacks.stopping import EarlyEnd, EndWithValidation, StopOnNaN
from fcnlab.callbacks.time_left import TimeLeft

__all__ = [
    "EMA",
    "EarlyEnd",
    "EndWithValidation",
    "ExactResume",
    "FixedPictures",
    "Interruption",
    "LastCheckpoint",
    "MetricsFile",
    "Progress",
    "Selection",
    "StopOnNaN",
    "TimeLeft",
    "TopCheckpoints",
    "WholeFiles",
]
