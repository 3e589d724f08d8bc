"""The demonstration runs and passes, and its judgements fail when they should."""

import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from resnext_kernels import GroupedConv2d
from resnext_kernels.network import resnext50_32x4d

ROOT = Path(__file__).parents[1]
pytest.importorskip("rich")
pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
pytest.importorskip("skimage")
transforms = pytest.importorskip("torchvision.transforms")
sys.path.insert(0, str(ROOT / "examples"))
import demo  # noqa: E402
from demo_parts import agreement, digits, photographs, timing  # noqa: E402


@pytest.fixture(scope="module")
def short_run(tmp_path_factory):
    """The finished process of a short demonstration, and the path of its picture."""
    picture = tmp_path_factory.mktemp("demo") / "report.png"
    command = [sys.executable, ROOT / "examples/demo.py", "--short", "--threads", "1", "--output", picture]
    process = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    return process, picture


def test_short_run_passes(short_run):
    process, picture = short_run
    assert process.returncode == 0, process.stdout + process.stderr
    text = " ".join(process.stdout.split())
    for name in timing.FORMATS:
        assert f"Agreement, {name}: PASSED: 163 of 163 tensors within twice PyTorch's own float32 error" in text
    assert "Accuracy: PASSED: GroupedConv2d 9" in text
    assert "Grouped 3x3 layers (d channels per group), 2 images" in text
    assert "Whole network, 2 photographs" in text
    assert str(picture) in process.stdout.replace("\n", "")
    assert "Demo PASSED" in text
    assert "Warning" not in process.stderr


def test_picture_is_an_image(short_run):
    from matplotlib import image

    pixels = image.imread(short_run[1])
    assert pixels.shape[:2] == (1210, 1760)
    assert pixels[..., :3].std() > 0.1  # not an empty page


@pytest.mark.parametrize("name", photographs.SOURCES)
def test_photographs_are_preprocessed_like_torchvision(name):
    image = photographs.SOURCES[name]()
    assert image.dtype == np.uint8
    _assert_like_torchvision(image)


