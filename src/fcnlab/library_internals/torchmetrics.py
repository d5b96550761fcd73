"""torchmetrics: the shape of a metric's result.

Tested with torchmetrics 1.9.0; pyproject.toml has >= 1.8.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torchmetrics import Metric


class UnsqueezedMetric(Metric):
    """A metric whose ``compute`` returns tensors of a fixed number of dimensions.

    torchmetrics converts tensors with one element, such as the index of a single image, to scalars. It does so where it
    wraps ``compute``, and has no setting to turn this off.
    """

    def unsqueezed(self, result: Any) -> Any:
        """Return the result in its original shape."""
        raise NotImplementedError

    def _wrap_compute(self, compute: Callable) -> Callable:
        wrapped = super()._wrap_compute(compute)

        @wraps(compute)
        def computed() -> Any:
            return self.unsqueezed(wrapped())

        return computed
