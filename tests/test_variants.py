"""Variants of the network: against timm's and mmpretrain's, weights loaded both ways, and what they promise alone."""

import warnings

import pytest
import torch
from torch import nn

from resnext_kernels import export_weights, fuse, load_weights, network
from resnext_kernels.network import ResNeXt

timm = pytest.importorskip("timm")
DEPTHS, CARDINALITY, BASE_WIDTH = (1, 2, 1, 2), 8, 4


def ours(**variant):
    return ResNeXt(DEPTHS, CARDINALITY, BASE_WIDTH, 10, **variant).double().eval()


def timms(**variant):
    sizes = {"num_classes": 10, "cardinality": CARDINALITY, "base_width": BASE_WIDTH}
    return timm.models.resnet.ResNet(timm.models.resnet.Bottleneck, DEPTHS, **sizes, **variant).double().eval()


def mmpretrains(name="ResNeXt", **variant):
    pytest.importorskip("mmengine")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mmpretrain.models as models

    class Net(getattr(models, name)):
        arch_settings = {26: (models.backbones.resnext.Bottleneck, DEPTHS)}  # noqa: RUF012 - as in mmpretrain

    if name == "SEResNeXt":
        Net.arch_settings = {26: (models.backbones.seresnext.SEBottleneck, DEPTHS)}
    net = nn.Module()
    net.backbone = Net(26, groups=CARDINALITY, width_per_group=BASE_WIDTH, out_indices=(0, 1, 2, 3), **variant)
    net.head = nn.Module()
    net.head.fc = nn.Linear(2048, 10)
    net.forward = lambda x: net.head.fc(net.backbone(x)[-1].mean((2, 3)))
    return net.double().eval()


def randomize(model):
    """Draws everything anew, so that no key can be left out unnoticed."""
    for key, value in model.state_dict().items():
        if value.is_floating_point():
            value.uniform_(0.5, 1) if "running_var" in key else value.normal_(0, 0.1)
    return model


def images(height=64, width=64):
    return torch.randn(2, 3, height, width, dtype=torch.float64)


def assert_same_function(mine, theirs, source):
    """Weights go both ways, and outputs and gradients agree."""
    assert load_weights(mine, randomize(theirs).state_dict()) == source
    randomize(mine)
    theirs.load_state_dict(export_weights(mine, source), strict=True)
    x, outputs = images(), []
    for net in (mine, theirs):
        outputs.append(net(x))
        outputs[-1].square().sum().backward()
    output, expected = (y.detach() for y in outputs)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-10 * float(expected.abs().max()))
    names = dict(zip(mine.state_dict(), export_weights(mine, source), strict=True))
    for name, parameter in mine.named_parameters():
        expected = theirs.get_parameter(names[name]).grad
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-9 * float(expected.abs().max()), msg=name)


SE = {"attn_layer": "se"}
TIMM = {
    "plain": ({}, {}),
    "deep stem": ({"stem": "deep"}, {"stem_type": "deep", "stem_width": 32}),
    "tiered stem": ({"stem": "deep_tiered"}, {"stem_type": "deep_tiered", "stem_width": 32}),
    "average pooling": ({"avg_down": True}, {"avg_down": True}),
    "squeeze and excitation": ({"se_ratio": 16}, {"block_args": SE}),
    "all": (
        {"stem": "deep", "avg_down": True, "se_ratio": 16},
        {"stem_type": "deep", "stem_width": 32, "avg_down": True, "block_args": SE},
    ),
    "dilation": ({"replace_stride_with_dilation": (False, True, True)}, {"output_stride": 8}),
}
GN = {"type": "GN", "num_groups": 4}
MMPRETRAIN = {
    "plain": ("ResNeXt", {}, {}),
    "caffe": ("ResNeXt", {"style": "caffe"}, {"style": "caffe"}),
    "deep stem": ("ResNeXt", {"stem": "deep"}, {"deep_stem": True}),
    "average pooling": ("ResNeXt", {"avg_down": True}, {"avg_down": True}),
    "dilation": (
        "ResNeXt",
        {"replace_stride_with_dilation": (False, True, True), "dilation_rule": "mmpretrain", "avg_down": True},
        {"strides": (1, 2, 1, 1), "dilations": (1, 1, 2, 4), "avg_down": True},
    ),
    "group norm": (
        "ResNeXt",
        {"norm_layer": lambda channels: nn.GroupNorm(4, channels), "stem": "deep"},
        {"norm_cfg": GN, "deep_stem": True},
    ),
    "squeeze and excitation": ("SEResNeXt", {"se_ratio": 16}, {}),
    "all": (
        "SEResNeXt",
        {"se_ratio": 16, "stem": "deep", "avg_down": True, "style": "caffe"},
        {"deep_stem": True, "avg_down": True, "style": "caffe"},
    ),
}


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    variant, theirs = TIMM[name]
    mine, theirs = ours(**variant), timms(**theirs)
    assert list(mine.state_dict()) == list(theirs.state_dict())
    assert_same_function(mine, theirs, "torchvision")


