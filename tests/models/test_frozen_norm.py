"""Frozen batch normalisation within convolutions, compared with torch's layers in evaluation mode."""

import copy

import pytest
import torch
from torch import nn

from fcnlab.models import FeatureMap
from fcnlab.models.frozen_norm import FrozenNorm, NormalizedConv2d, freeze_norms


class Backbone(nn.Module):
    """One level, of the result of ``scores``."""

    def forward(self, x):
        return {1: FeatureMap(self.scores(x), 1, 0.0)}


class Net(Backbone):
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

    def scores(self, x):
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
    results = [net(image)[1].data for net, image in zip(pair, inputs, strict=True)]
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
        assert not torch.allclose(copied(x)[1].data, frozen(x)[1].data)
        frozen.load_state_dict(copied.state_dict())
        torch.testing.assert_close(copied(x)[1].data, frozen(x)[1].data, rtol=0, atol=0)


class Shared(Backbone):
    """A convolution and two normalisations, which ``scores`` uses in an odd way."""

    def __init__(self, scores):
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1)
        self.bn, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.scores = lambda x: scores(self, x)


def changed(values, change):
    """Return the values after a change in place that no result of torch shows."""
    change(values)
    return values


ODD_USES = {
    "an assignment": lambda net, x: net.bn(changed(net.conv(x), lambda y: y.__setitem__((0, 0), 0.0))),
    "a convolution's own forward": lambda net, x: net.bn(net.conv(x)) + net.conv.forward(x),
    "a normalisation's own forward": lambda net, x: net.bn(net.conv(x)) + net.bn.forward(net.other(x)),
    "a convolution of two normalisations": lambda net, x: net.bn(net.conv(x)) + net.bn2(net.conv(x)),
    "a normalisation of two convolutions": lambda net, x: net.bn(net.conv(x)) + net.bn(net.other(x)),
    "a convolution once without": lambda net, x: net.bn(net.conv(x)) + net.conv(x),
    "a list": lambda net, x: torch.cat([y := net.conv(x), net.bn(y)], 1),
    "several results": lambda net, x: net.bn(y := net.conv(x))[:, :2] + y.chunk(2, 1)[0],
    "a keyword": lambda net, x: net.bn(input=(y := net.conv(x))) + torch.add(input=y, other=y),
}


@pytest.mark.parametrize("use", ODD_USES)
def test_shared_layers_and_results_compute_what_they_did(use):
    torch.manual_seed(0)
    plain = with_statistics(Shared(ODD_USES[use])).double().eval()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    expected = plain(x)[1].data
    assert freeze_norms(plain, x) == 2
    torch.testing.assert_close(plain(x)[1].data, expected, rtol=1e-11, atol=1e-11)


def test_a_level_that_is_the_result_of_a_convolution_stays_as_it_is():
    torch.manual_seed(0)
    net = with_statistics(Shared(None)).double().eval()
    net.forward = lambda x: {1: FeatureMap(y := net.conv(x), 1, 0.0), 2: FeatureMap(net.bn(y), 2, 0.0)}
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    expected = [level.data for level in net(x).values()]
    freeze_norms(net, x)
    torch.testing.assert_close([level.data for level in net(x).values()], expected, rtol=1e-11, atol=1e-11)


def test_a_normalisation_at_two_places_is_replaced_at_both():
    net = Shared(lambda net, x: net.bn(net.conv(x)))
    net.bn2 = net.bn
    assert freeze_norms(net, torch.zeros(1, 3, 8, 8)) == 1
    assert isinstance(net.bn, FrozenNorm) and net.bn2 is net.bn


def test_a_normalisation_that_does_more_is_refused():
    class Squared(nn.BatchNorm2d):
        def forward(self, x):
            return super().forward(x) ** 2

    net = Shared(lambda net, x: net.bn(net.conv(x)))
    net.bn = Squared(4)
    with pytest.raises(ValueError, match="cannot freeze a Squared"):
        freeze_norms(net, torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.BatchNorm3d, nn.SyncBatchNorm])
def test_normalisations_of_other_dimensions_are_refused(kind):
    net = Shared(lambda net, x: net.bn(net.conv(x)))
    net.tokens = kind(4)
    with pytest.raises(ValueError, match=f"cannot freeze a {kind.__name__}"):
        freeze_norms(net, torch.zeros(1, 3, 8, 8))


def test_what_acts_in_training_only_is_no_part_of_a_convolution():
    class StochasticDepth(nn.Module):
        def forward(self, x):
            return x / 2 if self.training else x

    torch.manual_seed(0)
    net = with_statistics(Shared(lambda net, x: net.bn(net.depth(net.conv(x))))).double().eval()
    net.depth = StochasticDepth()
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    expected = net.bn(net.conv(x) / 2)
    freeze_norms(net, x)
    torch.testing.assert_close(net.train()(x)[1].data, expected, rtol=1e-11, atol=1e-11)


def test_a_use_that_torch_does_not_see_is_refused():
    net = with_statistics(Shared(lambda net, x: net.bn(changed(net.conv(x), fill_as_array))))
    with pytest.raises(ValueError, match="would change the features of level 1"):
        freeze_norms(net, torch.randn(1, 3, 8, 8))


def fill_as_array(values):
    values.numpy()[:] = 1
