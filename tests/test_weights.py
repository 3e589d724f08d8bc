"""Weights of every format give the outputs, bit for bit, of the network that they come from; misfits change nothing.

The networks of the two older formats are built here from their published descriptions, module by module.
"""

import pickle
import re

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from resnext_kernels import export_weights, load_weights
from resnext_kernels.network import ResNeXt, resnext50_32x4d
from resnext_kernels.weights import FORMATS

DEPTHS, CARDINALITY, BASE_WIDTH = (1, 2, 1, 1), 8, 8


def small(**arguments):
    """A ResNeXt with every kind of key, its statistics and weights unlike any default."""
    torch.manual_seed(0)
    return randomize(ResNeXt(DEPTHS, CARDINALITY, BASE_WIDTH, num_classes=10, **arguments))


def randomize(model):
    """Draws everything anew, so that no key can be left out unnoticed."""
    for key, value in model.state_dict().items():
        if value.dtype == torch.int64:
            value.fill_(len(key))
        else:
            value.uniform_(0.5, 1) if "running_var" in key else value.normal_(0, 0.1)
    return model.eval()


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def same_outputs(model, other):
    with torch.no_grad():
        torch.testing.assert_close(model(images()), other(images()), rtol=0, atol=0)


# --- networks that others wrote


class Branches(nn.Sequential):
    """Cadene's LambdaMap: the outputs of all children."""

    def forward(self, input):
        return [child(input) for child in self]


class Sum(nn.Module):
    """Cadene's LambdaReduce."""

    def forward(self, inputs):
        return inputs[0] + inputs[1]


def conv(inputs, outputs, size=1, stride=1, groups=1):
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)


class Cadene(nn.Module):
    """The port of the Lua networks: nested nn.Sequentials, named by position."""

    def __init__(self):
        super().__init__()
        stages = [conv(3, 64, 7, 2), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        inputs = 64
        for stage, depth in enumerate(DEPTHS):
            blocks = []
            width, outputs = CARDINALITY * BASE_WIDTH << stage, 256 << stage
            for i in range(depth):
                stride = 2 if stage and not i else 1
                head = nn.Sequential(
                    conv(inputs, width),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                    conv(width, width, 3, stride, CARDINALITY),
                    nn.BatchNorm2d(width),
                    nn.ReLU(),
                )
                path = nn.Sequential(head, conv(width, outputs), nn.BatchNorm2d(outputs))
                shortcut = (
                    nn.Identity() if i else nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
                )
                blocks.append(nn.Sequential(Branches(path, shortcut), Sum(), nn.ReLU()))
                inputs = outputs
            stages.append(nn.Sequential(*blocks))
        self.features = nn.Sequential(*stages)
        self.last_linear = nn.Linear(inputs, 10)

    def forward(self, input):
        return self.last_linear(self.features(input).mean((2, 3)))


class Prlz77Block(nn.Module):
    def __init__(self, inputs, width, outputs, stride):
        super().__init__()
        self.conv_reduce, self.bn_reduce = conv(inputs, width), nn.BatchNorm2d(width)
        self.conv_conv, self.bn = conv(width, width, 3, stride, 8), nn.BatchNorm2d(width)
        self.conv_expand, self.bn_expand = conv(width, outputs), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if inputs != outputs:
            self.shortcut.add_module("shortcut_conv", conv(inputs, outputs, 1, stride))
            self.shortcut.add_module("shortcut_bn", nn.BatchNorm2d(outputs))

    def forward(self, input):
        output = self.bn_reduce(self.conv_reduce(input)).relu()
        output = self.bn(self.conv_conv(output)).relu()
        return (self.shortcut(input) + self.bn_expand(self.conv_expand(output))).relu()


class Prlz77(nn.Module):
    """ResNeXt-29 8x64d for CIFAR."""

    def __init__(self):
        super().__init__()
        self.conv_1_3x3, self.bn_1 = conv(3, 64, 3), nn.BatchNorm2d(64)
        inputs = 64
        for stage in (1, 2, 3):
            blocks, outputs = nn.Sequential(), 128 << stage
            for i in range(3):
                block = Prlz77Block(inputs, 256 << stage, outputs, 2 if stage > 1 and not i else 1)
                blocks.add_module(f"stage_{stage}_bottleneck_{i}", block)
                inputs = outputs
            setattr(self, f"stage_{stage}", blocks)
        self.classifier = nn.Linear(1024, 10)

    def forward(self, input):
        output = self.bn_1(self.conv_1_3x3(input)).relu()
        output = self.stage_3(self.stage_2(self.stage_1(output)))
        return self.classifier(nn.functional.adaptive_avg_pool2d(output, 1).flatten(1))


def torchvision_net():
    return pytest.importorskip("torchvision").models.ResNet(
        pytest.importorskip("torchvision").models.resnet.Bottleneck,
        DEPTHS,
        num_classes=10,
        groups=CARDINALITY,
        width_per_group=BASE_WIDTH,
    )


def timm_net():
    timm = pytest.importorskip("timm")
    block = timm.models.resnet.Bottleneck
    return timm.models.resnet.ResNet(
        block, DEPTHS, num_classes=10, cardinality=CARDINALITY, base_width=BASE_WIDTH, zero_init_last=False
    )


@pytest.mark.parametrize(
    ("make", "format"), [(torchvision_net, "torchvision"), (timm_net, "torchvision"), (Cadene, "cadene")]
)
def test_networks_of_others(make, format, tmp_path):
    theirs, ours = randomize(make()), small()
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    assert load_weights(ours, tmp_path / "weights.pth") == format
    with torch.no_grad():
        torch.testing.assert_close(ours(images()), theirs(images()), rtol=1e-4, atol=1e-5)
    again = make().eval()
    again.load_state_dict(export_weights(ours, format))
    same_outputs(again, theirs)


def test_networks_for_cifar():
    from resnext_kernels.network import resnext29_8x64d

    theirs, ours = randomize(Prlz77()), resnext29_8x64d().eval()
    assert load_weights(ours, nn.DataParallel(theirs).state_dict()) == "prlz77"
    with torch.no_grad():
        input = images()[..., :32, :32]
        torch.testing.assert_close(ours(input), theirs(input), rtol=1e-4, atol=1e-5)
    theirs.load_state_dict(export_weights(ours, "prlz77"))


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model, other = small(), small(in_channels=3)
    randomize(other)
    safetensors.save_file(export_weights(model, "timm"), tmp_path / "model.safetensors")
    assert load_weights(other, tmp_path / "model.safetensors", source="timm") == "torchvision"
    same_outputs(model, other)


# --- every format and wrapping


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("source", ["auto", "named"])
def test_round_trip(format, source):
    model, other = small(), randomize(ResNeXt(DEPTHS, CARDINALITY, BASE_WIDTH, num_classes=10))
    weights = export_weights(model, format)
    assert len(weights) == len(model.state_dict())
    assert load_weights(other, weights, "auto" if source == "auto" else format) == format
    for key, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[key], value), key


