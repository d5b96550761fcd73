"""What the tests of several models share."""

import pytest
import torch
from torch import nn


@pytest.fixture(autouse=True)
def _repeatable():
    """One seed; one thread, since small tensors gain nothing from more and wait for each other on a busy machine."""
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def download(monkeypatch):
    """Replace torchvision's download; the argument is called with the address."""

    def replace(fetch):
        monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda url, *_, **__: fetch(url))

    return replace


@pytest.fixture
def as_if_trained():
    """Give the batch normalisations of a net factors and statistics that are far from those they start with."""

    def change(net: nn.Module) -> nn.Module:
        for layer in net.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for values in (layer.weight, layer.running_var):
                    nn.init.uniform_(values, 0.5, 1.5)
                for values in (layer.bias, layer.running_mean):
                    nn.init.uniform_(values, -0.5, 0.5)
        return net.eval()

    return change
