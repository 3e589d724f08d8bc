"""The three forms of the block are one function, forward and backward, for every setting of the paper."""

import pytest
import torch
from torch import nn

from resnext_kernels import GroupedConv2d
from resnext_kernels.block import ConcatenatedBlock, GroupedBlock, SummedBlock, convert_block

SETTINGS = [(1, 64), (2, 40), (4, 24), (8, 14), (32, 4)]
FORMS = [SummedBlock, ConcatenatedBlock, GroupedBlock]
forms = pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)


def _block(cardinality, base_width, stride=1, shortcut=True, form=GroupedBlock):
    downsample = nn.Sequential(nn.Conv2d(32, 256, 1, stride, bias=False), nn.BatchNorm2d(256)) if shortcut else None
    block = form(32 if shortcut else 256, 64, cardinality, base_width, stride, downsample=downsample).double()
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
        block.zero_grad()  # the module on the shortcut is shared
        results.append(_run(block, image, grad))
    _assert_same(results[0], results[2])
    _assert_same(results[1], results[2])
    if training:  # the forms learn the same running statistics
        statistics = [{k: v.double() for k, v in b.to_grouped(dict(b.named_buffers())).items()} for b in blocks]
        own = [{k: v for k, v in s.items() if not k.startswith("downsample")} for s in statistics]
        _assert_same(own[0], own[2])
        _assert_same(own[1], own[2])


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
        with pytest.raises(ValueError, match=f"expected {name} to be positive, got 0"):
            form(**{**arguments, name: 0})
    with pytest.raises(ValueError, match="expected planes \\* base_width >= 64, got planes=8 and base_width=4"):
        form(64, 8, 32, 4)


def test_unknown_form():
    with pytest.raises(TypeError, match="expected form to be SummedBlock, ConcatenatedBlock or GroupedBlock, got"):
        convert_block(_block(4, 24), nn.Identity)
