"""fcnlab's local response normalisation, compared with torch's and with finite differences."""

import pytest
import torch
from torch import nn

from fcnlab.models.lrn import LocalResponseNorm


@pytest.mark.parametrize("channels", [1, 2, 5, 64])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_values_and_gradients_equal_torch(channels, memory_format):
    torch.manual_seed(0)
    # Activations of some hundreds, as in the models, where the divisor is far from 1.
    x = (200 * torch.randn(2, channels, 5, 7, dtype=torch.float64)).to(memory_format=memory_format)
    actual, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    own, reference = LocalResponseNorm()(actual), nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)(expected)
    upstream = torch.randn_like(x)
    own.backward(upstream)
    reference.backward(upstream)
    torch.testing.assert_close(own, reference, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(actual.grad, expected.grad, rtol=1e-10, atol=1e-12)


def test_gradients_equal_finite_differences():
    torch.manual_seed(0)
    x = (50 * torch.randn(1, 7, 2, 2, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(LocalResponseNorm(), (x,), eps=1e-4, atol=1e-6)