@pytest.mark.parametrize("name", MMPRETRAIN)
def test_mmpretrain(name):
    kind, variant, theirs = MMPRETRAIN[name]
    assert_same_function(ours(**variant), mmpretrains(kind, **theirs), "mmpretrain")


# The keys of mmpretrain 1.2.0 for its variants, so that they are held to where it is not installed.
NAMES = {
    "conv1.0.weight": "backbone.stem.0.conv.weight",
    "conv1.1.running_var": "backbone.stem.0.bn.running_var",
    "conv1.3.weight": "backbone.stem.1.conv.weight",
    "conv1.4.bias": "backbone.stem.1.bn.bias",
    "conv1.6.weight": "backbone.stem.2.conv.weight",
    "bn1.weight": "backbone.stem.2.bn.weight",
    "layer1.0.downsample.1.weight": "backbone.layer1.0.downsample.0.weight",
    "layer1.0.downsample.2.running_mean": "backbone.layer1.0.downsample.1.running_mean",
    "layer2.0.downsample.1.weight": "backbone.layer2.0.downsample.1.weight",
    "layer2.0.downsample.2.bias": "backbone.layer2.0.downsample.2.bias",
    "layer3.0.se.fc1.weight": "backbone.layer3.0.se_layer.conv1.conv.weight",
    "layer3.0.se.fc2.bias": "backbone.layer3.0.se_layer.conv2.conv.bias",
    "fc.bias": "head.fc.bias",
}


def test_names_of_mmpretrain():
    model = ours(stem="deep", avg_down=True, se_ratio=16)
    names = dict(zip(model.state_dict(), export_weights(model, "mmcls"), strict=True))
    assert {key: names[key] for key in NAMES} == NAMES
    grouped = ours(norm_layer=lambda channels: nn.GroupNorm(4, channels))
    names = dict(zip(grouped.state_dict(), export_weights(grouped, "mmpretrain"), strict=True))
    assert names["layer1.0.bn2.weight"] == "backbone.layer1.0.gn2.weight"
    assert names["layer1.0.downsample.1.weight"] == "backbone.layer1.0.downsample.1.weight"


@pytest.mark.parametrize("format", ["cadene", "prlz77"])
@pytest.mark.parametrize("variant", [{"stem": "deep"}, {"avg_down": True}, {"se_ratio": 16}], ids=str)
def test_older_formats_know_plain_networks_only(variant, format):
    model = ours(**variant)
    with pytest.raises(ValueError, match=f"{format} has names for plain networks only, and this ResNeXt has "):
        export_weights(model, format)
    with pytest.raises(ValueError, match=f"{format} has names for plain networks only, and this ResNeXt has "):
        load_weights(model, model.state_dict(), format)
    with pytest.raises(ValueError, match="the closest of torchvision, mmpretrain: 1 unexpected: other"):
        load_weights(model, {**model.state_dict(), "other": torch.zeros(1)})


