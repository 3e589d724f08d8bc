"""The three forms of the block are one function, forward and backward, for every setting of the paper."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from resnext_kernels import GroupedConv2d
from resnext_kernels.block import ConcatenatedBlock, GroupedBlock, SummedBlock, convert_block

SETTINGS = [(1, 64), (2, 40), (4, 24), (8, 14), (32, 4)]
FORMS = [SummedBlock, ConcatenatedBlock, GroupedBlock]
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)


def _block(cardinality, base_width, stride=1, shortcut=True, form=GroupedBlock, **variant):
    downsample = nn.Sequential(nn.Conv2d(32, 256, 1, stride, bias=False), nn.BatchNorm2d(256)) if shortcut else None
    block = form(
        32 if shortcut else 256, 64, cardinality, base_width, stride, downsample=downsample, **variant
    ).double()
    for module in block.modules():  # nothing at its default, so that a forgotten tensor shows
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.2)
            module.num_batches_tracked.fill_(7)
    return block


def _run(block, image, grad):
    image = image.clone().requires_grad_()
    output = block(image)
    output.backward(grad)
    gradients = block.to_grouped({name: p.grad for name, p in block.named_parameters()})
    return {"output": output.detach(), "input": image.grad, **gradients}


def _assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape, name
        error = (ours[name] - expected).abs().max()
        assert error <= 1e-12 * expected.abs().max(), name


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("stride", "shortcut"), [(1, True), (2, True), (1, False)])
@pytest.mark.parametrize(("cardinality", "base_width"), SETTINGS)
def test_three_forms_agree(cardinality, base_width, stride, shortcut, training):
    grouped = _block(cardinality, base_width, stride, shortcut).train(training)
    image = torch.randn(2, 32 if shortcut else 256, 6, 5).double()
    blocks = [convert_block(grouped, form) for form in FORMS]
    grad = torch.randn_like(grouped(image))
    results = []
    for block in blocks:
        results.append(_run(block, image, grad))
    _assert_same(results[0], results[2])
    _assert_same(results[1], results[2])
    if training:  # the forms learn the same running statistics
        statistics = [{k: v.double() for k, v in b.to_grouped(dict(b.named_buffers())).items()} for b in blocks]
        _assert_same(statistics[0], statistics[2])
        _assert_same(statistics[1], statistics[2])


def test_three_forms_agree_with_squeeze_and_excitation_and_the_stride_on_the_first_convolution():
    grouped = _block(8, 14, 2, se_ratio=16, style="caffe")
    assert (grouped.conv1.stride, grouped.conv2.stride) == ((2, 2), (1, 1))
    image = torch.randn(2, 32, 6, 5).double()
    blocks = [convert_block(grouped, form) for form in FORMS]
    grad = torch.randn_like(grouped(image))
    results = [_run(block, image, grad) for block in blocks]
    _assert_same(results[0], results[2])
    _assert_same(results[1], results[2])


@forms
@pytest.mark.parametrize("other", FORMS, ids=lambda form: form.__name__)
def test_conversion_is_exact_both_ways(form, other):
    block = _block(8, 14, form=form)
    converted = convert_block(block, other)
    assert type(converted) is other
    back = convert_block(converted, form)
    assert list(back.state_dict()) == list(block.state_dict())
    for a, b in zip(back.state_dict().values(), block.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_conversion_keeps_device_dtype_and_mode():
    converted = convert_block(_block(4, 24).half().eval(), SummedBlock)
    assert {p.dtype for p in converted.parameters()} == {torch.float16}
    assert not converted.training
    with torch.device("meta"):
        block = GroupedBlock(32, 64, 4, 24, downsample=nn.Conv2d(32, 256, 1))
    assert convert_block(block, SummedBlock).branches[0].conv1.weight.is_meta


def test_branch_i_is_group_i():
    block = _block(4, 24)
    branch, rows = convert_block(block, SummedBlock).branches[2], slice(48, 72)
    assert torch.equal(branch.conv1.weight, block.conv1.weight[rows])
    assert torch.equal(branch.bn1.running_mean, block.bn1.running_mean[rows])
    assert torch.equal(branch.conv2.weight, block.conv2.weight[rows])
    assert torch.equal(branch.bn2.weight, block.bn2.weight[rows])
    assert torch.equal(branch.conv3.weight, block.conv3.weight[:, rows])
    assert torch.equal(branch.bn2.num_batches_tracked, block.bn2.num_batches_tracked)


@pytest.mark.parametrize(("stride", "shortcut"), [(1, True), (2, True), (1, False)])
@pytest.mark.parametrize(("cardinality", "base_width"), SETTINGS)
def test_grouped_form_is_torchvisions_bottleneck(cardinality, base_width, stride, shortcut):
    block = _block(cardinality, base_width, stride, shortcut)
    channels, downsample = block.conv1.in_channels, copy.deepcopy(block.downsample)
    theirs = torchvision.models.resnet.Bottleneck(channels, 64, stride, downsample, cardinality, base_width).double()
    assert list(theirs.state_dict()) == list(block.state_dict())
    theirs.load_state_dict(block.state_dict())
    image = torch.randn(2, channels, 6, 5).double()
    _assert_same({"output": block(image)}, {"output": theirs(image)})


@forms
def test_conversion_keeps_settings_frozen_parameters_and_dtypes_and_draws_nothing(form):
    block = _block(4, 24).float()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps, module.momentum = 1e-2, None
            module.eval()
    block.bn1.double()
    block.conv3.requires_grad_(False)
    before = torch.get_rng_state()
    converted = convert_block(block, form)
    assert torch.equal(torch.get_rng_state(), before)
    assert converted.training
    for name, module in converted.named_modules():
        kind = name.split(".")[-1]
        if isinstance(module, nn.BatchNorm2d):
            assert (module.eps, module.momentum, module.training) == (1e-2, None, False)
        for parameter in module.parameters(recurse=False):
            assert parameter.dtype == (torch.float64 if kind == "bn1" else torch.float32)
            assert parameter.requires_grad == (kind != "conv3")


@forms
def test_converted_block_shares_nothing(form):
    block = _block(4, 24)
    memory = {tensor.data_ptr() for tensor in block.state_dict().values()}
    converted = convert_block(block, form)
    assert memory.isdisjoint(tensor.data_ptr() for tensor in converted.state_dict().values())
    converted.eval()
    assert all(module.training for module in block.modules())


def test_conversion_refuses_what_it_cannot_keep():
    with pytest.raises(TypeError, match="expected block to be a Block, got Conv2d"):
        convert_block(nn.Conv2d(8, 8, 3), SummedBlock)
    grouped_norm = GroupedBlock(256, 64, 4, 24, norm_layer=lambda channels: nn.GroupNorm(8, channels))
    with pytest.raises(ValueError, match=r"expected the norms of block to be nn\.BatchNorm2d .*, got GroupNorm"):
        convert_block(grouped_norm, SummedBlock)
    block = _block(4, 24)
    block.bn2.eps = 1e-2
    with pytest.raises(ValueError, match=r"the same settings, got .*'eps': 1e-05.* and .*'eps': 0\.01"):
        convert_block(block, SummedBlock)
    branched = convert_block(_block(4, 24), SummedBlock)
    branched.branches[1].bn1.num_batches_tracked += 1
    with pytest.raises(ValueError, match=r"expected bn1\.num_batches_tracked to be the same in all branches"):
        convert_block(branched, GroupedBlock)
    branched = convert_block(_block(4, 24), SummedBlock)
    branched.branches[3].conv2.requires_grad_(False)
    with pytest.raises(ValueError, match=r"expected conv2\.weight to be the same in all branches"):
        convert_block(branched, ConcatenatedBlock)


def test_forms_are_what_the_paper_draws():
    grouped, summed, concatenated = (
        convert_block(_block(8, 14), form) for form in (GroupedBlock, SummedBlock, ConcatenatedBlock)
    )
    assert isinstance(grouped.conv2, GroupedConv2d)
    assert grouped.conv2.groups == 8
    assert len(summed.branches) == len(concatenated.branches) == 8
    assert summed.branches[0].conv3.weight.shape == (256, 14, 1, 1)
    assert concatenated.branches[0].conv3 is None
    assert concatenated.conv3.weight.shape == (256, 112, 1, 1)
    weights = [
        sum(c.weight.numel() for c in b.modules() if isinstance(c, nn.Conv2d)) for b in (grouped, summed, concatenated)
    ]
    assert len(set(weights)) == 1


@forms
def test_bad_arguments(form):
    for name in ("in_channels", "planes", "cardinality", "base_width", "stride", "dilation"):
        arguments = {"in_channels": 64, "planes": 64, "cardinality": 4, "base_width": 24, "stride": 1, "dilation": 1}
        for value in (0, -1, 2.0, True, "4"):
            with pytest.raises(ValueError, match=f"^expected {name} to be a positive integer, got {value!r}$"):
                form(**{**arguments, name: value})
    with pytest.raises(ValueError, match="expected style to be one of 'pytorch', 'caffe', got 'keras'"):
        form(64, 64, 4, 24, style="keras")
    with pytest.raises(ValueError, match="expected se_ratio to be one of None, 1, 2, 4, 8, 16, 32, got 0"):
        form(64, 64, 4, 24, se_ratio=0)
    with pytest.raises(ValueError, match="expected planes \\* base_width >= 64, got planes=8 and base_width=4"):
        form(64, 8, 32, 4)


def test_unknown_form():
    with pytest.raises(TypeError, match="expected form to be SummedBlock, ConcatenatedBlock or GroupedBlock, got"):
        convert_block(_block(4, 24), nn.Identity)
