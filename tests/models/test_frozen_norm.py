"""Frozen batch normalisation within convolutions, compared with torch's layers in evaluation mode."""

import copy

import pytest
import torch
from torch import nn

from fcnlab.models.frozen_norm import FrozenNorm, NormalizedConv2d, freeze_norms


class Net(nn.Module):
    """Convolutions that a normalisation follows, and some whose result has another use as well."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8)
        self.bn2 = nn.BatchNorm2d(8, affine=False, eps=1e-3)
        self.shared = nn.Conv2d(8, 8, 1)
        self.bn3 = nn.BatchNorm2d(8)
        self.before = nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 3, padding=1, padding_mode="reflect")
        self.bn4 = nn.BatchNorm2d(4)
        self.per_batch = nn.BatchNorm2d(4, track_running_stats=False)

    def forward(self, x):
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.depthwise(x))
        shared = self.shared(x)
        x = self.bn3(shared) + shared
        return self.per_batch(self.bn4(self.last(self.before(x))))


def with_statistics(net: nn.Module) -> nn.Module:
    """Normalisations as after training: far from the identity."""
    for norm in net.modules():
        if isinstance(norm, nn.BatchNorm2d) and norm.track_running_stats:
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            if norm.affine:
                nn.init.uniform_(norm.weight, -2, 2)
                nn.init.normal_(norm.bias)
    return net


@pytest.fixture
def pair():
    """A network in double precision in evaluation mode, and the same with frozen normalisations."""
    torch.manual_seed(0)
    plain = with_statistics(Net()).double().eval()
    frozen = copy.deepcopy(plain)
    freeze_norms(frozen, torch.zeros(1, 3, 9, 9, dtype=torch.float64))
    return plain, frozen


def test_values_and_gradients_equal_torch(pair):
    plain, frozen = pair
    x = torch.randn(2, 3, 17, 12, dtype=torch.float64)
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    results = [net(image) for net, image in zip(pair, inputs, strict=True)]
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)
    upstream = torch.randn_like(results[0])
    for result in results:
        result.backward(upstream)
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-9, atol=1e-10)
    gradients = {name: value.grad for name, value in frozen.named_parameters()}
    assert list(gradients) == [name for name, _ in plain.named_parameters()]
    for name, value in plain.named_parameters():
        torch.testing.assert_close(gradients[name], value.grad, rtol=1e-9, atol=1e-10)


def test_only_plain_convolutions_that_nothing_else_uses_apply_their_normalisation(pair):
    _, frozen = pair
    applied = {name for name, module in frozen.named_modules() if isinstance(module, NormalizedConv2d)}
    assert applied == {"conv1", "depthwise"}
    assert {name for name, module in frozen.named_modules() if isinstance(module, FrozenNorm)} == {
        "bn1", "bn2", "bn3", "before", "bn4"
    }  # fmt: skip


def test_training_leaves_the_statistics_and_names_as_they_are(pair):
    plain, frozen = pair
    frozen.train()
    frozen(torch.randn(2, 3, 17, 12, dtype=torch.float64))
    assert list(frozen.state_dict()) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        if not name.startswith("per_batch"):
            assert torch.equal(frozen.state_dict()[name], value)


def test_a_copy_has_its_own_normalisation(pair):
    _, frozen = pair
    x = torch.randn(1, 3, 17, 12, dtype=torch.float64)
    copied = copy.deepcopy(frozen)
    with torch.no_grad():
        copied.bn1.bias += 1
        assert not torch.allclose(copied(x), frozen(x))
        frozen.load_state_dict(copied.state_dict())
        torch.testing.assert_close(copied(x), frozen(x), rtol=0, atol=0)
