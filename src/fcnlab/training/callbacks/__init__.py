"""Lightning callbacks: checkpoints, EMA, exact resume, signals, metrics.csv, progress, throughput, sample images."""

from fcnlab.training.callbacks.checkpointing import AtomicCheckpointIO, LastCheckpoint, TopCheckpoints
from fcnlab.training.callbacks.ema import EMA
from fcnlab.training.callbacks.interruption import GracefulStop
from fcnlab.training.callbacks.kept_predictions import KeptPredictions
from fcnlab.training.callbacks.metrics_file import MetricsCsv
from fcnlab.training.callbacks.progress import Progress
from fcnlab.training.callbacks.resume import ExactResume
from fcnlab.training.callbacks.sample_images import SampleImages
from fcnlab.training.callbacks.selection import CheckpointSelection
from fcnlab.training.callbacks.stopping import FinalValidation, StopOnNaN, StopReason
from fcnlab.training.callbacks.throughput import Throughput
from fcnlab.training.callbacks.time_left import TimeLeft

__all__ = [
    "EMA",
    "AtomicCheckpointIO",
    "CheckpointSelection",
    "ExactResume",
    "FinalValidation",
    "GracefulStop",
    "KeptPredictions",
    "LastCheckpoint",
    "MetricsCsv",
    "Progress",
    "SampleImages",
    "StopOnNaN",
    "StopReason",
    "Throughput",
    "TimeLeft",
    "TopCheckpoints",
]
