"""GroupedConv2d under what users and tools do to nn.Conv2d, beside test_module.py and test_functional.py."""

import copy
import io
import re
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call
from torch.nn.utils import parametrize, prune

from resnext_kernels import GroupedConv2d, LazyGroupedConv2d, explain, grouped_conv2d

from .cases import OperatorLog


def _pair(**kwargs):
    """Ours and nn.Conv2d with the same parameters."""
    ours = GroupedConv2d(8, 8, 3, padding=1, groups=4, **kwargs)
    theirs = nn.Conv2d(8, 8, 3, padding=1, groups=4, **kwargs)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def test_attributes_are_conv2ds():
    for kwargs in ({}, {"padding": "same"}, {"padding_mode": "reflect"}, {"bias": False}):
        ours, theirs = (cls(8, 8, 3, groups=4, **kwargs) for cls in (GroupedConv2d, nn.Conv2d))
        assert ours.__constants__ == theirs.__constants__
        for name in ("transposed", "output_padding", "_reversed_padding_repeated_twice"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert list(ours._parameters) == list(theirs._parameters)
        assert (ours.bias is None) == (theirs.bias is None)


def test_the_usual_initialisation_walks_find_it():
    found = [module for module in nn.Sequential(_pair()[0]).modules() if isinstance(module, nn.Conv2d)]
    assert len(found) == 1


def test_memory_format_of_input_and_weight():
    """channels_last out if either is; the fake kernel, the gradients and unbatched images follow PyTorch too."""
    for formats in [(a, b) for a in (0, 1) for b in (0, 1)]:
        ours, theirs = _pair()
        image = torch.randn(2, 8, 7, 6)
        if formats[0]:
            image = image.to(memory_format=torch.channels_last)
        if formats[1]:
            ours, theirs = (m.to(memory_format=torch.channels_last) for m in (ours, theirs))
        assert ours(image).stride() == theirs(image).stride()
        assert ours(image).is_contiguous(memory_format=torch.channels_last) == any(formats)
        assert ours(image[0]).stride() == theirs(image[0]).stride()
    converted = nn.utils.convert_conv2d_weight_memory_format(nn.Sequential(ours), torch.channels_last)
    assert converted[0].weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_autocast_training_step(dtype, memory_format):
    ours, theirs = _pair()
    image = torch.randn(2, 8, 7, 6).contiguous(memory_format=memory_format)
    outputs = []
    for module in (ours, theirs):
        with torch.autocast("cpu", dtype):
            outputs.append(module(image))
        outputs[-1].float().sum().backward()
    assert outputs[0].dtype == outputs[1].dtype == dtype
    assert outputs[0].stride() == outputs[1].stride()
    torch.testing.assert_close(*outputs)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert a.grad.dtype == torch.float32
        torch.testing.assert_close(a.grad, b.grad, rtol=2e-2, atol=2e-2)


def test_autocast_of_mixed_dtypes():
    image, weight = torch.randn(1, 8, 6, 6), torch.randn(8, 2, 3, 3)
    for one, other in (
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float64, torch.float64),
    ):
        args = (image.to(one), weight.to(other), None, 1, 1, 1, 4)
        with torch.autocast("cpu", torch.bfloat16):
            ours, theirs = grouped_conv2d(*args), F.conv2d(*args)
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs)
    with torch.autocast("cpu", torch.bfloat16):
        for convolve in (grouped_conv2d, F.conv2d):
            with pytest.raises(RuntimeError, match="expected scalar type Double but found BFloat16"):
                convolve(image.double(), weight, None, 1, 1, 1, 4)