@pytest.mark.parametrize("size", [(300, 200), (201, 333), (256, 256), (224, 900), (31, 57)])
def test_any_size_is_preprocessed_like_torchvision(size):
    _assert_like_torchvision(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


def _assert_like_torchvision(image):
    expected = transforms.Compose(
        [
            transforms.ToTensor(),
            transforms.Resize(256, antialias=True),
            transforms.CenterCrop(224),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )(image.copy())
    ours = photographs.preprocess(image)
    assert ours.shape == (3, 224, 224)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-6)


def test_displayable_undoes_the_normalisation():
    image = np.full((300, 400, 3), (10, 100, 250), dtype=np.uint8)
    np.testing.assert_allclose(
        photographs.displayable(photographs.preprocess(image))[0, 0], image[0, 0] / 255, atol=1e-6
    )


def test_load_gives_names_and_batch():
    names, photos = photographs.load(3)
    assert names == ["china", "flower", "astronaut"]
    assert photos.shape == (3, 3, 224, 224)
    assert photos.dtype == torch.float32


class Kinky(nn.Module):
    """Max pooling between two ReLUs."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, input):
        return self.pool(F.relu(self.scale * input)).sub(0.5).relu()


def test_same_sides_change_nothing_in_the_first_run():
    torch.manual_seed(0)
    model, input = Kinky(), torch.randn(2, 3, 9, 9, requires_grad=True)
    plain = model(input)
    sides = agreement.SameSides()
    sides.restart()
    with sides:
        watched = model(input)
    sides.finish()
    assert torch.equal(plain, watched)
    upstream = torch.randn_like(plain)
    expected = torch.autograd.grad(plain, [input, model.scale], upstream)
    for ours, theirs in zip(torch.autograd.grad(watched, [input, model.scale], upstream), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_same_sides_are_followed_and_flips_are_counted():
    sides = agreement.SameSides()
    first, second = torch.tensor([1.0, -1.0, 2.0]), torch.tensor([-1e-9, -3.0, 5.0])
    for input, expected, flips in ((first, [1.0, 0.0, 2.0], 0), (second, [-1e-9, 0.0, 5.0], 1)):
        sides.restart()
        with sides:
            output = F.relu(input)
        sides.finish()
        assert output.tolist() == torch.tensor(expected).tolist()
        assert sides.flips == flips


def test_same_sides_notice_another_network():
    sides = agreement.SameSides()
    sides.restart()
    with sides:
        F.relu(F.relu(torch.ones(3)))
    sides.finish()
    sides.restart()
    with sides:
        F.relu(torch.ones(3))
    with pytest.raises(RuntimeError, match="expected 2 ReLUs and poolings, got 1"):
        sides.finish()


def test_collected_statistics_are_those_of_the_photographs():
    torch.manual_seed(0)
    norm, photos = nn.BatchNorm2d(3), 3 * torch.randn(4, 3, 8, 8) + 1
    agreement.collect_statistics(norm, photos)
    torch.testing.assert_close(norm.running_mean, photos.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, photos.var((0, 2, 3)))
    assert norm.momentum == 0.1
    assert not norm.training


class Unscaled(GroupedConv2d):
    """A convolution whose weight gradient is wrong by one part in a thousand."""

    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, 1.001 * weight - 0.001 * weight.detach(), bias)


@pytest.fixture(scope="module")
def runs():
    """Ours, PyTorch's and the true results of a small network, and ours with a wrong gradient."""
    split = digits.load_split(torch.device("cpu"))
    images, labels = split.images[:64], split.labels[:64]
    torch.manual_seed(0)
    theirs = digits.small_resnext(nn.Conv2d)
    agreement.collect_statistics(theirs, images)
    sides = agreement.SameSides()
    results = {}
    for who, conv_class in {"truth": nn.Conv2d, "theirs": nn.Conv2d, "ours": GroupedConv2d, "wrong": Unscaled}.items():
        model = digits.small_resnext(conv_class).eval()
        model.load_state_dict(theirs.state_dict())
        dtype = torch.float64 if who == "truth" else torch.float32
        results[who] = agreement.forward_backward(model.to(dtype), images.to(dtype), labels, sides)
    return results


def test_ours_agrees(runs):
    rows = agreement.compare(runs["ours"], runs["theirs"], runs["truth"])
    assert [row.name for row in rows if not row.agrees] == []
    assert [row.ratio for row in rows] == sorted((row.ratio for row in rows), reverse=True)
    assert {row.name for row in rows} >= {"logits", "photographs", "3.conv2.weight", "0.weight"}


def test_a_wrong_weight_gradient_disagrees(runs):
    rows = agreement.compare(runs["wrong"], runs["theirs"], runs["truth"])
    assert {row.name for row in rows if not row.agrees} == {f"{i}.conv2.weight" for i in (3, 4, 5)}


def test_one_wrong_element_disagrees(runs):
    """In each tensor alone, one element wrong by a hundredth of the typical value is noticed."""
    for name, true in runs["truth"].items():
        perturbed = dict(runs["ours"])
        perturbed[name] = runs["ours"][name].clone()
        perturbed[name].view(-1)[true.numel() // 2] += 0.01 * true.square().mean().sqrt()
        rows = agreement.compare(perturbed, runs["theirs"], runs["truth"])
        assert [row.name for row in rows if not row.agrees] == [name]
        assert rows[0].name == name


def test_a_nan_disagrees_and_comes_first(runs):
    perturbed = dict(runs["ours"])
    perturbed["3.conv2.weight"] = torch.full_like(runs["ours"]["3.conv2.weight"], math.nan)
    rows = agreement.compare(perturbed, runs["theirs"], runs["truth"])
    assert rows[0].name == "3.conv2.weight"
    assert not rows[0].agrees


def test_a_missing_tensor_is_an_error(runs):
    fewer = {name: value for name, value in runs["ours"].items() if name != "logits"}
    with pytest.raises(ValueError, match="logits"):
        agreement.compare(fewer, runs["theirs"], runs["truth"])


def test_verdict_follows_the_rows(runs, capsys):
    console = demo.Console(width=120)
    flips = {"PyTorch": 0, "ours": 0}
    for who, passed in (("ours", True), ("wrong", False)):
        rows = agreement.compare(runs[who], runs["theirs"], runs["truth"])
        assert demo.show_agreement(console, "contiguous", rows, flips, worst=3) is passed
        assert f"Agreement, contiguous: {'PASSED' if passed else 'FAILED'}" in capsys.readouterr().out


@pytest.mark.parametrize(("accuracy", "passed"), [(0.9805, True), (0.979, False)])
def test_verdict_follows_the_accuracy(accuracy, passed, capsys):
    histories = {
        "PyTorch": digits.History([2.0] * 10, [0.9, 0.99]),
        "ours": digits.History([2.0] * 10, [0.9, accuracy]),
    }
    assert demo.show_digits(demo.Console(width=120), histories, 360) is passed
    assert f"Accuracy: {'PASSED' if passed else 'FAILED'}" in capsys.readouterr().out


def test_a_failed_part_fails_the_demonstration(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "show_agreement", lambda *args, **kwargs: False)
    monkeypatch.setattr(demo, "measure_agreement", lambda *args: ({name: [] for name in timing.FORMATS},) * 2)
    monkeypatch.setattr(demo, "measure_times", lambda *args: ([], {}))
    monkeypatch.setattr(demo, "train_digits", lambda *args: ({}, 360))
    monkeypatch.setattr(demo, "show_digits", lambda *args: True)
    monkeypatch.setattr(demo.picture, "draw", lambda *args: None)
    arguments = ["--short", "--threads", str(torch.get_num_threads()), "--output", str(tmp_path / "report.png")]
    with torch.backends.cudnn.flags(allow_tf32=True):  # puts back what main sets
        assert demo.main(arguments) == 1
        monkeypatch.setattr(demo, "show_agreement", lambda *args, **kwargs: True)
        assert demo.main(arguments) == 0


def test_grouped_layers_of_the_network():
    layers = timing.grouped_layers(resnext50_32x4d())
    assert [(layer.channels, layer.side, layer.stride, layer.count) for layer in layers] == [
        (128, 56, 1, 3),
        (256, 56, 2, 1),
        (256, 28, 1, 3),
        (512, 28, 2, 1),
        (512, 14, 1, 5),
        (1024, 14, 2, 1),
        (1024, 7, 1, 2),
    ]
    assert all(layer.groups == 32 and layer.out_channels == layer.channels for layer in layers)


def test_samples_are_taken_in_turns():
    order = []
    calls = {key: lambda key=key: order.append(key) for key in "ABC"}
    samples = timing.interleaved(calls, 3, lambda: None)
    assert [len(times) for times in samples.values()] == [3, 3, 3]
    turns = "".join(key for key, _ in itertools.groupby(order))
    assert turns == "ABCABCBABC"  # warming up, then ABC CBA ABC (equal neighbours count once)


def test_time_limit_ends_the_rounds():
    samples = timing.interleaved({"A": lambda: None}, 50, lambda: None, limit=0)
    assert len(samples["A"]) == 3


def test_speedup_compares_the_best_formats():
    times = timing.Times(
        {
            ("PyTorch", "contiguous"): [4.0, 100.0, 4.0],
            ("PyTorch", "channels_last"): [6.0, 6.0, 6.0],
            ("ours", "contiguous"): [3.0, 3.0, 3.0],
            ("ours", "channels_last"): [2.0, 2.0, 50.0],
        }
    )
    assert times.best("PyTorch") == "contiguous"
    assert times.best("ours") == "channels_last"
    assert times.speedup == 2


def test_split_keeps_a_fifth_of_every_class():
    split = digits.load_split(torch.device("cpu"))
    assert split.images.shape == (1437, 1, 8, 8)
    assert split.held_out_images.shape == (360, 1, 8, 8)
    assert split.held_out_labels.bincount().tolist() == pytest.approx([36] * 10, abs=1)
    assert abs(split.images.mean()) < 1e-5


def test_small_networks_start_equal():
    models = []
    for conv_class in (nn.Conv2d, GroupedConv2d):
        torch.manual_seed(0)
        models.append(digits.small_resnext(conv_class))
    grouped = [[type(m) for m in model.modules() if getattr(m, "groups", 1) > 1] for model in models]
    assert grouped == [[nn.Conv2d] * 3, [GroupedConv2d] * 3]
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
