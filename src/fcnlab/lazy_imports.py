"""How a command comes quickly to its first line of work: much of what Lightning imports no run uses.

Only the command line comes here; who imports fcnlab as a library gets every package as ever.
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
    """The module of a command, imported without what no command uses, and without walks of the garbage collector."""
    if name in sys.modules:
        return sys.modules[name]
    with _no_collection(), TorchmetricsByNeed(), DrawingByNeed():
        return importlib.import_module(name)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from walking, again and again, through all that imports make and nobody drops.

    Nor does it later: what is there then is frozen, which spares the workers that are forked a copy of it, too.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # or nanobind, in triton, takes what lives until the end for leaks, and says so
        if was_on:
            gc.enable()
