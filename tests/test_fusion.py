"""grouped_conv2d_act against its steps in PyTorch, and fuse on whole networks."""

import copy
import operator

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resnext_kernels import FusedConv2d, FusedGroupedConv2d, GroupedConv2d, convert, explain, fuse, grouped_conv2d_act
from resnext_kernels.network import resnext50_32x4d

pytestmark = pytest.mark.usefixtures("own_kernels")

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
ADDITIONS = (operator.add, operator.iadd, torch.add, "add_")


def operands(dtype=torch.float32, layout="NCHW", residual=True, size=(2, 16, 9, 11), stride=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    n, c, h, w = size
    out = (n, c, -(-h // stride), -(-w // stride))
    return {
        "input": draw(*size).to(dtype).contiguous(memory_format=LAYOUTS[layout]),
        "weight": draw(c, c // 4, 3, 3).to(dtype),
        "scale": draw(c).to(sums),
        "shift": draw(c).to(sums),
        "residual": draw(*out).to(dtype) if residual else None,
        "stride": stride,
        "padding": 1,
        "groups": 4,
    }


def in_double(input, weight, scale, shift, residual, activation="relu", stride=1, padding=0, dilation=1, groups=1):
    output = F.conv2d(input.double(), weight.double(), None, stride, padding, dilation, groups)
    output = output * scale.double().view(-1, 1, 1) + shift.double().view(-1, 1, 1)
    output = output if residual is None else output + residual.double()
    return output.relu() if activation == "relu" else output


TOLERANCES = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}


def assert_agrees(result, expected):
    tolerance = TOLERANCES[result.dtype]
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("activation", ["relu", "none"])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_agrees_with_its_steps(dtype, layout, residual, activation, stride):
    given = operands(dtype, layout, residual, stride=stride)
    result = grouped_conv2d_act(**given, activation=activation)
    assert_agrees(result, in_double(**given, activation=activation))
    assert result.is_contiguous(memory_format=LAYOUTS[layout])
    names = [name for name, why in explain("fprop_act", *conv_arguments(given)).entries if not why]
    assert names
    for name in names:
        assert_agrees(
            grouped_conv2d_act(**given, activation=activation, kernel=name), in_double(**given, activation=activation)
        )


def conv_arguments(given):
    return given["input"], given["weight"], None, given["stride"], given["padding"], 1, given["groups"]


def test_unbatched_padding_same_and_problems_of_pytorch():
    given = operands()
    one = {**given, "input": given["input"][0], "residual": given["residual"][0]}
    torch.testing.assert_close(grouped_conv2d_act(**one), grouped_conv2d_act(**given)[0])
    torch.testing.assert_close(grouped_conv2d_act(**{**given, "padding": "same"}), grouped_conv2d_act(**given))
    dense = {**given, "groups": 1, "weight": torch.randn(16, 16, 1, 1), "padding": 0}
    assert_agrees(grouped_conv2d_act(**dense), in_double(**dense))
    empty = operands(size=(0, 16, 9, 11))
    assert grouped_conv2d_act(**empty).shape == (0, 16, 9, 11)


def test_gradients_are_those_of_the_steps():
    given = operands(torch.float64)
    leaves = {name: given[name].requires_grad_() for name in ("input", "weight", "scale", "shift", "residual")}
    rest = {name: value for name, value in given.items() if name not in leaves}
    assert torch.autograd.gradcheck(lambda *args: grouped_conv2d_act(*args, **rest), tuple(leaves.values()))


def test_autocast_and_vmap():
    given = operands()
    with torch.autocast("cpu", torch.bfloat16):
        result = grouped_conv2d_act(**given)
    cast = {name: given[name].bfloat16() for name in ("input", "weight", "residual")}
    torch.testing.assert_close(result, grouped_conv2d_act(**{**given, **cast}), rtol=0, atol=0)
    stacked = torch.stack([given["input"], 2 * given["input"]])
    mapped = torch.func.vmap(lambda x: grouped_conv2d_act(**{**given, "input": x}))(stacked)
    torch.testing.assert_close(mapped[1], grouped_conv2d_act(**{**given, "input": stacked[1]}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale": torch.ones(15)}, r"expected scale of size \[16\], got \[15\]"),
        ({"shift": torch.ones(16, dtype=torch.float64)}, "expected shift of dtype .*, got "),
        ({"residual": torch.ones(2, 16, 9, 10)}, r"expected residual of size \[2, 16, 9, 11\], got \[2, 16, 9, 10\]"),
        ({"residual": torch.ones(2, 16, 9, 11).double()}, "expected input and residual of one dtype"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_bad_input(device, change, message):
    given = {**operands(), **change}
    given = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in given.items()}
    with pytest.raises(RuntimeError, match=message):
        grouped_conv2d_act(**given)


def test_unknown_kernel():
    with pytest.raises(RuntimeError, match="expected kernel to be one of"):
        grouped_conv2d_act(**operands(), kernel="nonsense")


def test_unknown_activation():
    with pytest.raises(ValueError, match="expected activation to be 'relu' or 'none', got 'gelu'"):
        grouped_conv2d_act(**operands(), activation="gelu")


def test_opcheck():
    operator = torch.ops.resnext_kernels.grouped_conv2d_act.default
    for layout in LAYOUTS:
        for residual in (True, False):
            given = operands(layout=layout, residual=residual)
            tensors = [given[name] for name in ("input", "weight", "scale", "shift", "residual")]
            torch.library.opcheck(operator, (*tensors, [1, 1], [1, 1], [1, 1], 4, "relu"))


def randomised(model):
    """With statistics and affine parameters that differ from the identity, in eval mode."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.2), (module.running_var, 0.5), (module.weight, 0.5)):
                tensor.data.uniform_(low, low + 1, generator=generator)
            module.bias.data.uniform_(-0.5, 0.5, generator=generator)
    return model.eval()


NETWORKS = {
    "resnext50_32x4d": resnext50_32x4d,
    "torchvision_resnext50": lambda: torchvision.models.resnext50_32x4d(),
    "torchvision_regnet_x_400mf": lambda: torchvision.models.regnet_x_400mf(),
    "timm_seresnext26d": lambda: timm.create_model("seresnext26d_32x4d"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_fused_networks_agree(name, layout):
    torch.manual_seed(0)
    model = randomised(NETWORKS[name]().double())
    convert(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64).contiguous(memory_format=LAYOUTS[layout])
    fused = fuse(model)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(fused(images), expected, rtol=1e-10, atol=1e-10 * expected.abs().max().item())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    grouped = [module for module in model.modules() if isinstance(module, GroupedConv2d) and module.groups > 1]
    taken = [module for module in fused.modules() if isinstance(module, FusedGroupedConv2d)]
    assert len(taken) == len(grouped) > 0
    assert all(module.activation == "relu" for module in taken)
    norms = [module for module in fused.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms == []
    additions = [node for node in fused.graph.nodes if node.target in ADDITIONS]
    assert not additions or name == "timm_seresnext26d"  # which adds what squeeze-and-excitation has scaled


def block(between=nn.Identity, inplace=False):
    return nn.Sequential(GroupedConv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8), between(), nn.ReLU(inplace))


class Twice(nn.Module):
    """The convolution's result is needed beside the batch norm's."""

    def __init__(self, what):
        super().__init__()
        self.conv, self.norm, self.what = GroupedConv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8), what

    def forward(self, x):
        y = self.conv(x)
        if self.what == "result used twice":
            return torch.relu(self.norm(y)) + y
        if self.what == "norm used twice":
            z = self.norm(y)
            return torch.relu(z) - z
        if self.what == "convolution called twice":
            return torch.relu(self.norm(self.conv(y)))
        return F.relu_(self.norm(y))


@pytest.mark.parametrize(
    ("make", "taken"),
    [
        (block, "relu"),
        (lambda: block(inplace=True), "relu"),
        (lambda: block(nn.Sigmoid), "none"),
        (lambda: nn.Sequential(GroupedConv2d(8, 8, 3, groups=2), nn.ReLU()), "relu"),
        (lambda: nn.Sequential(GroupedConv2d(8, 8, 3, groups=2, padding_mode="circular", padding=1), nn.ReLU()), None),
        (lambda: nn.Sequential(GroupedConv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8, affine=False)), "none"),
        (lambda: Twice("result used twice"), None),
        (lambda: Twice("norm used twice"), "none"),
        (lambda: Twice("convolution called twice"), None),
        (lambda: Twice("in place function"), "relu"),
    ],
)
def test_what_is_taken_in(make, taken):
    torch.manual_seed(0)
    model = make().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    model.eval()
    fused, x = fuse(model), torch.randn(2, 8, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model(x), rtol=1e-12, atol=1e-12)
    assert [m.activation for m in fused.modules() if isinstance(m, FusedGroupedConv2d)] == ([taken] if taken else [])


class Residual(nn.Module):
    """A dense convolution and what is added to it."""

    def __init__(self, what):
        super().__init__()
        self.conv, self.norm, self.side = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.pool, self.what = nn.AvgPool2d((6, 7)), what

    def forward(self, x):
        y = torch.relu(x)
        z = self.norm(self.conv(y))
        return torch.relu(self.ends(x, y, z))

    def ends(self, x, y, z):
        if self.what == "shortcut computed later":
            return z + self.side(x)
        if self.what == "in place":
            z += x
            return z
        if self.what == "input changed before the addition":
            y.mul_(2)
            return z + x
        if self.what == "shortcut changed after the addition":
            z = z + y
            y.mul_(2)
            return z
        if self.what == "added to the shortcut in place":
            y.add_(z)
            return y * y
        if self.what == "added in place":
            return z.add_(y)
        if self.what == "multiple of the shortcut":
            return torch.add(z, x, alpha=3)
        if self.what == "a number for each image":
            return x[:, :1, :1, :1] + z
        if self.what == "shortcut of one pixel":
            return self.pool(x) + z
        return z + {"number": 3.0, "itself": z}[self.what]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("what", "additions", "activation"),
    [
        ("shortcut computed later", 0, "relu"),
        ("shortcut of one pixel", 0, "relu"),
        ("in place", 0, "relu"),
        ("a number for each image", 1, "none"),
        ("input changed before the addition", 1, "none"),
        ("shortcut changed after the addition", 0, "relu"),
        ("added to the shortcut in place", 1, "none"),
        ("added in place", 0, "relu"),
        ("multiple of the shortcut", 1, "none"),
        ("number", 1, "none"),
        ("itself", 1, "none"),
    ],
)
def test_what_other_convolutions_take_in(what, additions, activation, dtype, layout):
    torch.manual_seed(0)
    model = randomised(Residual(what)).double()
    x = torch.randn(2, 8, 6, 7).double().contiguous(memory_format=LAYOUTS[layout])
    fused = fuse(model).to(dtype)
    assert (type(fused.conv), fused.conv.activation) == (FusedConv2d, activation)
    assert sum(node.target in ADDITIONS for node in fused.graph.nodes) == additions
    expected = model(x.clone()).detach()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    largest = expected.abs().max().item()
    for recorded in (False, True):
        with torch.set_grad_enabled(recorded):
            result = fused(x.to(dtype))
        assert (result.dtype, result.is_contiguous(memory_format=LAYOUTS[layout])) == (dtype, True)
        torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance * largest)


def calls_of(function, *arguments):
    """The names of the operators that a call leads to."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function(*arguments)
    return {event.key for event in profile.key_averages()}


ONE_CALL = "mkldnn::_convolution_pointwise"


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
@pytest.mark.filterwarnings("ignore:TF32 acceleration")  # PyTorch's, when oneDNN is switched off
def test_other_convolutions_are_one_call_of_onednn():
    """Unless something has to see, or to differentiate, the single steps."""
    torch.manual_seed(0)
    fused, x = FusedConv2d(nn.Conv2d(8, 12, 1, stride=2), "relu"), torch.randn(2, 8, 9, 7)
    residual = torch.randn(2, 12, 5, 4)
    names = calls_of(fused, x, residual)
    assert ONE_CALL in names
    assert "aten::relu_" not in names
    expected = (F.conv2d(x, fused.weight, fused.bias, 2) + residual).relu()
    torch.testing.assert_close(fused(x, residual), expected, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert ONE_CALL not in calls_of(fused, x, residual)
    with torch.backends.mkldnn.flags(enabled=False):
        assert ONE_CALL not in calls_of(fused, x, residual)
    with FlopCounterMode(display=False) as counter:
        fused(x, residual)
    assert counter.get_total_flops() == 2 * 2 * 8 * 12 * 5 * 4
    leaf = x.clone().requires_grad_()
    fused(leaf, residual).sum().backward()
    plain = x.clone().requires_grad_()
    (F.conv2d(plain, fused.weight, fused.bias, 2) + residual).relu().sum().backward()
    torch.testing.assert_close(leaf.grad, plain.grad)
    mapped = torch.func.vmap(fused)(torch.stack([x, 2 * x]), torch.stack([residual, residual]))
    torch.testing.assert_close(mapped[0], expected, rtol=1e-5, atol=1e-5)
    last = x.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(fused(last[:1], residual)[0], expected[0], rtol=1e-5, atol=1e-5)  # a sum of two images
    empty = fused(x[:0], residual[:0])
    assert empty.shape == (0, 12, 5, 4)
    torch.testing.assert_close(fused(x[0], residual[0]), expected[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match=r"expected input\[2, 7, 9, 7\] to have 8 channels"):
        fused(x[:, :7])
    with pytest.raises(RuntimeError, match="must match the size of tensor"):
        fused(x, residual[:, :, :4])


def test_fusing_twice_changes_nothing():
    torch.manual_seed(0)
    model = randomised(nn.Sequential(block(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()))
    once, x = fuse(model), torch.randn(2, 8, 6, 7)
    torch.testing.assert_close(fuse(once)(x), once(x), rtol=0, atol=0)


def test_fused_models_are_modules():
    """state_dict, deepcopy, casts, and compilation."""
    torch.manual_seed(0)
    dense = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()
    model = randomised(nn.Sequential(block(), *dense, block()))
    fused, x = fuse(model), torch.randn(2, 8, 6, 7)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(copy.deepcopy(fused)(x), expected, rtol=1e-4, atol=1e-5)
        other = fuse(randomised(copy.deepcopy(model)))
        other.load_state_dict(fused.state_dict())
        torch.testing.assert_close(other(x), fused(x), rtol=0, atol=0)
        torch.testing.assert_close(torch.compile(fused, fullgraph=True)(x), fused(x), rtol=1e-5, atol=1e-5)
        half = copy.deepcopy(fused).bfloat16()(x.bfloat16())
        torch.testing.assert_close(half.float(), expected, rtol=0.1, atol=0.1)


def test_what_fuse_refuses():
    with pytest.raises(TypeError, match=r"expected model to be a torch\.nn\.Module, got int"):
        fuse(3)
    with pytest.raises(ValueError, match="expected model to be in eval mode"):
        fuse(block())
    model = block().eval()
    model[1].train()
    with pytest.raises(ValueError, match="expected 1 to be in eval mode, got it in training mode"):
        fuse(model)
