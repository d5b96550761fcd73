"""Lazy imports for a fast start of the command line: no run uses much of what Lightning imports.

Only the command line uses this module; ``import fcnlab`` as a library imports every package as usual.
"""

import atexit
import gc
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from fcnlab.library_internals.torchmetrics_imports import DrawingByNeed, TorchmetricsByNeed


def import_verb(name: str) -> ModuleType:
    """Import the module of a command without packages that no command uses, and without garbage collection."""
    if name in sys.modules:
        return sys.modules[name]
    with _no_collection(), TorchmetricsByNeed(), DrawingByNeed():
        return importlib.import_module(name)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Switch the garbage collector off: objects made by imports are never dropped.

    They are frozen afterwards, so that it never visits them, and forked workers do not copy them.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # otherwise nanobind, in triton, reports them as leaks
        if was_on:
            gc.enable()
