"""torchmetrics: the shape of what a metric computes.

Seen to work with torchmetrics 1.9.0; pyproject.toml has >= 1.8.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torchmetrics import Metric


class UnsqueezedMetric(Metric):
    """A metric whose ``compute`` gives tensors of a fixed number of dimensions.

    torchmetrics makes scalars of tensors of one number, such as the index of a single image, and has no setting for
    it: it does so where it wraps ``compute``.
    """

    def unsqueezed(self, result: Any) -> Any:
        """The result in its own shape again."""
        raise NotImplementedError

    def _wrap_compute(self, compute: Callable) -> Callable:
        wrapped = super()._wrap_compute(compute)

        @wraps(compute)
        def computed() -> Any:
            return self.unsqueezed(wrapped())

        return computed