def test_settings_of_any_integer_type():
    """Whole numbers that are no int go to PyTorch, which takes some."""
    image, weight = torch.randn(1, 8, 6, 6), torch.randn(8, 2, 3, 3)
    for stride in (torch.tensor(2), [2], torch.Size([1, 2])):
        kwargs = {"stride": stride, "padding": 1, "groups": 4}
        torch.testing.assert_close(grouped_conv2d(image, weight, **kwargs), F.conv2d(image, weight, **kwargs))
    for convolve in (grouped_conv2d, F.conv2d):
        with pytest.raises(TypeError, match="invalid combination of arguments"):
            convolve(image, weight, None, True, 1, 1, 4)
    assert "not of whole numbers" in explain("fprop", image, weight, stride=1.5, groups=4).reason


def test_sync_batch_norm_conversion():
    model = nn.Sequential(_pair()[0], nn.BatchNorm2d(8))
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert synced[0] is model[0]
    assert isinstance(synced[1], nn.SyncBatchNorm)


@pytest.mark.parametrize(
    "apply",
    [
        nn.utils.parametrizations.weight_norm,
        nn.utils.parametrizations.spectral_norm,
        lambda module: prune.l1_unstructured(module, "weight", 0.5),
        lambda module: parametrize.register_parametrization(module, "weight", nn.Tanh()),
    ],
    ids=["weight_norm", "spectral_norm", "prune", "parametrize"],
)
def test_reparametrised_weights(apply):
    modules, image = _pair(), torch.randn(2, 8, 6, 6)
    results = []
    for module in modules:
        torch.manual_seed(0)
        apply(module)
        with OperatorLog() as log:
            output = module(image)
        results.append((output, torch.autograd.grad(output.square().sum(), list(module.parameters()))))
        assert ("grouped_conv2d" in log.names) == (module is modules[0])
    torch.testing.assert_close(*results)


def test_whole_modules_survive_saving():
    ours, image = _pair()[0], torch.randn(1, 8, 5, 5)
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(image), ours(image))
    lazy = copy.deepcopy(LazyGroupedConv2d(8, 3, padding=1, groups=4))
    assert type(lazy) is LazyGroupedConv2d
    assert lazy(image).shape == (1, 8, 5, 5)


def test_meta_to_empty_assign_and_functional_call():
    ours, image = _pair()[0], torch.randn(1, 8, 5, 5)
    state = ours.state_dict()
    empty = GroupedConv2d(8, 8, 3, padding=1, groups=4, device="meta")
    filled = copy.deepcopy(empty).to_empty(device="cpu")
    filled.load_state_dict(state)
    empty.load_state_dict(state, assign=True)
    for module in (filled, empty):
        assert torch.equal(module(image), ours(image))
    doubled = {name: 2 * value for name, value in state.items()}
    torch.testing.assert_close(functional_call(ours, doubled, (image,)), 2 * ours(image))
    skipped = nn.utils.skip_init(GroupedConv2d, 8, 8, 3, padding=1, groups=4)
    skipped.load_state_dict(state)
    assert torch.equal(skipped(image), ours(image))


def test_casts_of_the_whole_module():
    for cast in ("half", "bfloat16", "double"):
        ours, theirs = (getattr(module, cast)() for module in _pair())
        image = torch.randn(2, 8, 6, 6).to(ours.weight.dtype)
        torch.testing.assert_close(ours(image), theirs(image))
        with pytest.raises(RuntimeError) as expected:
            theirs(image.to(torch.float32 if cast != "double" else torch.float16))
        with pytest.raises(RuntimeError, match="should be the same") as raised:
            ours(image.to(torch.float32 if cast != "double" else torch.float16))
        assert str(raised.value) == str(expected.value)


