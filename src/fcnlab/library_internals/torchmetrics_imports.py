"""torchmetrics' imports: without its hundred metrics, and without matplotlib, until somebody asks for them.

They stand in for two of its modules while these are first imported, and so know what is inside them. Seen to work with
torchmetrics 1.9.0; pyproject.toml has >= 1.8. Imports nothing of torchmetrics itself.
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
    """While entered, one module is executed in a way of its own when it is first imported; all others as ever."""

    name: str
    whole: Loader | None  # the module's own

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
        sys.meta_path.remove(self)  # its submodules, and the whole of it later, are found as ever
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None:
            self.whole, spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def _give_back(self, module: ModuleType) -> None:
        """Let the module be reloaded as a whole."""
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self.whole


class TorchmetricsByNeed(ByNeed):
    """Import torchmetrics without its hundred metrics, until something other than its two base classes is asked of it.

    Lightning imports it for these two, and the package imports torchvision, scipy.signal and scipy.stats for metrics of
    images, sound and text: as much as torch itself takes. While this is entered, ``import torchmetrics`` imports the
    two; whatever else is asked of the package, then or later, runs its own ``__init__`` in the same module, as
    :class:`importlib.util.LazyLoader` would. So nothing is replaced, and nothing is missing.
    """

    name = TORCHMETRICS

    def exec_module(self, module: ModuleType) -> None:
        def others(name: str) -> Any:
            if name.startswith("__") and name != "__all__":  # what tools ask of every module
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
    """Import torchmetrics' drawing without matplotlib, until something is drawn.

    The base class of all metrics imports it for annotations. matplotlib looks through all fonts of the machine then,
    needs a folder to keep them in, and fails where there is none.
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
        if installed:  # whoever draws asks for matplotlib by this function first
            vars(module)["_error_on_missing_matplotlib"] = lambda: importlib.reload(module)
