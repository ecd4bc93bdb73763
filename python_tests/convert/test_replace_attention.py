"""replace_attention, restore_attention and GCSA.from_module in models with public attention modules."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from operator_calls import Operators, calls_operator
from public_attention import PlainAttention, WithDropout, WithResidual, randomize_statistics
from published_attention import TwoSequentials, gate_of_map
from torch import Tensor, nn

from gcsa_ext import GCSA, replace_attention, restore_attention

pytestmark = pytest.mark.usefixtures("one_thread")


class Block(nn.Module):
    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.attention = PlainAttention(channels, **options)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(self.conv(x))


class Net(nn.Module):
    """Attention in a Sequential, in a ModuleList, in blocks, twice the same, and of every public kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), PlainAttention(8), nn.ReLU())
        self.blocks = nn.ModuleList([Block(8, groups=1), Block(8, groups=2, kernel_size=3)])
        self.shared = PlainAttention(8, groups=1, channel_sigmoid=False, kernel_size=5)
        self.alias = nn.Sequential(self.shared, nn.Conv2d(8, 8, 1), self.shared)
        self.missing = None
        self.register_module("empty", None)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.alias(self.shared(x)).mean((2, 3))


def net() -> Net:
    model = Net()
    randomize_statistics(model)
    return model


@pytest.mark.parametrize("training", [True, False])
def test_a_nested_model_computes_the_same(training: bool) -> None:
    model = net().train(training)
    expected_model = copy.deepcopy(model)
    random_state = torch.get_rng_state()
    assert replace_attention(model) == 4
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [type(m) for m in model.modules()] == [type(m) for m in expected_model.modules()]
    assert model.alias[0] is model.alias[2] is model.shared
    x = torch.randn(2, 3, 9, 7)
    with Operators() as operators:
        copy.deepcopy(model)(x)
    assert operators.counts["gcsa_ext::gcsa_forward"] == 5, "the shared module runs three times"
    assert operators.counts["gcsa_ext::norm_gate"] == 1, "that of 3x3 convolutions"
    out, expected = model(x), expected_model(x)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
    out.pow(2).sum().backward()
    expected.pow(2).sum().backward()
    for p, q in zip(model.parameters(), expected_model.parameters(), strict=True):
        scale = q.grad.abs().max().item()
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4 * scale + 1e-5)
    for p, q in zip(model.buffers(), expected_model.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert replace_attention(model) == 0, "a second time there is nothing left to fuse"
    assert restore_attention(model) == 4
    assert not calls_operator(model, x)
    assert restore_attention(model) == 0


def test_parameters_and_buffers_are_the_same_objects() -> None:
    model = net()
    before = list(model.named_parameters()), list(model.named_buffers()), model.state_dict()
    values = [v.clone() for v in before[2].values()]
    replace_attention(model)
    for old, new in zip(before[:2], (model.named_parameters(), model.named_buffers()), strict=True):
        for (name, tensor), (new_name, new_tensor) in zip(old, new, strict=True):
            assert name == new_name and tensor is new_tensor
    assert list(model.state_dict()) == list(before[2])
    for value, now in zip(values, model.state_dict().values(), strict=True):
        assert torch.equal(value, now)


def test_an_optimizer_from_before_still_works() -> None:
    models = [net(), None]
    models[1] = copy.deepcopy(models[0])
    x = torch.randn(2, 3, 6, 5)
    for model in models:
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for i in range(4):
            if i == 2 and model is models[0]:
                assert replace_attention(model) == 4
            optimizer.zero_grad()
            model(x).pow(2).sum().backward()
            optimizer.step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        # Adam divides by the gradient's size: rounding may turn the sign of a gradient of nothing
        assert (p - q).abs().mean() < 1e-3
    torch.testing.assert_close(models[0].eval()(x), models[1].eval()(x), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", [WithResidual, WithDropout])
def test_a_module_that_computes_something_else_is_kept(kind: type[PlainAttention]) -> None:
    other = kind(8)
    model = nn.Sequential(nn.Identity(), other, PlainAttention(8), nn.Sequential(other))
    with pytest.warns(UserWarning, match=rf"leaves .*1 alone: {kind.__name__}") as caught:
        assert replace_attention(model) == 1
    assert len(caught) == 1, "one warning for one module, wherever it is used"
    assert model[1] is other is model[3][0]
    x = torch.randn(2, 8, 6, 5)
    assert not calls_operator(other, x) and calls_operator(model[2], x)


def test_modules_with_other_layers_are_kept() -> None:
    variants = [PlainAttention(8) for _ in range(6)]
    variants[0].spatial_attention[4] = nn.GroupNorm(2, 8)
    variants[1].channel_attention.append(nn.Dropout())
    variants[2].register_parameter("scale", nn.Parameter(torch.ones(1)))
    variants[2].forward = lambda x: variants[2].scale * PlainAttention.forward(variants[2], x)
    variants[3].spatial_attention = nn.Conv2d(8, 8, 1)
    del variants[4].channel_attention
    variants[5].channel_attention[1] = nn.GELU()
    model = nn.ModuleList([*variants, nn.Sequential(nn.Conv2d(8, 8, 1))])
    assert not replace_attention(model, explain=True).fused
    for variant in (*variants[:2], *variants[3:]):
        with pytest.raises(ValueError, match="PlainAttention is not a GCSA or GAM module: it"):
            GCSA.from_module(variant)


def without_bias() -> PlainAttention:
    plain = PlainAttention(8)
    for i in (0, 3):
        old = plain.spatial_attention[i]
        plain.spatial_attention[i] = nn.Conv2d(old.in_channels, old.out_channels, 7, padding=3, bias=False)
    plain.channel_attention[0] = nn.Linear(8, 2, bias=False)
    randomize_statistics(plain)
    return plain


def test_layers_without_bias() -> None:
    plain = without_bias()
    fused = GCSA.from_module(plain)
    x = torch.randn(2, 8, 6, 5)
    torch.testing.assert_close(fused(x), plain(x))
    assert fused.spatial_attention[0].bias is None
    assert replace_attention(plain) == 1
    torch.testing.assert_close(fused(x), plain(x))


def test_the_model_itself_is_an_attention() -> None:
    plain = PlainAttention(8)
    x = torch.randn(2, 8, 6, 5)
    expected = plain(x)
    assert replace_attention(plain) == 1
    torch.testing.assert_close(plain(x), expected)
    assert calls_operator(plain, x)
    assert replace_attention(GCSA(8)) == 0
    assert replace_attention(nn.Linear(2, 2)) == 0


def test_a_gcsa_in_a_model_is_reported_and_left() -> None:
    model = nn.Sequential(GCSA(8), nn.Sequential(GCSA(8)))
    report = replace_attention(model, explain=True)
    assert [(a.name, a.fused, a.words) for a in report.attentions] == [
        ("0", True, "a GCSA of gcsa_ext"),
        ("1.0", True, "a GCSA of gcsa_ext"),
    ]
    assert restore_attention(model) == 0
    assert str(replace_attention(nn.Sequential(nn.ReLU()), explain=True)) == "no attention module found"


def test_from_module_refuses_what_the_module_gcsa_lacks() -> None:
    for options in ({"on_gate": 4}, {"pointwise": True, "gate": gate_of_map}):
        module = TwoSequentials(16, **options)
        with pytest.raises(ValueError, match="replace_attention fuses it where it stands"):
            GCSA.from_module(module)
        assert replace_attention(module) == 1


@pytest.mark.parametrize("groups", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("sigmoid", [True, False])
def test_groups_and_sigmoid_are_found(groups: int, sigmoid: bool) -> None:
    plain = PlainAttention(12, groups=groups, channel_sigmoid=sigmoid, kernel_size=3)
    randomize_statistics(plain)
    fused = GCSA.from_module(plain)
    assert (fused.groups, fused.channel_sigmoid) == (groups, sigmoid)
    x = torch.randn(2, 12, 4, 5)
    expected = plain(x)
    torch.testing.assert_close(fused(x), expected)
    assert replace_attention(plain) == 1
    torch.testing.assert_close(plain(x), expected)


def test_training_flag_of_every_layer_is_kept() -> None:
    model = nn.Sequential(PlainAttention(8).eval(), PlainAttention(8))
    model[1].spatial_attention[1].eval()
    before = [m.training for m in model.modules()]
    replace_attention(model)
    assert [m.training for m in model.modules()] == before
    assert not model[0].training and model[1].training and not model[1].spatial_attention[1].training


def test_dtype_is_kept() -> None:
    for dtype in (torch.float64, torch.bfloat16):
        model = nn.Sequential(PlainAttention(8)).to(dtype)
        expected = copy.deepcopy(model)
        replace_attention(model)
        x = torch.randn(2, 8, 5, 4, dtype=dtype)
        tolerance = 1e-10 if dtype == torch.float64 else 2.0**-6
        torch.testing.assert_close(model(x), expected(x), rtol=tolerance, atol=tolerance)


def test_hooks_are_kept_and_not_called_by_the_proof() -> None:
    plain = PlainAttention(8)
    seen: list[str] = []
    handles = [
        plain.register_forward_pre_hook(lambda *_: seen.append("pre")),
        plain.register_forward_hook(lambda m, args, kwargs, out: seen.append("forward"), with_kwargs=True),
        plain.register_full_backward_pre_hook(lambda *_: seen.append("backward pre")),
        plain.register_full_backward_hook(
            lambda m, grad_in, grad_out: seen.append(f"backward {len(grad_in)}")
        ),
        plain.spatial_attention[0].register_forward_hook(lambda *_: seen.append("inner")),
    ]
    model = nn.Sequential(plain)
    assert replace_attention(model) == 1
    assert seen == []
    x = torch.randn(2, 8, 4, 4, requires_grad=True)
    model(x).sum().backward()
    assert seen == ["pre", "inner", "forward", "backward pre", "backward 1"]
    for handle in handles:
        handle.remove()
    model(x).sum().backward()
    assert len(seen) == 5, "a handle from before removes its hook"
    gcsa = GCSA.from_module(PlainAttention(8))
    assert not gcsa._forward_hooks


def test_a_hook_still_changes_the_result() -> None:
    plain = PlainAttention(8)
    plain.register_forward_hook(lambda m, args, out: out * 3)
    plain.spatial_attention[4].register_forward_hook(lambda m, args, out: out + 1)
    model = nn.Sequential(plain)
    x = torch.randn(2, 8, 4, 4)
    expected = model(x)
    assert replace_attention(model) == 1
    torch.testing.assert_close(model(x), expected)


def test_parametrized_layers_are_kept() -> None:
    plain = PlainAttention(8)
    nn.utils.parametrizations.weight_norm(plain.channel_attention[0])
    randomize_statistics(plain)
    model = nn.Sequential(plain).eval()
    x = torch.randn(2, 8, 4, 4)
    expected = model(x)
    assert replace_attention(model) == 1
    torch.testing.assert_close(model(x), expected)


def test_synchronised_batch_norm_is_kept() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(PlainAttention(8)))
    x = torch.randn(2, 8, 4, 4)
    expected = copy.deepcopy(model)(x)
    assert replace_attention(model) == 1
    assert type(model[0].spatial_attention[1]) is nn.SyncBatchNorm
    assert calls_operator(copy.deepcopy(model), x)
    torch.testing.assert_close(model(x), expected)


def test_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert replace_attention(nn.Sequential(PlainAttention(16))) == 1


def test_layers_that_are_converted_or_folded_afterwards() -> None:
    model = nn.Sequential(PlainAttention(8), PlainAttention(8))
    randomize_statistics(model)
    expected_model = copy.deepcopy(model)
    replace_attention(model)
    x = torch.randn(2, 8, 4, 4)
    model[0] = nn.SyncBatchNorm.convert_sync_batchnorm(model[0])
    spatial = model.eval()[1].spatial_attention
    for i in (0, 3):
        spatial[i] = nn.utils.fuse_conv_bn_eval(spatial[i], spatial[i + 1])
        spatial[i + 1] = nn.Identity()
    torch.testing.assert_close(model(x), expected_model.eval()(x), rtol=1e-4, atol=1e-5)
    with Operators() as operators:
        model(x)
    assert operators.counts["gcsa_ext::gcsa_forward"] == 2
    assert operators.counts["aten::convolution"] == 0


def test_an_exchanged_layer_is_called() -> None:
    plain = PlainAttention(8)
    replace_attention(plain)
    x = torch.randn(2, 8, 4, 4)
    plain.channel_attention[1] = nn.GELU()
    expected = PlainAttention.forward(plain.eval(), x)
    assert torch.equal(plain(x), expected) and not calls_operator(plain, x)


def test_copy_and_state_dict_of_a_fused_model() -> None:
    model = net()
    state = copy.deepcopy(model.state_dict())
    replace_attention(model)
    copied = copy.deepcopy(model)
    for p in copied.parameters():
        nn.init.normal_(p)
    copied.load_state_dict(state)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(copied.eval()(x), model.eval()(x))
