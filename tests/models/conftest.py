"""Fixtures for the tests of several models."""

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def _repeatable():
    """Use one seed, and one thread, since small tensors gain nothing from more threads on a busy machine."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def download(monkeypatch):
    """Replace torchvision's download; the argument is called with the URL."""

    def replace(fetch):
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda url, *_, **__: fetch(url))

    return replace


@pytest.fixture
def as_if_trained():
    """Give the batch normalisations of a model weights and statistics far from their initial values."""

    def change(model: nn.Module) -> nn.Module:
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for values in (layer.weight, layer.running_var):
                    nn.init.uniform_(values, 0.5, 1.5)
                for values in (layer.bias, layer.running_mean):
                    nn.init.uniform_(values, -0.5, 0.5)
        return model.eval()

    return change
