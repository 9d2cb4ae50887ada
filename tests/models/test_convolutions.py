"""Convolutions that oneDNN cannot differentiate safely are replaced, and the replacement is exact."""

from __future__ import annotations

import timm
import torch
from torch import nn

from clipling.models.convolutions import SubsampledConv2d, make_safe, unsafe


def test_strided_pointwise_convolution_against_float64():
    torch.manual_seed(0)
    for size in (8, 9, 33):
        conv = nn.Conv2d(3, 24, 1, stride=2).to(memory_format=torch.channels_last)
        exact = nn.Conv2d(3, 24, 1, stride=2).double()  # float64 does not use oneDNN
        exact.load_state_dict(conv.state_dict())
        make_safe(conv)
        assert type(conv) is SubsampledConv2d
        x = torch.randn(2, 3, size, size).to(memory_format=torch.channels_last).requires_grad_()
        y = x.detach().double().requires_grad_()
        out, expected = conv(x), exact(y)
        torch.testing.assert_close(out.double(), expected, atol=1e-5, rtol=1e-5)
        weight = torch.randn_like(out)
        (out * weight).sum().backward()
        (expected * weight.double()).sum().backward()
        torch.testing.assert_close(conv.weight.grad.double(), exact.weight.grad, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(x.grad.double(), y.grad, atol=1e-5, rtol=1e-5)


def test_only_what_is_unsafe_is_changed():
    tower = timm.create_model("fastvit_t8", num_classes=8)
    kinds = {name: type(module) for name, module in tower.named_modules()}
    names = list(tower.state_dict())
    dangerous = [name for name, module in tower.named_modules() if type(module) is nn.Conv2d and unsafe(module)]
    assert dangerous
    make_safe(tower)
    assert list(tower.state_dict()) == names
    changed = [name for name, module in tower.named_modules() if type(module) is not kinds[name]]
    assert changed == dangerous
