"""Times of ours and PyTorch's, taken in turns so that whatever else the machine does falls on both."""

from __future__ import annotations

import copy
import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
SAMPLE_SECONDS = 0.005  # calls shorter than this are repeated within one sample
Key = tuple[str, str]  # ("PyTorch" or "ours", memory format)


def interleaved(calls: dict, rounds: int, wait: Callable[[], None], limit: float = math.inf) -> dict:
    """Seconds per call of each of `calls`, by its key: one sample per round, rounds there and back (ABC CBA ABC).

    Args:
        calls: functions without arguments.
        rounds: number of samples of each.
        wait: returns when all work handed to the device is done.
        limit: seconds after which no further round begins, except for the first three.

    """
    repeats = {}
    for key, call in calls.items():
        first = _seconds(call, 1, wait)  # warms up
        estimate = first if first > 10 * SAMPLE_SECONDS else _seconds(call, 1, wait)
        repeats[key] = max(1, min(50, math.ceil(SAMPLE_SECONDS / estimate)))
    samples = {key: [] for key in calls}
    start = time.perf_counter()
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() - start > limit:
            break
        for key in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            samples[key].append(_seconds(calls[key], repeats[key], wait))
    return samples


def _seconds(call: Callable, repeats: int, wait: Callable[[], None]) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    wait()
    return (time.perf_counter() - start) / repeats


def choose_threads(rounds: int = 5) -> tuple[int, str]:
    """As many CPU threads as PyTorch would take, or fewer if those are faster right now; and why.

    Where other processes keep the cores busy, every parallel loop waits for its unluckiest thread: two threads on
    two busy cores are often slower than one.
    """
    most = torch.get_num_threads()
    conv, input = nn.Conv2d(256, 256, 1), torch.randn(4, 256, 28, 28)
    samples = {count: [] for count in sorted({most, (most + 1) // 2, 1}, reverse=True)}
    with torch.no_grad():
        for _ in range(rounds):
            for count, seconds in samples.items():
                torch.set_num_threads(count)
                conv(input)
                seconds.append(_seconds(lambda: conv(input), 5, lambda: None))
    torch.set_num_threads(most)
    best = min(samples, key=lambda count: median(samples[count]))
    ratio = median(samples[most]) / median(samples[best])
    if ratio < 1.1:
        return most, "PyTorch's default"
    return best, f"a probe ran {ratio:.1f} times as fast as with {most}: other processes use the cores"


@dataclass(frozen=True)
class Times:
    """What one piece of work takes, in each implementation and memory format.

    Attributes:
        samples: seconds by ("PyTorch" or "ours", memory format), one per round.

    """

    samples: dict[Key, list[float]]

    def seconds(self, who: str, memory_format: str) -> float:
        """The median over the rounds."""
        return median(self.samples[who, memory_format])

    def best(self, who: str) -> str:
        """The memory format with the smaller median."""
        return min((key[1] for key in self.samples if key[0] == who), key=lambda name: self.seconds(who, name))

    @property
    def speedup(self) -> float:
        """PyTorch's time over ours, each in its best format."""
        theirs, ours = (self.seconds(who, self.best(who)) for who in ("PyTorch", "ours"))
        return theirs / ours


@dataclass(frozen=True)
class Layer:
    """A grouped 3x3 layer of a network, with as many places as it fills.

    Attributes:
        channels, out_channels, groups, stride, side: its shape; `side` is the input's height and width in pixels.
        count: how many layers of the network have this shape.

    """

    channels: int
    out_channels: int
    groups: int
    stride: int
    side: int
    count: int = field(compare=False)

    @property
    def width(self) -> int:
        """Channels per group."""
        return self.channels // self.groups

    def conv(self, conv_class: type[nn.Conv2d]) -> nn.Conv2d:
        """A convolution of this shape."""
        return conv_class(self.channels, self.out_channels, 3, self.stride, 1, groups=self.groups, bias=False)


def grouped_layers(model: nn.Module, side: int = 224) -> list[Layer]:
    """The distinct grouped 3x3 layers that a (side, side) photograph passes through, in order."""
    seen: Counter = Counter()

    def note(module: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        key = (module.in_channels, module.out_channels, module.groups, module.stride[0], inputs[0].shape[-1])
        seen[key] += 1

    shadow = copy.deepcopy(model).to("meta").eval()  # shapes only: nothing is computed
    for module in shadow.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and module.kernel_size == (3, 3):
            module.register_forward_pre_hook(note)
    shadow(torch.empty(1, 3, side, side, device="meta"))
    return [Layer(*key, count) for key, count in seen.items()]


def _forward(conv: nn.Conv2d, input: Tensor) -> Callable[[], None]:
    return lambda: conv(input)


def _backward(conv: nn.Conv2d, input: Tensor) -> Callable[[], None]:
    output = conv(input)
    upstream = torch.ones_like(output)
    return lambda: torch.autograd.grad(output, (input, conv.weight), upstream, retain_graph=True)


def time_layer(
    layer: Layer, classes: dict[str, type[nn.Conv2d]], batch: int, rounds: int, device: torch.device, wait: Callable
) -> dict[str, Times]:
    """Times of "forward", and of "backward" (the input's and the weight's gradient), of a layer.

    Args:
        layer: its shape.
        classes: the convolution class of "PyTorch" and of "ours".
        batch: number of images.
        rounds: number of samples.
        device: where to run.
        wait: returns when the device's work is done.

    """
    forwards, backwards = {}, {}
    values = torch.randn(batch, layer.channels, layer.side, layer.side)
    for name, memory_format in FORMATS.items():
        for who, conv_class in classes.items():
            conv = layer.conv(conv_class).to(device).to(memory_format=memory_format)
            input = values.to(device).contiguous(memory_format=memory_format).requires_grad_()
            forwards[who, name] = _forward(conv, input)
            backwards[who, name] = _backward(conv, input)
    return {
        "forward": Times(interleaved(forwards, rounds, wait, limit=1.5)),
        "backward": Times(interleaved(backwards, rounds, wait, limit=1.5)),
    }


def time_networks(
    models: dict[str, nn.Module], photos: Tensor, labels: Tensor, rounds: int, wait: Callable
) -> dict[str, Times]:
    """Times of "inference" and "training step" (forward and backward in training mode) of whole networks.

    Args:
        models: the network of "PyTorch" and of "ours"; neither is changed.
        photos: (N, 3, H, W).
        labels: (N,) int64.
        rounds: number of samples.
        wait: returns when the device's work is done.

    """
    inferences, steps = {}, {}
    for name, memory_format in FORMATS.items():
        images = photos.contiguous(memory_format=memory_format)
        for who, model in models.items():
            model = copy.deepcopy(model).to(memory_format=memory_format)
            inferences[who, name] = _inference(model, images)
            steps[who, name] = _step(model, images, labels)
    return {
        "inference": Times(interleaved(inferences, rounds, wait)),
        "training step": Times(interleaved(steps, rounds, wait)),
    }


def _inference(model: nn.Module, images: Tensor) -> Callable[[], None]:
    def call() -> None:
        with torch.no_grad():
            model.eval()(images)

    return call


def _step(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], None]:
    def call() -> None:
        loss = F.cross_entropy(model.train()(images), labels)
        torch.autograd.grad(loss, list(model.parameters()))

    return call