@pytest.mark.parametrize("name", ["resnext50d_32x4d", "seresnext50_32x4d", "seresnext101_32x4d"])
def test_named_networks_are_timms(name):
    with torch.device("meta"):
        mine, theirs = getattr(network, name)().state_dict(), timm.create_model(name).state_dict()
    assert [(k, v.shape, v.dtype) for k, v in mine.items()] == [(k, v.shape, v.dtype) for k, v in theirs.items()]


def test_odd_sizes_and_fusion_of_a_variant():
    """Pooling on the shortcut rounds up, as the strided convolution does; fused, the network is the same function."""
    model = randomize(ours(stem="deep", avg_down=True, se_ratio=16))
    fused, x = fuse(model), images(45, 51)
    with torch.no_grad():
        torch.testing.assert_close(fused(x), model(x), rtol=1e-10, atol=1e-12)


# --- feature maps


def test_feature_maps():
    model = randomize(ours())
    maps = ours(out_indices=(3, 0))
    assert load_weights(maps, model.state_dict()) == "torchvision"
    expected = {}
    for i in (0, 3):
        model.get_submodule(f"layer{i + 1}").register_forward_hook(lambda m, x, y, i=i: expected.update({i: y}))
    x = images()
    with torch.no_grad():
        model(x)
        result = maps(x)
    assert type(result) is tuple
    assert [tuple(y.shape) for y in result] == [(2, 2048, 2, 2), (2, 256, 16, 16)]
    assert all(torch.equal(y, expected[i]) for y, i in zip(result, (3, 0), strict=True))


def test_feature_maps_do_not_run_what_comes_after():
    maps = ours(out_indices=(1,))
    maps.layer3.register_forward_hook(lambda *_: pytest.fail("stage 3 ran"))
    assert maps(images())[0].shape == (2, 512, 8, 8)


def test_a_model_without_a_classifier_still_needs_all_else():
    weights = ours().state_dict()
    del weights["layer4.0.conv1.weight"]
    with pytest.raises(ValueError, match=r"1 missing: layer4\.0\.conv1\.weight$"):
        load_weights(ours(out_indices=(0,)), weights)


# --- frozen stages


@pytest.mark.parametrize("stages", [-1, 0, 2, 4])
def test_frozen_stages(stages):
    model = ours(stem="deep", frozen_stages=stages)
    frozen = ["conv1", "bn1", *(f"layer{i}" for i in range(1, stages + 1))] if stages >= 0 else []
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), 0.1)
    model.train()
    model(images()).square().sum().backward()
    optimizer.step()
    same = {key for key, value in model.state_dict().items() if torch.equal(value, before[key])}
    assert same == {key for key in before if key.startswith(tuple(f"{name}." for name in frozen))}
    assert all(model.get_submodule(name).training is False for name in frozen)
    assert model.layer4.training == ("layer4" not in frozen)


# --- activation checkpointing


@pytest.mark.parametrize("variant", [{}, {"se_ratio": 16, "frozen_stages": 1}], ids=str)
def test_checkpointed_training_is_the_same_to_the_bit(variant):
    plain, spare = ours(**variant).train(), ours(**variant, activation_checkpointing=True).train()
    spare.load_state_dict(plain.state_dict())
    x, runs, results = images(), [0, 0], []
    for i, model in enumerate((plain, spare)):
        model.layer4[1].conv2.register_forward_hook(lambda *_, i=i: runs.__setitem__(i, runs[i] + 1))
        model(x).square().sum().backward()
        state = {f"grad of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
        results.append({**state, **model.state_dict()})
    assert runs == [1, 2]  # it was computed again
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


def test_checkpointing_keeps_less():
    sizes = []
    for model in (ours(), ours(activation_checkpointing=True)):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.nbytes) or t, lambda t: t):
            model.train()(images())
        sizes.append(sum(kept))
    assert sizes[1] < sizes[0] / 2


def test_checkpointing_leaves_inference_alone():
    model = ours(activation_checkpointing=True)
    x = images()
    with torch.no_grad():
        assert torch.equal(model.train()(x), model(x))
    fuse(model.eval())
