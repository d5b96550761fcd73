"""Which parameter learns at which rate, and how rates change over a run."""

import warnings
from collections import Counter

import pytest
import torch
from lightning.fabric.plugins.precision.amp import _optimizer_handles_unscaling
from torch import nn

from fcnlab.errors import UserError
from fcnlab.models import FCN, Network, Tiny
from fcnlab.training.optimizers import adamw, constant, cosine, freeze, parameter_groups, poly, sgd

SETTINGS = {"lr": 0.1, "weight_decay": 5e-4, "bias_lr_scale": 2.0, "pretrained_lr_scale": 0.1}


class Toy(Network):
    """A convolution with a bias and a norm in the backbone, a frozen layer, and a head."""

    num_classes, backbone_path = 2, "backbone"

    def __init__(self, pretrained: bool):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1).requires_grad_(False))
        self.heads = nn.ModuleDict({"32": nn.Conv2d(4, 2, 1)})
        self.pretrained = pretrained


def by_name(groups) -> dict[str, tuple[float, float]]:
    return {group["name"]: (pytest.approx(group["lr"]), group["weight_decay"]) for group in groups}


@pytest.mark.parametrize(("pretrained", "scale"), [(False, 1.0), (True, 0.1)])
def test_learning_rates_and_weight_decays(pretrained, scale):
    assert by_name(parameter_groups(Toy(pretrained), **SETTINGS)) == {
        "backbone/weight": (0.1 * scale, 5e-4),
        "backbone/bias": (0.2 * scale, 0.0),
        "backbone/norm": (0.1 * scale, 0.0),
        "heads/weight": (0.1, 5e-4),
        "heads/bias": (0.2, 0.0),
    }


@pytest.mark.parametrize("pretrained", [False, True])
def test_pretrained_backbone_with_lr_zero_is_frozen(pretrained):
    net = FCN(Tiny(width=2), 3)
    net.pretrained = pretrained
    freeze(net, 0.0)
    assert {value.requires_grad for value in net.backbone.parameters()} == {not pretrained}
    assert ("backbone/weight" in by_name(parameter_groups(net, **SETTINGS))) == (not pretrained)


def test_a_frozen_backbone_keeps_the_statistics_of_all_batch_normalisations():
    net = FCN(Tiny(width=2), 3)
    net.backbone.tokens = nn.BatchNorm1d(4)
    net.pretrained = True
    freeze(net.train(), 0.0)
    assert not net.backbone.tokens.training


@pytest.mark.parametrize("pretrained", [False, True])
def test_random_layers_that_stay_as_they_are_warn(pretrained):
    net = FCN(Tiny(width=2), 3, frozen_norm=True, frozen_until=8)
    net.pretrained = pretrained
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        freeze(net, 1.0)
    assert any("model.frozen_until keeps layers" in str(each.message) for each in caught) == (not pretrained)


@pytest.mark.parametrize(
    ("levels", "frozen"), [((32, 16, 8), []), ((16,), ["to32"]), ((8,), ["to16", "to32"])], ids=str
)
def test_unused_parameters_are_frozen(levels, frozen):
    """A backbone's parts follow one another: those behind the coarsest level that is scored have no use."""
    net = FCN(Tiny(width=2), 3, levels=levels)
    freeze(net, 1.0)
    still = {name.split(".")[1] for name, value in net.named_parameters() if not value.requires_grad}
    assert sorted(still) == frozen


def test_plain_backbone_trains_biases_like_weights():
    """voc-fcn-alexnet/train.prototxt: conv1 to fc7 carry no multipliers, the score layer carries 2 and 0."""
    groups = by_name(parameter_groups(Toy(pretrained=False), **SETTINGS, plain_backbone=True))
    assert groups["backbone/bias"] == groups["backbone/weight"] == (0.1, 5e-4)
    assert groups["heads/bias"] == (0.2, 0.0) and groups["backbone/norm"] == (0.1, 0.0)


