"""The settings of a run for TensorBoard's HPARAMS tab."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

# Scores that the tab shows for each run, as far as the run logs them.
SCORES = ("val/miou", "final/miou", "test/miou")


@rank_zero_only
def log_settings(logger: TensorBoardLogger, settings: Mapping[str, Any]) -> None:
    """Write the settings, and name the scores to show beside them, whose values are those of the curves."""
    from torch.utils.tensorboard.summary import hparams

    values = {
        key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in settings.items()
    }
    for summary in hparams(values, dict.fromkeys(SCORES, 0.0)):
        logger.experiment.file_writer.add_summary(summary)
