"""Properties of all backbones: which weights they load, and that a training step updates every layer."""

import functools
from urllib.error import URLError

import lightning as L
import pytest
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader

from fcnlab.models import FCN, VGG16, AlexNet, CaffeNet, GoogLeNet, GoogLeNetBN, ResNet, Tiny
from fcnlab.models.backbone import Dropout
from fcnlab.models.weights import WeightsError
from fcnlab.training.losses import CrossEntropy
from fcnlab.training.optimizers import constant, sgd
from fcnlab.training.segmenter import Segmenter

MODELS = torchvision.models
# fcnlab's backbone, torchvision's model, and its weights file.
TORCHVISIONS = {
    "alexnet": (AlexNet, MODELS.alexnet, "alexnet-owt-7be5be79.pth"),
    "vgg16": (VGG16, MODELS.vgg16, "vgg16-397923af.pth"),
    "vgg16_bn": (functools.partial(VGG16, batch_norm=True), MODELS.vgg16_bn, "vgg16_bn-6c64b313.pth"),
    "googlenet_bn": (
        GoogLeNetBN,
        functools.partial(MODELS.googlenet, init_weights=False),
        "googlenet-1378be20.pth",
    ),
    "resnet50": (ResNet, MODELS.resnet50, "resnet50-0676ba61.pth"),
    "resnet50-stride8": (functools.partial(ResNet, output_stride=8), MODELS.resnet50, "resnet50-0676ba61.pth"),
    "resnet101": (functools.partial(ResNet, 101), MODELS.resnet101, "resnet101-63fe2227.pth"),
}
ALL = {name: actual for name, (actual, *_) in TORCHVISIONS.items()} | {
    "caffenet": CaffeNet, "googlenet": GoogLeNet, "tiny": Tiny
}  # fmt: skip


@pytest.fixture
def published():
    """Return torchvision's tensors without values: names and shapes are what a loader can get wrong."""

    def state(build) -> dict[str, torch.Tensor]:
        with torch.device("meta"):
            return build().state_dict()

    return state


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_imagenet_weights_are_loaded_from_torchvision(name, download, published):
    actual, reference, file = TORCHVISIONS[name]
    urls = []
    download(lambda url: urls.append(url) or published(reference))
    with torch.device("meta"):
        model = actual(weights="imagenet")
    assert model.pretrained and urls == [f"https://download.pytorch.org/models/{file}"]


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_old_files_without_batch_counters_are_loaded(name, download, published):
    actual, reference, _ = TORCHVISIONS[name]
    old = {key: value for key, value in published(reference).items() if not key.endswith("num_batches_tracked")}
    download(lambda _: old)
    with torch.device("meta"):
        assert actual(weights="imagenet").pretrained


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_weights_with_an_additional_layer_are_refused(name, download, published):
    actual, reference, _ = TORCHVISIONS[name]
    download(lambda _: published(reference) | {"layer5.weight": torch.zeros(1, device="meta")})
    with torch.device("meta"), pytest.raises(WeightsError, match=r"1 not in the model: layer5\.weight"):
        actual(weights="imagenet")


@pytest.mark.parametrize("name", TORCHVISIONS)
def test_offline_errors_name_the_file_and_its_folder(name, download, monkeypatch, tmp_path):
    def fail(url):
        raise URLError("Name or service not known")

    actual, _, file = TORCHVISIONS[name]
    download(fail)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with torch.device("meta"), pytest.raises(WeightsError) as error:
        actual(weights="imagenet")
    assert f"Bring https://download.pytorch.org/models/{file} to {tmp_path / 'checkpoints' / file}, or set" in str(
        error.value
    )


SLOW = ("vgg16_bn", "resnet101")  # whose layers others have, too


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in ALL])
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*is deprecated")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
def test_a_training_step_updates_every_layer(name):
    model = FCN(ALL[name](), 3)
    for head in model.heads.parameters():
        nn.init.normal_(head, std=0.01)  # from scores of zero, nothing would reach the backbone
    batch = {
        "image": torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8),
        "mask": torch.randint(3, (2, 64, 64), dtype=torch.uint8),
    }
    optimizer = functools.partial(sgd, lr=1e-6, momentum=0.0)
    module = Segmenter(model, ["a", "b", "c"], CrossEntropy(), optimizer, constant)
    trainer = L.Trainer(
        max_steps=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(module, DataLoader([batch], batch_size=None))
    assert trainer.global_step == 1 and torch.isfinite(trainer.callback_metrics["train/loss"])
    unreached = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    assert unreached == []
    assert all(value.grad.isfinite().all() for value in model.parameters())


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_dropout_equals_torch_in_every_memory_format(share):
    x = torch.rand(2, 5, 7, 3) + 1
    dropped = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        dropped.append(Dropout(share)(x.contiguous(memory_format=memory_format)))
        assert dropped[-1].is_contiguous(memory_format=memory_format)
    torch.manual_seed(0)
    expected = torch.nn.functional.dropout(x, share)
    assert torch.equal(dropped[0], expected) and torch.equal(dropped[1], expected)
    assert torch.equal(Dropout(share).eval()(x), x)
