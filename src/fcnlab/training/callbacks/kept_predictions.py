"""Keep the class maps of an evaluation, for predictions.zip."""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Int64
from lightning.pytorch.callbacks import Callback
from numpy import ndarray

from fcnlab.cores import visible_cores
from fcnlab.metrics.conventions import Matrices, class_areas
from fcnlab.runs.prediction_archive import LIMIT, EncodedImage, encode, worst_and_random
from fcnlab.training.segmenter import Segmenter

Keep = Literal["auto", "all", "none"]
Part = tuple[dict[int, EncodedImage], bool]  # a process's images by index, and whether it has dropped any
MOST_THREADS = 4
WAITING = 2  # images that wait to be encoded, for each thread


class KeptPredictions(Callback):
    """Encode the images of a test, with ground truth and prediction, in threads while the model goes on.

    Parameters
    ----------
    keep
        "all" images, "none", or "auto": all, or the worst and some random ones if all would take more than ``LIMIT``
        bytes. Of a larger set, each process then keeps only as many in memory as may be among these.
    """

    def __init__(self, keep: Keep):
        self.keep = keep
        threads = min(MOST_THREADS, visible_cores())
        self._pool, self._most_waiting = ThreadPoolExecutor(threads), WAITING * threads
        self._waiting: deque[tuple[int, Future[EncodedImage]]] = deque()
        self._encoded: dict[int, EncodedImage] = {}
        self._bytes, self._is_over = 0, False

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.keep == "none":
            return
        assert isinstance(pl_module, Segmenter)
        loader: Any = trainer.test_dataloaders
        dataset = loader.dataset.dataset
        predictions = outputs["prediction"].to(torch.uint8)
        # Copies, because the loader's shared memory holds a few batches only.
        arrays = (values.cpu().numpy().copy() for values in (batch["image"], batch["mask"], predictions))
        for index, image, target, prediction in zip(batch["index"].tolist(), *arrays, strict=True):
            task = self._pool.submit(encode, image, target, prediction, dataset.palette)
            self._waiting.append((index, task))
        self._finish(self._most_waiting, pl_module, dataset.names)

    def _finish(self, most_waiting: int, segmenter: Segmenter, names: Sequence[str]) -> None:
        """Wait until at most so many images wait, and drop images beyond the limit."""
        while len(self._waiting) > most_waiting:
            index, task = self._waiting.popleft()
            self._encoded[index] = task.result()
            self._bytes += self._encoded[index].size
            if self.keep == "auto" and self._bytes > LIMIT:
                self._is_over = True
                own = list(self._encoded)
                matrices = segmenter.confusions.matrices[own].cpu().numpy()
                self._encoded = _worst_and_random(self._encoded, dict(zip(own, matrices, strict=True)), names)
                self._bytes = _bytes(self._encoded)

    def collect(
        self, segmenter: Segmenter, names: Sequence[str], index: Int64[ndarray, " image"], matrices: Matrices
    ) -> dict[str, EncodedImage]:
        """Return the kept images of all processes by name, in the order of the set; on rank 0, none on other ranks.

        Every rank calls it at the end of the test. ``names`` are those of all images, ``index`` and ``matrices`` the
        result of the metric.
        """
        self._finish(0, segmenter, names)
        self._pool.shutdown()
        parts = _gathered((self._encoded, self._is_over))
        encoded = {place: image for part, _ in parts for place, image in part.items()}
        if self.keep == "auto" and (_bytes(encoded) > LIMIT or any(is_over for _, is_over in parts)):
            encoded = _worst_and_random(encoded, dict(zip(index.tolist(), matrices, strict=True)), names)
        return {names[place]: encoded[place] for place in sorted(encoded)}


def _bytes(encoded: Mapping[int, EncodedImage]) -> int:
    return sum(image.size for image in encoded.values())


def _worst_and_random(
    encoded: Mapping[int, EncodedImage], matrices: Mapping[int, ndarray], names: Sequence[str]
) -> dict[int, EncodedImage]:
    kept = worst_and_random({names[place]: class_areas(matrices[place]).miou() for place in encoded})
    return {place: image for place, image in encoded.items() if names[place] in kept}


def _gathered(part: Part) -> list[Part]:
    """Return the parts of all processes on rank 0, and none on other ranks."""
    if not torch.distributed.is_initialized():
        return [part]
    is_first = torch.distributed.get_rank() == 0
    parts: list[Any] | None = [None] * torch.distributed.get_world_size() if is_first else None
    torch.distributed.gather_object(part, parts)
    return parts or []
