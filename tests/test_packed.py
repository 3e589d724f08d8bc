"""Weights that fused modules keep packed: they give the same results, and are never those of another weight."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnext_kernels import FusedConv2d, FusedGroupedConv2d, GroupedConv2d, explain
from resnext_kernels._ops import ACT, PACK, has_direct_kernels
from resnext_kernels._packed import MOST_FORMS, PackedWeight

pytestmark = [
    pytest.mark.usefixtures("own_kernels"),
    pytest.mark.skipif(not has_direct_kernels, reason="this CPU has no AVX2"),
    pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"),
]
ONEDNN, OURS = "mkldnn::_reorder_convolution_weight", "resnext_kernels::_pack_weight"


def make(grouped, dtype=torch.float32):
    """A fused module, an input for it, and the name of the operator that packs its weight."""
    torch.manual_seed(0)
    if grouped:
        conv = GroupedConv2d(64, 64, 3, padding=1, groups=4)
        return FusedGroupedConv2d(conv, None, "relu").to(dtype), torch.randn(2, 64, 9, 7).to(dtype), OURS
    module, x = FusedConv2d(nn.Conv2d(24, 24, 1), "relu").to(dtype), torch.randn(2, 24, 9, 7).to(dtype)
    return module, x.contiguous(memory_format=torch.channels_last), ONEDNN


def in_steps(module, x):
    stride, padding, dilation, groups = module.geometry
    bias = module.shift if isinstance(module, FusedGroupedConv2d) else module.bias
    return F.conv2d(x, module.weight, bias, stride, padding, dilation, groups).relu()


def operators(function, *arguments):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = function(*arguments)
    return result, {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("grouped", [False, True])
def test_weights_are_packed_once(grouped):
    module, x, packs = make(grouped)
    first, names = operators(module, x)
    assert packs in names
    second, names = operators(module, x)
    assert packs not in names
    torch.testing.assert_close(second, first, rtol=0, atol=0)
    torch.testing.assert_close(first, in_steps(module, x), rtol=1e-5, atol=1e-5)
    other = torch.randn(3, x.shape[1], 20, 5).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(module(other), in_steps(module, other), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("channels", "groups"), [(16, 4), (512, 4)])
def test_few_and_many_weights_are_packed_in_each_call(channels, groups):
    module = FusedGroupedConv2d(GroupedConv2d(channels, channels, 3, padding=1, groups=groups), None, "relu")
    x = torch.randn(1, channels, 5, 5)
    for _ in range(2):
        result, names = operators(module, x)
        assert OURS not in names
        torch.testing.assert_close(result, in_steps(module, x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("padding", ["same", "valid", 1, 2])
@pytest.mark.parametrize("grouped", [False, True])
def test_padding_by_name_and_others(grouped, padding):
    torch.manual_seed(0)
    if grouped:
        module = FusedGroupedConv2d(GroupedConv2d(64, 64, 3, padding=padding, groups=4), None, "relu")
    else:
        module = FusedConv2d(nn.Conv2d(64, 64, 3, padding=padding), "relu")
    x = torch.randn(2, 64, 9, 7)
    for _ in range(3):
        torch.testing.assert_close(module(x), in_steps(module, x), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", ["scale", "shift", "bias", "weight"])
@pytest.mark.parametrize("grouped", [False, True])
def test_gradients_are_asked_for_later(grouped, name):
    module, x, _ = make(grouped)
    if not hasattr(module, name):
        return
    for _ in range(2):
        module(x)
    leaf = getattr(module, name).requires_grad_()
    with torch.no_grad():
        assert not module(x).requires_grad
    module(x).sum().backward()
    assert leaf.grad.shape == leaf.shape


def double(module):
    with torch.no_grad():
        module.weight.mul_(2)


def double_in_inference_mode(module):
    with torch.inference_mode():
        module.weight.mul_(2)


def load(module):
    module.load_state_dict({**module.state_dict(), "weight": 2 * module.weight})


def replace_data(module):
    module.weight.data = 2 * module.weight.data


def transpose_data(module):
    module.weight.data = module.weight.data.unflatten(0, (-1, module.weight.shape[1])).transpose(1, 2).flatten(0, 1)


def transpose_data_where_it_lies(module):
    strides = module.weight.stride()
    module.weight.data = module.weight.data.as_strided(module.weight.shape, (strides[0], *strides[1:3][::-1], 1))


def replace_parameter(module):
    module.weight = nn.Parameter(2 * module.weight, requires_grad=False)


def round_to_bfloat16(module):
    module.bfloat16().float()


CHANGES = (double, double_in_inference_mode, load, replace_data, transpose_data, replace_parameter, round_to_bfloat16)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("change", [*CHANGES, transpose_data_where_it_lies], ids=lambda change: change.__name__)
def test_changes_of_the_weight_are_seen(change, grouped):
    module, x, packs = make(grouped)
    before = module(x)
    change(module)
    after, names = operators(module, x)
    torch.testing.assert_close(after, in_steps(module, x), rtol=1e-5, atol=1e-5)
    if change is not transpose_data_where_it_lies or grouped:  # which leaves a 1x1 as it is
        assert packs in names
        assert not torch.equal(after, before)
    assert packs not in operators(module, x)[1]


def test_part_of_a_weight_is_another_weight():
    module = FusedConv2d(nn.Conv2d(24, 24, 1, bias=False), "relu")
    x = torch.randn(2, 24, 9, 7).contiguous(memory_format=torch.channels_last)
    module(x)
    module.weight.data = module.weight.data[:8]
    torch.testing.assert_close(module(x), in_steps(module, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grouped", [False, True])
def test_no_weight_comes_to_lie_where_the_packed_one_lay(grouped):
    """It could have the same version."""
    module, x, _ = make(grouped)
    module(x)
    place, size = module.weight.data_ptr(), module.weight.shape
    module.weight.data = torch.empty(0)
    others = [torch.randn(size) for _ in range(50)]
    assert place not in [other.data_ptr() for other in others]
    module.weight.data = others[0]
    torch.testing.assert_close(module(x), in_steps(module, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_bfloat16(layout, residual):
    """Also where the weight is not packed, whose sums oneDNN refuses."""
    torch.manual_seed(0)
    module = FusedConv2d(nn.Conv2d(16, 24, 1), "relu").bfloat16()
    x, added = (torch.randn(2, c, 9, 7).bfloat16().contiguous(memory_format=layout) for c in (16, 24))
    result = module(x, added if residual else None)
    weight, bias = module.weight.double(), module.bias.double()
    expected = (F.conv2d(x.double(), weight, bias) + (added.double() if residual else 0)).relu()
    torch.testing.assert_close(result.double(), expected, rtol=2e-2, atol=2e-2)
    assert result.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("grouped", [False, True])
def test_another_weight_for_one_call(grouped):
    module, x, _ = make(grouped)
    before = module(x)
    weight = torch.randn_like(module.weight)
    other = torch.func.functional_call(module, {"weight": weight}, (x,))
    torch.testing.assert_close(module(x), before, rtol=0, atol=0)
    module.weight.data = weight
    torch.testing.assert_close(other, in_steps(module, x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grouped", [False, True])
def test_copies_hold_nothing(grouped):
    module, x, _ = make(grouped)
    expected = module(x)
    assert module._packed._forms is not None
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert copied._packed._forms is None
        torch.testing.assert_close(copied(x), expected, rtol=0, atol=0)
    assert module.double()._packed._forms is None


@pytest.mark.parametrize("grouped", [False, True])
def test_a_weight_without_a_version_is_not_kept(grouped):
    with torch.inference_mode():
        module, x, packs = make(grouped)
        expected, names = operators(module, x)
        assert packs not in names
        module.weight.mul_(2)
        torch.testing.assert_close(module(x), in_steps(module, x), rtol=1e-5, atol=1e-5)
        assert not torch.equal(module(x), expected)


@pytest.mark.parametrize("grouped", [False, True])
def test_weights_packed_in_inference_mode_serve_outside(grouped):
    module, x, packs = make(grouped)
    with torch.inference_mode():
        expected = module(x).clone()
    result, names = operators(module, x)
    assert packs not in names
    torch.testing.assert_close(result, expected, rtol=0, atol=0)
    module(x.requires_grad_()).sum().backward()
    assert x.grad.shape == x.shape


def test_a_weight_of_another_class_is_not_kept():
    class Wrapped(torch.Tensor):
        """Such as a quantized weight, whose memory says nothing."""

    assert PackedWeight().form(torch.randn(4).as_subclass(Wrapped), "a", pytest.fail) is None


def test_forms_are_few():
    module, x, _ = make(True)
    for size in range(3, 14):
        image = x.new_ones(1, 64, size, size)
        torch.testing.assert_close(module(image), in_steps(module, image), rtol=1e-5, atol=1e-5)
        assert len(module._packed._forms.packed) <= MOST_FORMS
    kernels = {each.data_ptr() for each in module._packed._forms.packed.values()}
    assert len(kernels) < len(module._packed._forms.packed)  # several sizes, one kernel, one form


def test_threads_share_a_module():
    module, x, _ = make(True)
    for _ in range(20):
        double(module)
        expected = in_steps(module, x)
        with ThreadPoolExecutor(4) as pool:
            for result in pool.map(module, [x] * 8):
                torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_results_are_those_of_weights_packed_in_the_call(layout, dtype):
    """Bit by bit; tests/test_kernels.py holds every kernel to it."""
    for channels, groups, stride in ((64, 4, 1), (64, 8, 2), (60, 2, 1), (48, 8, 1)):
        torch.manual_seed(0)
        x = torch.randn(2, channels, 16, 15).to(dtype).contiguous(memory_format=layout)
        weight = torch.randn(channels, channels // groups, 3, 3).to(dtype)
        scale, shift = torch.rand(2, channels)
        geometry = ((stride, stride), (1, 1), (1, 1), groups)
        numbers = [*x.shape, *weight.shape, groups, stride, stride, 1, 1, 1, 1]
        packed = PACK(weight, numbers, layout == torch.channels_last)
        assert packed.numel() > 64
        call = lambda **packed: ACT(x, weight, scale, shift, None, *geometry, "relu", **packed)  # noqa: B023, E731
        torch.testing.assert_close(call(packed=packed), call(), rtol=0, atol=0)


def test_packed_weights_of_another_kernel_are_refused():
    x, weight = torch.randn(2, 64, 5, 5), torch.randn(64, 16, 3, 3)
    one, geometry = torch.ones(64), ((1, 1), (1, 1), (1, 1), 4)
    numbers = [2, 64, 5, 5, 64, 16, 3, 3, 4, 1, 1, 1, 1, 1, 1]
    packed = PACK(weight, numbers, False)

    def call(packed, kernel_name=""):
        return ACT(x, weight, one, one, None, *geometry, "relu", packed=packed, kernel_name=kernel_name)

    call(packed)
    names = [name for name, why in explain("fprop_act", x, weight, None, 1, 1, 1, 4).entries if not why]
    with pytest.raises(
        RuntimeError, match=rf"expected packed to be of kernel '{names[1]}', weight \[64, 16\], groups=4, got"
    ):
        call(packed, kernel_name=names[1])
    with pytest.raises(
        RuntimeError, match=f"expected packed to be None for kernel '{names[-1]}', which packs no weights"
    ):
        call(packed, kernel_name=names[-1])
    with pytest.raises(RuntimeError, match=r"got '.*', weight \[64, 16\], groups=4, .* bytes"):
        call(PACK(torch.randn(64, 16, 3, 3).bfloat16(), numbers, False))
    for wrong in (packed[:-4], packed[:10], packed[:0], torch.cat([packed, packed])):
        with pytest.raises(RuntimeError, match=f"expected packed to be of kernel .* {wrong.numel()} bytes"):
            call(wrong)
    with pytest.raises(RuntimeError, match="expected packed to be contiguous bytes on the CPU"):
        call(packed.float())
    with pytest.raises(RuntimeError, match="expected packed to begin at a multiple of 64 bytes"):
        call(torch.cat([packed[:4], packed])[4:])
    other = [2, 64, 5, 5, 64, 8, 3, 3, 8, 1, 1, 1, 1, 1, 1]
    with pytest.raises(RuntimeError, match=r"expected packed to be of kernel .*, got .*, weight \[64, 8\], groups=8"):
        call(PACK(torch.randn(64, 8, 3, 3), other, False))


def test_what_is_packed_ahead():
    weight = torch.randn(64, 16, 3, 3)
    numbers = [2, 64, 5, 5, 64, 16, 3, 3, 4, 1, 1, 1, 1, 1, 1]
    assert PACK(weight.double(), numbers, False).numel() == 0  # the reference reads weights as they lie
    with pytest.raises(RuntimeError, match=r"expected weight of size \[64, 16, 3, 3\], got \[64, 8, 3, 3\]"):
        PACK(weight[:, :8], numbers, False)
    with pytest.raises(RuntimeError, match="expected 15 numbers in problem_shape, got 14"):
        PACK(weight, numbers[1:], False)


def test_what_compiles_and_counts_sees_no_packed_weights():
    module, x, packs = make(True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-5)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        _, names = operators(module, x)
    assert counter.get_total_flops() == 2 * x.numel() * 16 * 9
    assert packs not in names


def test_what_cannot_be_told_apart_is_one():
    """Forms of one state of a weight, under a key each."""
    held, weight = PackedWeight(), torch.randn(4)
    first = held.form(weight, "a", lambda: weight + 1)
    assert held.form(weight, "b", lambda: weight + 1) is first
    assert held.form(weight, "c", lambda: weight + 2) is not first
    assert held.form(weight, "a", pytest.fail) is first
    held.clear()
    assert held.form(weight, "a", lambda: weight + 1) is not first