def averaged(weights):
    """What torch.optim.swa_utils.AveragedModel, which torchvision's training scripts use, saves for a model."""
    state = AveragedModel(nn.Linear(1, 1)).state_dict()
    assert list(state) == ["n_averaged", "module.weight", "module.bias"]
    return {"n_averaged": state["n_averaged"], **{f"module.{key}": value for key, value in weights.items()}}


WRAPPINGS = {
    "mmengine": (False, lambda w: {"meta": {}, "state_dict": w, "optimizer": {"param_groups": []}}),
    "timm_checkpoint": (False, lambda w: {"epoch": 3, "state_dict": w, "state_dict_ema": {"no": torch.zeros(1)}}),
    "detectron": (False, lambda w: {"model": w}),
    "mmengine_ema": (
        True,
        lambda w: {
            "state_dict": {"no": torch.zeros(1)},
            "ema_state_dict": {"steps": torch.tensor(7), **{f"module.{k}": v for k, v in w.items()}},
        },
    ),
    "averaged_model": (True, lambda w: {"model": {"no": torch.zeros(1)}, "model_ema": averaged(w)}),
    "train_imagenet": (True, lambda w: {"model": {"no": torch.zeros(1)}, "average": averaged(w), "step": 3}),
    "data_parallel": (False, lambda w: {f"module.{key}": value for key, value in w.items()}),
    "compiled": (False, lambda w: {f"_orig_mod.module.{key}": value for key, value in w.items()}),
    "before_1_0": (False, lambda w: {key: value for key, value in w.items() if "num_batches" not in key}),
}


