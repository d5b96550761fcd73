"""Test that nothing between two log rows waits for the device, by training on tensors without values.

Tensors on torch's "meta" device have shapes but no values. Whatever reads a value (``item``, ``if tensor``,
``nonzero``, a mask as an index, a copy to the host) raises there; on a GPU it would wait for all work before it. So a
run that completes its steps has read nothing. Copies from the host to the device are counted: they wait, too, unless
memory is pinned, like that of a batch.
"""

import lightning as L
import pytest
import torch
from hydra.utils import instantiate
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.trainer.connectors.logger_connector import logger_connector, result
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader

from fcnlab.config.components import to_plain
from fcnlab.config.locations import CONF
from fcnlab.library_internals.torch import TorchDispatchMode
from fcnlab.metrics.confusion import ImageConfusions
from fcnlab.models import FCN
from fcnlab.models.tiny import Tiny
from fcnlab.signals import StopSignals
from fcnlab.training.callbacks import ExactResume, GracefulStop, MetricsCsv, SampleImages, StopOnNaN
from fcnlab.training.losses import CrossEntropy, Lovasz
from fcnlab.training.segmenter import Segmenter

STEPS, ROWS = 6, 2  # the interval of logging in steps
CLASSES, SIZE = 21, 64
LOSSES = sorted(path.stem for path in (CONF / "loss").glob("*.yaml"))
READING = {"lovasz"}


class AnyDevice(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        """Accept the device; Lightning would insist on a CPU."""


class WithoutValues(SingleDeviceStrategy):
    """A strategy for training on tensors that cannot be read."""

    def __init__(self):
        super().__init__(torch.device("meta"))

    def reduce(self, tensor: Tensor, *args, **kwargs) -> Tensor:
        """Lightning calls it once, before training, to check whether any rank has batches."""
        return torch.ones(())

    def teardown(self) -> None:
        """Leave the model where it is: it has no values to copy to the host."""


class Uploads(TorchDispatchMode):
    """Counts copies from the host to the device."""

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.lift_fresh.default:  # torch.tensor(number, device=...)
            made_there = result.is_meta
        else:
            sources = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
            made_there = copies and result.is_meta and not all(source.is_meta for source in sources)
        self.found += [str(func)] if made_there else []
        return result


class Watch(L.Callback):
    """Counts uploads after the first row, for which Lightning creates its counters."""

    def __init__(self):
        self.uploads = Uploads()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module, batch, batch_idx: int) -> None:
        if batch_idx == ROWS * trainer.accumulate_grad_batches:
            self.uploads.__enter__()

    def on_train_end(self, *args) -> None:
        self.uploads.__exit__(None, None, None)


class Batches(L.LightningDataModule):
    """Batches that are on the device already; the host knows the images' indices."""

    def __init__(self, count: int = STEPS):
        super().__init__()
        self.count = count

    def train_dataloader(self) -> DataLoader:
        image = torch.zeros((2, 3, SIZE, SIZE), dtype=torch.uint8, device="meta")
        mask = torch.zeros((2, SIZE, SIZE), dtype=torch.uint8, device="meta")
        batches = [{"image": image, "mask": mask, "index": torch.tensor([i, i + STEPS])} for i in range(self.count)]
        return DataLoader(batches, batch_size=None, collate_fn=lambda batch: batch)

    def val_dataloader(self) -> DataLoader:
        return self.train_dataloader()

    def transfer_batch_to_device(self, batch, device, dataloader_idx: int):
        return batch


@pytest.fixture(autouse=True)
def no_metrics_at_the_end(monkeypatch):
    """Skip copying metrics to the host, which Lightning does after training."""
    monkeypatch.setattr(result._ResultCollection, "cpu", lambda self: self)
    monkeypatch.setattr(logger_connector._LoggerConnector, "teardown", lambda self: None)


@pytest.fixture
def fit(composed, tmp_path):
    """Train for STEPS steps with the default settings; return the trainer and the uploads."""

    def run(*words: str, also: L.Callback | None = None, accumulate: int = 1) -> tuple[L.Trainer, list[str]]:
        folders = [f"callbacks.{name}.dirpath={tmp_path}" for name in ("best", "top", "last")]
        fixed = (f"callbacks.sample_images.folder={tmp_path}", "optim.fused=false")  # torch refuses this on "meta"
        cfg = composed(*words, *folders, *fixed)
        loss, optim, schedule = (instantiate(cfg[part], _convert_="all") for part in ("loss", "optim", "schedule"))
        model = FCN(Tiny(width=4), CLASSES, (32, 16, 8))
        names, fast = [f"class {label}" for label in range(CLASSES)], {"channels_last": True, "row_blocks": True}
        segmenter = Segmenter(model, names, loss, optim, schedule, **fast)
        watch, curves = Watch(), MetricsCsv(tmp_path / "metrics.csv")
        # Without EndWithValidation, which requests a last row, and the progress bar, which is drawn at an epoch's end.
        configured = [to_plain(node) for name, node in cfg.callbacks.items() if name != "progress"]
        callbacks = [instantiate(node) for node in configured if node.pop("enabled")] + ([also] if also else [])
        with StopSignals() as signals:
            trainer = L.Trainer(
                accelerator=AnyDevice(),
                strategy=WithoutValues(),
                callbacks=[watch, StopOnNaN(STEPS + 1), *callbacks, ExactResume(curves, 2), GracefulStop(signals)],
                logger=False,  # rows are prepared, but not read
                log_every_n_steps=ROWS,
                max_epochs=1,
                limit_val_batches=0,
                accumulate_grad_batches=accumulate,
                gradient_clip_val=cfg.trainer.gradient_clip_val,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=tmp_path,
            )
            trainer.fit(segmenter, datamodule=Batches(STEPS * accumulate))
        return trainer, watch.uploads.found

    return run