def test_default_dtype_and_device():
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            module = GroupedConv2d(8, 8, 3, groups=4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert (module.weight.dtype, module.weight.device.type) == (torch.float64, "meta")


def test_hooks_of_autograd_see_every_step():
    module, image = _pair()[0], torch.randn(2, 8, 6, 6)
    seen = []
    module.register_full_backward_hook(lambda *_: seen.append("module"))
    module.weight.register_post_accumulate_grad_hook(lambda _: seen.append("weight"))
    with torch.autograd.graph.save_on_cpu(), torch.autograd.detect_anomaly(check_nan=True):
        module(image.requires_grad_()).sum().backward()
    assert sorted(seen) == ["module", "weight"]
    module.weight.grad = None
    with pytest.raises(RuntimeError, match="returned nan values"), torch.autograd.detect_anomaly(check_nan=True):
        (module(image) * float("nan")).sum().backward()


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module, image = GroupedConv2d(8, 8, 3, padding=1, groups=4), torch.randn(2, 8, 6, 6)
        module(image).sum().backward()
        module(image[0]).sum().backward()


def test_no_channels():
    """Without inputs there are no outputs, whatever the module says; without outputs its call is an error."""
    for cls in (GroupedConv2d, nn.Conv2d):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # there is nothing to initialise
            inputless, outputless = cls(0, 8, 3, groups=4), cls(8, 0, 3, groups=4)
        assert inputless(torch.randn(2, 0, 6, 6)).shape == (2, 0, 4, 4)
        with pytest.raises(RuntimeError, match="Given groups=4, expected weight to be at least 4 at dimension 0"):
            outputless(torch.randn(2, 8, 6, 6))


def test_calls_that_are_no_convolution():
    for cls in (GroupedConv2d, nn.Conv2d):
        with pytest.raises(ValueError, match="out_channels must be divisible by groups"):
            cls(8, 6, 3, groups=4)
        module = cls(8, 8, 3, groups=4)
        with pytest.raises(TypeError):
            module(None)
        with pytest.raises(RuntimeError, match=r"Expected 3D \(unbatched\) or 4D \(batched\) input to conv2d"):
            module(torch.randn(5, 5))


@pytest.mark.slow
@pytest.mark.usefixtures("own_kernels")
@pytest.mark.parametrize("channels_last", [False, True])
def test_more_than_2_to_the_31_elements(channels_last):
    """A batch that is zero, and so takes hardly any memory, but for its last images, which must come out as alone."""
    few, batch = 3, 2**31 // (128 * 56 * 56) + 3
    available = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    if int(available[1]) < 8e6:
        pytest.skip(f"needs 8 GB of memory: {available[0]}")
    weight = torch.randint(-1, 2, (128, 4, 3, 3)).bfloat16().requires_grad_()
    results = []
    for n in (few, batch):
        leaves = []
        for size in (56, 28):
            shape = (n, size, size, 128) if channels_last else (n, 128, size, size)
            leaf = torch.zeros(shape, dtype=torch.bfloat16)
            generator = torch.Generator().manual_seed(size)
            leaf[-few:] = torch.randint(-1, 2, (few, *shape[1:]), generator=generator)
            leaves.append(leaf.permute(0, 3, 1, 2) if channels_last else leaf)
        output = grouped_conv2d(leaves[0].requires_grad_(), weight, None, 2, 1, 1, 32)
        grads = torch.autograd.grad(output, (leaves[0], weight), leaves[1])
        results.append([output[-few:].detach().clone(), grads[0][-few:].clone(), grads[1]])
        assert (leaves[0].numel() > 2**31) == (n == batch)
    assert all(torch.equal(ours, expected) for ours, expected in zip(*results, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [3, 4, 8, 24])
def test_the_order_of_weights_in_memory_changes_nothing(width, dtype):
    """Kernels know two orders; in others they fetch weights one by one."""
    input, weight = torch.randn(2, 4 * width, 7, 6).to(dtype), torch.randn(4 * width, width, 3, 3).to(dtype)
    other = weight.permute(3, 0, 2, 1).contiguous().permute(1, 3, 2, 0)
    assert not any(
        other.is_contiguous(memory_format=memory_format)
        for memory_format in (torch.contiguous_format, torch.channels_last)
    )
    results = []
    for each in (weight, other):
        leaf = input.clone().requires_grad_()
        output = torch.ops.resnext_kernels.grouped_conv2d(leaf, each, None, [1, 1], [1, 1], [1, 1], 4)
        results.append((output, *torch.autograd.grad(output.sum(), leaf)))
    assert all(map(torch.equal, *results))
