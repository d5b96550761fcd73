"""torchmetrics' imports: without its hundred metrics, and without matplotlib, until they are used.

The classes here replace the loaders of two of its modules at their first import, and so depend on their contents. This
module does not import torchmetrics itself. Tested with torchmetrics 1.9.0; pyproject.toml has >= 1.8.
"""

import importlib
import logging
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from types import ModuleType
from typing import Any

TORCHMETRICS = "torchmetrics"
DRAWING = "torchmetrics.utilities.plot"
BASE_CLASSES = {"Metric": "torchmetrics.metric", "MetricCollection": "torchmetrics.collections"}


class ByNeed(MetaPathFinder, Loader):
    """While entered, execute one module in a special way at its first import; other modules are not affected."""

    name: str
    whole: Loader | None  # the module's original loader

    def __enter__(self) -> "ByNeed":
        sys.meta_path.insert(0, self)
        return self

    def __exit__(self, *_: object) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        sys.meta_path.remove(self)  # its submodules, and itself when reloaded, are imported as usual
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            self.whole, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def _give_back(self, module: ModuleType) -> None:
        """Restore the module's original loader, so that reloading it executes all of it."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.whole


class TorchmetricsByNeed(ByNeed):
    """Import torchmetrics without its hundred metrics, until something other than its two base classes is used.

    Lightning imports it for these two classes, but the package also imports torchvision, scipy.signal and scipy.stats
    for metrics of images, sound and text, which costs as much as importing torch. While this is entered, ``import
    torchmetrics`` imports only the two classes. Any other attribute, then or later, executes the package's own
    ``__init__`` in the same module, like :class:`importlib.util.LazyLoader`. So nothing is replaced or missing.
    """

    name = TORCHMETRICS

    def exec_module(self, module: ModuleType) -> None:
        def others(name: str) -> Any:
            if name.startswith("__") and name != "__all__":  # tools look these up in every module
                raise AttributeError(f"module {TORCHMETRICS!r} has no attribute {name!r}")
            vars(module).pop("__getattr__", None)
            importlib.reload(module)
            return getattr(module, name)

        known = {"__version__": version(TORCHMETRICS), "_logger": logging.getLogger(TORCHMETRICS)}
        vars(module).update(known, __getattr__=others)  # PEP 562
        importlib.import_module(f"{TORCHMETRICS}.utilities")  # first: it and the classes import each other
        for name, place in BASE_CLASSES.items():
            setattr(module, name, getattr(importlib.import_module(place), name))
        self._give_back(module)


class DrawingByNeed(ByNeed):
    """Import torchmetrics' plotting module without matplotlib, until something is plotted.

    The base class of all metrics imports it for annotations. On import, matplotlib lists all fonts of the machine,
    needs a folder to store the list, and fails without one.
    """

    name = DRAWING

    def exec_module(self, module: ModuleType) -> None:
        assert self.whole is not None
        known = vars(importlib.import_module(f"{TORCHMETRICS}.utilities.imports"))
        installed = known["_MATPLOTLIB_AVAILABLE"]
        known["_MATPLOTLIB_AVAILABLE"] = False
        try:
            self.whole.exec_module(module)
        finally:
            known["_MATPLOTLIB_AVAILABLE"] = installed
        self._give_back(module)
        if installed:  # all plotting functions call this function first
            vars(module)["_error_on_missing_matplotlib"] = lambda: importlib.reload(module)
