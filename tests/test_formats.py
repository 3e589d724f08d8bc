"""Fused graphs may compute in channels_last; nobody outside, and nothing inside that could tell, sees it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnext_kernels import FusedConv2d, GroupedConv2d, convert, fuse
from resnext_kernels._formats import in_format_of

pytestmark = [
    pytest.mark.usefixtures("own_kernels"),
    pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN"),
]
torchvision = pytest.importorskip("torchvision")
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


class Net(nn.Module):
    """Three convolutions, and something that is done with their results."""

    def __init__(self, ending):
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.grouped = GroupedConv2d(16, 16, 3, padding=1, groups=4)
        self.norm, self.relu, self.drop = nn.BatchNorm2d(16), nn.ReLU(inplace=True), nn.Dropout()
        self.places = nn.MaxPool2d(2, return_indices=True)
        self.pool, self.shuffle, self.gate = nn.AdaptiveAvgPool2d(1), nn.PixelShuffle(2), nn.Conv2d(16, 16, 1)
        self.ending = ending

    def forward(self, x):
        y = torch.relu(self.a(x))
        return self.ending(self, x, y, self.b(self.grouped(y)))


def feature_maps(net, x, y, z):
    return {"first": y, "both": (z, y * z)}


def viewed(net, x, y, z):
    return z.view(z.size(0), -1)


def shuffled(net, x, y, z):
    n, c, h, w = z.shape
    return z.view(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w) + y


def by_strides(net, x, y, z):
    return torch.as_strided(z, (2, 3), (5, 1)) + torch.as_strided(y, (2, 3), (7, 1))


def changed_in_place(net, x, y, z):
    z.clamp_(max=0.1)
    return z, z + y


def changed_after_another_has_read_it(net, x, y, z):
    u = z + 1
    z.mul_(2)
    return u, z, net.b(z)


def changed_as_what_passes_it_on(net, x, y, z):
    u = net.relu(z)
    u.clamp_(max=0.1)
    return z, u


def changed_as_what_drops_nothing(net, x, y, z):
    u = net.drop(z)
    u.clamp_(max=0.1)
    return z, u + y


def rectified_in_place(net, x, y, z):
    return net.b(net.relu(z) + y)


def added_in_place(net, x, y, z):
    z += y
    y.mul_(3)
    return net.b(z), y


def squeezed_and_excited(net, x, y, z):
    return z * torch.sigmoid(net.gate(z.mean((2, 3), keepdim=True))) + y


def pooled(net, x, y, z):
    return torch.flatten(net.pool(net.norm(z)), 1)


def joined(net, x, y, z):
    return torch.cat([y, z], 1), torch.cat((x, z), dim=1)


def by_a_module_that_reshapes(net, x, y, z):
    return net.shuffle(z)


def with_a_part(net, x, y, z):
    part = z[:, :4]
    part += 1
    return net.b(z) + y, part


def with_its_size(net, x, y, z):
    return z * z.shape[2] + y.numel() * z.size(3)


def upside_down(net, x, y, z):
    return net.b(torch.flip(z, (2,))) + y


def with_places(net, x, y, z):
    largest, places = F.max_pool2d(z, 2, return_indices=True)
    return net.b(largest), places, F.max_pool2d(y, 2, 2, 0, 1, False, True)[1]


def with_places_by_a_module(net, x, y, z):
    largest, places = net.places(z)
    return net.b(largest), places


def with_names(net, x, y, z):
    return net.relu(input=z), F.relu(input=y, inplace=True)


def padded(net, x, y, z):
    return net.grouped(F.pad(z, (1, 0, 0, 1))), z


def next_convolution_of_a_view(net, x, y, z):
    return net.b(z.view(z.size(0), 16, -1, 1)) + net.b(z).view(z.size(0), 16, -1, 1)


ENDINGS = [feature_maps, viewed, shuffled, by_strides, changed_in_place, changed_after_another_has_read_it]
ENDINGS += [changed_as_what_passes_it_on, changed_as_what_drops_nothing, rectified_in_place, added_in_place]
ENDINGS += [squeezed_and_excited, pooled, joined, by_a_module_that_reshapes, with_a_part, with_its_size, upside_down]
ENDINGS += [padded, next_convolution_of_a_view, with_places, with_places_by_a_module, with_names]


def attempt(function, *arguments):
    """The result, or None for an error."""
    try:
        return function(*arguments)
    except (RuntimeError, ValueError, IndexError):
        return None


@pytest.mark.parametrize("size", [(2, 8, 6, 7), (1, 8, 6, 7), (2, 8, 4, 1), (8, 6, 7)], ids=str)
@pytest.mark.parametrize("weights", LAYOUTS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ending", ENDINGS, ids=lambda ending: ending.__name__)
def test_values_and_strides_are_those_of_the_model(ending, layout, weights, size):
    torch.manual_seed(0)
    model = Net(ending).eval().to(memory_format=LAYOUTS[weights])
    x = torch.randn(size)
    x = x.contiguous(memory_format=LAYOUTS[layout]) if x.dim() == 4 else x
    fused = fuse(model)
    with torch.no_grad():
        expected = attempt(model, x.clone())
        result, again = attempt(fused, x.clone()), attempt(fuse(fused), x.clone())
    if expected is None:  # such as a view of what is no single piece of memory
        return
    # A tensor whose formats are one has strides of either.
    ambiguous = 1 in size
    for each in (result, again):
        torch.testing.assert_close(each, expected, rtol=1e-4, atol=1e-5, check_stride=not ambiguous)


def chosen(fused):
    return sum(module.free_format for module in fused.modules() if isinstance(module, FusedConv2d))


def given_back(fused):
    return sum(node.target is in_format_of for node in fused.graph.nodes)


@pytest.mark.parametrize(
    ("ending", "free", "restored"),
    [
        (pooled, 2, 1),
        (rectified_in_place, 1, 1),  # b is called twice, so that it is none of the fused
        (squeezed_and_excited, 3, 1),
        (feature_maps, 2, 3),
        (viewed, 1, 1),
        (changed_in_place, 2, 2),
        (added_in_place, 1, 2),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_as_little_as_possible_is_given_back(ending, free, restored):
    fused = fuse(Net(ending).eval())
    assert (chosen(fused), given_back(fused)) == (free, restored)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_two_inputs(layout):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3)

        def forward(self, x, y):
            return self.c(self.a(x) + self.b(y)), self.a(x)

    torch.manual_seed(0)
    model = Two().eval()
    x = torch.randn(2, 8, 5, 6).contiguous(memory_format=LAYOUTS[layout])
    fused = fuse(model)
    for other in LAYOUTS:  # where they differ, so may the strides of a sum
        y = torch.randn(2, 8, 5, 6).contiguous(memory_format=LAYOUTS[other])
        torch.testing.assert_close(fused(x, y), model(x, y), rtol=1e-4, atol=1e-5, check_stride=other == layout)


NETWORKS = {"resnext50_32x4d": 1, "regnet_y_400mf": 1, "densenet121": 1, "mobilenet_v2": 1, "shufflenet_v2_x0_5": 40}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name, layout):
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)().eval()
    convert(model)
    images = torch.randn(2, 3, 64, 64).contiguous(memory_format=LAYOUTS[layout])
    fused = fuse(model)
    assert chosen(fused) > 10
    assert given_back(fused) <= NETWORKS[name]
    with torch.no_grad():
        expected = model(images)
        largest = expected.abs().max().item()
        torch.testing.assert_close(fused(images), expected, rtol=1e-4, atol=1e-4 * largest)
        if name == "resnext50_32x4d":
            compiled = torch.compile(fused, fullgraph=True, backend="eager")
            torch.testing.assert_close(compiled(images), expected, rtol=1e-4, atol=1e-4 * largest)
            half = fused.bfloat16()(images.bfloat16()).float()
            torch.testing.assert_close(half, expected, rtol=5e-2, atol=5e-2 * largest)


def test_what_traces_a_fused_model(tmp_path):
    torch.manual_seed(0)
    model = Net(shuffled).eval()
    fused, x = fuse(model), torch.randn(2, 8, 6, 4)
    assert chosen(fused) > 0
    with torch.no_grad():
        expected = model(x)
        torch.save(fused, tmp_path / "fused.pt")
        loaded = torch.load(tmp_path / "fused.pt", weights_only=False)
        traced = torch.jit.trace(fused, x)
        exported = torch.export.export(fused, (x,)).module()
        for other in (loaded, traced, exported):
            torch.testing.assert_close(other(x), expected, rtol=1e-4, atol=1e-5, check_stride=True)
        inside = fuse(nn.Sequential(nn.Conv2d(8, 8, 1), fused, nn.Conv2d(16, 8, 1)).eval())
        image = torch.randn(2, 8, 6, 4)
        outside = nn.Sequential(inside.get_submodule("0"), model, inside.get_submodule("2"))
        torch.testing.assert_close(inside(image), outside(image), rtol=1e-4, atol=1e-5, check_stride=False)