@pytest.mark.parametrize("format", ["torchvision", "mmpretrain"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappings(wrapping, format, tmp_path):
    ema, wrap = WRAPPINGS[wrapping]
    model, other = small(), small(zero_init_residual=True)
    randomize(other)
    torch.save(wrap(export_weights(model, format)), tmp_path / "checkpoint.pth")
    assert load_weights(other, tmp_path / "checkpoint.pth", ema=ema) == format
    same_outputs(model, other)


# --- misfits


def test_a_failed_load_changes_nothing():
    model = small()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = {key: value + 1 for key, value in before.items()}
    del weights["layer4.0.bn3.weight"]
    with pytest.raises(ValueError, match="does not fit"):
        load_weights(model, weights)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("format", FORMATS)
def test_missing_and_unexpected_keys_are_named_as_in_the_source(format):
    model = small()
    weights = export_weights(model, format)
    renamed = FORMATS[format]("layer1.0.conv2.weight", dict(model.named_modules()))
    weights["something.else"] = weights.pop(renamed)
    closest = f"as {format} weights, the closest of torchvision, mmpretrain, cadene, prlz77"
    expected = f"the state_dict does not fit ResNeXt {closest}: 1 missing: {renamed}; 1 unexpected: something.else"
    with pytest.raises(ValueError, match=f"^{re.escape(expected)}$"):
        load_weights(model, weights)


def test_other_networks():
    model = small()
    with pytest.raises(
        ValueError, match=r"of another shape: .*fc.weight \(expected \[10, 2048\], got \[1000, 2048\]\)"
    ):
        load_weights(model, ResNeXt(DEPTHS, CARDINALITY, BASE_WIDTH).state_dict())
    larger = resnext50_32x4d(num_classes=10).state_dict()
    more = len(larger.keys() - model.state_dict().keys())
    with pytest.raises(
        ValueError, match=rf"as torchvision .*: {more} unexpected: layer1\.1\.conv1\.weight, .*, \.\.\.; "
    ):
        load_weights(model, larger)
    with pytest.raises(ValueError, match=r"as mmpretrain weights: \d+ missing: backbone\.conv1\.weight"):
        load_weights(model, model.state_dict(), source="mmcls")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no tensors, only nothing"),
        ({"epoch": 3}, "holds no tensors, only epoch"),
        ({"model_ema": {"a": torch.zeros(1)}}, r"holds averaged weights only \(model_ema\): pass ema=True"),
        (torch.zeros(2), "to hold a dict of tensors, got Tensor"),
    ],
)
def test_files_without_weights(content, message, tmp_path):
    torch.save(content, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=message):
        load_weights(small(), tmp_path / "file.pth")


def test_bad_arguments(tmp_path):
    model = small()
    with pytest.raises(ValueError, match=r"expected source to be one of 'auto', 'torchvision', .*, got 'keras'"):
        load_weights(model, {}, source="keras")
    with pytest.raises(ValueError, match=r"expected target to be one of 'torchvision', .*, got 'auto'"):
        export_weights(model, "auto")
    with pytest.raises(ValueError, match="holds no averaged weights"):
        load_weights(model, model.state_dict(), ema=True)
    with pytest.raises(FileNotFoundError):
        load_weights(model, tmp_path / "absent.pth")


class Harmful:
    def __reduce__(self):
        return print, ("this must not be run",)


def test_files_are_data_not_programs(tmp_path, capsys):
    torch.save({"state_dict": Harmful()}, tmp_path / "file.pth")
    with pytest.raises(pickle.UnpicklingError, match="weights_only"):
        load_weights(small(), tmp_path / "file.pth")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("kind", ["pth", "safetensors"])
@pytest.mark.parametrize("damage", ["empty", "half", "no end", "text", "oversized"])
def test_damaged_files(damage, kind, tmp_path):
    model, path = small(), tmp_path / f"file.{kind}"
    if kind == "pth":
        torch.save(model.state_dict(), path)
    else:
        pytest.importorskip("safetensors.torch").save_file(model.state_dict(), path)
    content, before = path.read_bytes(), {key: value.clone() for key, value in model.state_dict().items()}
    huge = (2**62).to_bytes(8, "little")  # safetensors: the length of the header
    damaged = {"empty": b"", "half": content[: len(content) // 2], "no end": content[:-30], "text": b"<html>no</html>"}
    path.write_bytes({**damaged, "oversized": huge + content[8:]}[damage])
    with pytest.raises((ValueError, pickle.UnpicklingError), match=r"is damaged, or no file of weights|weights_only"):
        load_weights(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_changed_bit_is_found(tmp_path):
    """torch.load takes such a file; a checksum that was not written is not missed."""
    model, other, path = small(), randomize(small()), tmp_path / "file.pth"
    before = {key: value.clone() for key, value in other.state_dict().items()}
    torch.save(model.state_dict(), path)
    content = bytearray(path.read_bytes())
    content[content.index(model.fc.weight.detach().numpy().tobytes()) + 1] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["fc.weight"], model.fc.weight)
    with pytest.raises(ValueError, match=r"file\.pth is damaged, .*: the checksum of file/data/\d+ is wrong"):
        load_weights(other, path)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(model.state_dict(), path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert load_weights(other, path) == "torchvision"
    same_outputs(model, other)