def test_members():
    net = Toy(pretrained=False)
    members = {group["name"]: group["params"] for group in parameter_groups(net, **SETTINGS)}
    conv, norm, _, head = (module for module in net.modules() if not list(module.children()))
    expected = {
        "backbone/weight": [conv.weight],
        "backbone/bias": [conv.bias],
        "backbone/norm": [norm.weight, norm.bias],
        "heads/weight": [head.weight],
        "heads/bias": [head.bias],
    }
    assert {name: list(map(id, group)) for name, group in members.items()} == {
        name: list(map(id, group)) for name, group in expected.items()
    }


@pytest.mark.parametrize("upsampling", ["fixed", "learned"])
@pytest.mark.parametrize("build", [sgd, adamw])
def test_each_trainable_parameter_is_in_one_group(build, upsampling):
    net = FCN(Tiny(width=4), 5, upsampling=upsampling)
    net.backbone.to8.requires_grad_(False)
    counted = Counter(id(parameter) for group in build(net, lr=0.1).param_groups for parameter in group["params"])
    assert counted == {id(parameter): 1 for parameter in net.parameters() if parameter.requires_grad}
    # Learned: the two steps between levels; the last one never is.
    kernels = [id(parameter) in counted for name, parameter in net.named_parameters() if name.startswith("upsample")]
    assert kernels == ([True, True] if upsampling == "learned" else [])


def test_optimisers_take_their_settings():
    net = Toy(pretrained=True)
    found = sgd(net, lr=1e-10, momentum=0.99, weight_decay=1.0, nesterov=True, pretrained_lr_scale=0.5)
    assert isinstance(found, torch.optim.SGD) and found.defaults["momentum"] == 0.99 and found.defaults["nesterov"]
    assert by_name(found.param_groups)["backbone/bias"] == (1e-10, 0.0)  # twice for a bias, half for pretrained
    found = adamw(net, lr=1e-3, betas=[0.8, 0.95])
    assert isinstance(found, torch.optim.AdamW) and found.defaults["betas"] == (0.8, 0.95)
    assert by_name(found.param_groups)["heads/bias"] == (1e-3, 0.0)
    assert by_name(found.param_groups)["heads/weight"] == (1e-3, 0.01)


def plain_steps(make, steps: int, resumed_at: int | None, formats, fused: bool) -> torch.Tensor:
    """A convolution's weights after some steps; at ``resumed_at`` another net goes on from the optimiser's state."""
    torch.manual_seed(0)
    net, slopes = nn.Conv2d(4, 6, 3, bias=False), torch.randn(steps, 6, 4, 3, 3)
    first = net.weight.detach().clone()
    net = net.to(memory_format=formats[0])
    optimizer = make(net, fused)
    for step in range(steps):
        if step == resumed_at:
            state, weights = optimizer.state_dict(), net.weight.detach().clone()
            net = nn.Conv2d(4, 6, 3, bias=False).to(memory_format=formats[1])
            net.weight.data.copy_(weights)
            optimizer = make(net, fused)
            optimizer.load_state_dict(state)
        net.weight.grad = torch.empty_like(net.weight).copy_(slopes[step])
        optimizer.step()
    assert not torch.equal(net.weight, first)
    return net.weight.detach()


def as_given(optimizer):
    def make(net, fused):
        net.pretrained = False
        return optimizer(net, lr=0.1, fused=fused)

    return make


FORMATS = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("formats", [FORMATS, FORMATS[::-1]], ids=["to channels last", "from channels last"])
def test_fused_optimizer_resumes_in_another_memory_format(optimizer, formats):
    """torch's fused kernels pair weights and moments by address: an optimiser that loads as torch's own goes astray."""
    make, moments = as_given(optimizer), {sgd: torch.optim.SGD, adamw: torch.optim.AdamW}[optimizer]
    expected = plain_steps(make, 6, None, FORMATS[:1], fused=False)
    torch.testing.assert_close(plain_steps(make, 6, 3, formats, fused=True), expected)
    settings = {"momentum": 0.9} if optimizer is sgd else {"weight_decay": 0.01}
    astray = plain_steps(
        lambda net, fused: moments(net.parameters(), lr=0.1, fused=fused, **settings), 6, 3, formats, True
    )
    assert (astray - expected).abs().max() > 0.01