# Lightning's warning about a device that it does not know.
pytestmark = pytest.mark.filterwarnings("ignore")


def words_of(loss: str) -> list[str]:
    return [f"loss={loss}"] + ([f"loss.class_weights={[1.0] * CLASSES}"] if loss == "weighted" else [])


@pytest.mark.parametrize(
    "words", [*(words_of(loss) for loss in LOSSES if loss not in READING), ["optim=sgd"]], ids=lambda words: words[0]
)
def test_no_step_waits_for_the_device(fit, words):
    """Tested with the defaults (cross entropy, AdamW, clipping, EMA), and with each other loss."""
    trainer, uploads = fit(*words)
    assert trainer.global_step == STEPS and uploads == []


@pytest.mark.parametrize("loss", ["cross_entropy", "weighted", "cross_entropy_sum", "sampled", "dice"])
def test_no_accumulated_step_waits_for_the_device(fit, loss):
    trainer, uploads = fit(*words_of(loss), accumulate=2)
    assert trainer.global_step == STEPS and uploads == []


class Careless(L.Callback):
    def __init__(self, action):
        self.action = action

    def on_train_batch_end(self, trainer: L.Trainer, pl_module, outputs, *args) -> None:
        self.action(outputs["loss"])


@pytest.mark.parametrize(
    "read", [float, bool, Tensor.cpu, Tensor.nonzero, Tensor.isnan], ids=lambda read: read.__name__
)
def test_a_step_that_reads_values_is_found(fit, read):
    if read is Tensor.isnan:  # reads values, but copies none to the host
        fit(also=Careless(read))
    else:
        with pytest.raises((RuntimeError, NotImplementedError), match=r"meta|Meta"):
            fit(also=Careless(read))


NOT_DISPATCHED = pytest.mark.skipif(
    torch.__version__ < (2, 15), reason="before torch 2.15, no operation shows that torch.tensor copies a number"
)


@pytest.mark.parametrize(
    "send",
    [
        pytest.param(lambda loss: torch.tensor(1.5, device=loss.device), marks=NOT_DISPATCHED),
        lambda loss: torch.ones(2).to(loss.device),
        lambda loss: loss.clone().copy_(torch.tensor(1.5)),
    ],
    ids=["number", "to", "copy_"],
)
def test_copies_to_the_device_are_found(fit, send):
    _, uploads = fit(also=Careless(send))
    assert len(uploads) == STEPS - ROWS


@pytest.mark.parametrize("loss", READING)
def test_losses_that_wait_are_listed(fit, loss):
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        fit(*words_of(loss))


def test_lovasz_reads_values_once():
    """It reads which classes are present, to sort as many pixels."""

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            names = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")
            Reads.count += func.overloadpacket.__name__ in names
            return func(*args, **(kwargs or {}))

    scores, target = torch.randn(2, 4, 8, 8, requires_grad=True), torch.randint(3, (2, 8, 8))
    lists = []
    with pytest.MonkeyPatch.context() as patch, Reads():
        patch.setattr(Tensor, "tolist", lambda tensor, real=Tensor.tolist: lists.append(1) or real(tensor))
        Lovasz()(scores, target).backward()
    assert Reads.count == 0 and len(lists) == 1


def test_scoring_an_image_does_not_wait_for_the_device():
    """Except images that are drawn."""
    model = FCN(Tiny(width=4), CLASSES, (32, 16, 8))
    segmenter = Segmenter(model, [""] * CLASSES, CrossEntropy(), row_blocks=True).to("meta").eval()
    segmenter.confusions = ImageConfusions(2 * STEPS, CLASSES).to("meta")
    segmenter.log = lambda *args, **kwargs: None
    images = SampleImages("", count=0)
    batches = Batches().val_dataloader()
    segmenter.validation_step(next(iter(batches)))  # the first image creates a table
    with Uploads() as uploads:
        for batch in batches:
            images.on_validation_batch_end(None, segmenter, segmenter.validation_step(batch), batch, 0)
    assert uploads.found == []
