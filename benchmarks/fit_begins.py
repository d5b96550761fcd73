"""A callback that ends the process where a training begins: with what was imported, in a file that is asked for."""

import os
import sys
from pathlib import Path

from lightning.pytorch.callbacks import Callback


class FitBegins(Callback):
    """The first that Lightning calls when it begins to fit; ``modules`` is the file for the names of all modules."""

    def __init__(self, modules: str | None = None):
        self.modules = modules

    def setup(self, trainer, pl_module, stage: str) -> None:
        assert stage == "fit"
        if self.modules:
            Path(self.modules).write_text("\n".join(sys.modules))
        os._exit(0)  # what an end takes is no start