@pytest.mark.parametrize("optimizer", [sgd, adamw])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_gradients_are_clipped_before_a_fused_step(optimizer, precision):
    """As Lightning does it: scaled where precision is half, unscaled, clipped, and then the step."""
    stepped = []
    for fused in (False, True):
        torch.manual_seed(0)
        net = nn.Conv2d(4, 6, 3)
        made = as_given(optimizer)(net, fused)
        assert not _optimizer_handles_unscaling(made)  # else it would not clip
        scaler = torch.amp.GradScaler("cpu", enabled=precision == "fp16")
        for parameter in net.parameters():
            parameter.grad = scaler.scale(torch.ones_like(parameter))
        scaler.unscale_(made)
        assert nn.utils.clip_grad_norm_(net.parameters(), 0.1) == pytest.approx((6 * 4 * 9 + 6) ** 0.5)
        scaler.step(made)
        stepped.append(net.weight.detach())
    torch.testing.assert_close(*stepped)


@pytest.mark.parametrize(
    ("schedule", "settings", "factors"),
    [
        (poly, {"power": 0.9}, {0: 1, 50: 0.5**0.9, 75: 0.25**0.9, 100: 0, 101: 0}),
        (poly, {"power": 1}, {0: 1, 10: 0.9, 99: 0.01}),
        (cosine, {}, {0: 1, 25: (1 + 0.5**0.5) / 2, 50: 0.5, 100: 0, 101: 0}),
        (constant, {}, {0: 1, 50: 1, 100: 1, 101: 1}),
    ],
)
def test_schedules(schedule, settings, factors):
    rate = schedule(100, warmup=0, **settings)
    assert {step: rate(step) for step in factors} == pytest.approx(factors)


def test_warmup_rises_to_the_schedule():
    rate, plain = poly(100, power=1, warmup=0.1), poly(100, power=1, warmup=0)
    rising = {step: 0.1 * (step + 1) * (1 - step / 100) for step in range(10)}
    assert {step: rate(step) for step in rising} == pytest.approx(rising)
    assert rate(0) > 0 and all(rate(step) == plain(step) for step in range(10, 100))


@pytest.mark.parametrize(("schedule", "steps"), [(poly, 5), (cosine, 5), (constant, 0)])
def test_warmup_by_default(schedule, steps):
    short, none = schedule(100), schedule(100, warmup=0)
    assert sum(short(step) < none(step) for step in range(100)) == max(0, steps - 1)  # the last of them is full


@pytest.mark.parametrize("schedule", [poly, cosine, constant])
@pytest.mark.parametrize("warmup", [-0.01, 0.11, 500])
def test_warmup_is_limited(schedule, warmup):
    with pytest.raises(UserError, match=f"schedule.warmup={warmup} must be a fraction of the run, from 0 to 0.1"):
        schedule(100, warmup=warmup)
    schedule(100, warmup=0.1)


@pytest.mark.parametrize("schedule", [poly, cosine, constant])
def test_run_of_one_step_has_a_learning_rate(schedule):
    assert schedule(1)(0) == 1


@pytest.mark.parametrize("betas", [(0, 0), (0.0, 0.99), (0.9, 0)])
def test_invalid_betas_are_refused_like_in_torch(betas):
    """Whole numbers among them, which torch itself refuses, as YAML and the command line write 0."""
    net = Toy(False)
    optimizer = adamw(net, lr=1, betas=betas, weight_decay=0)
    assert optimizer.param_groups[0]["betas"] == betas
    optimizer.zero_grad()
    net.heads["32"](torch.ones(1, 4, 2, 2)).sum().backward()
    optimizer.step()


def test_optimizers_accept_integers():
    whole = {"lr": 1, "weight_decay": 1, "bias_lr_scale": 1, "pretrained_lr_scale": 1, "fused": True}
    for optimizer in (sgd(Toy(True), **whole, momentum=0), adamw(Toy(True), **whole)):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
