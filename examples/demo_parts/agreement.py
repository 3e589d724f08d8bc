"""How closely a network agrees with torchvision's, measured in units of PyTorch's own rounding error.

Three runs of one forward and backward pass, on the same photographs, labels and weights: torchvision's network in
float64 (the truth), torchvision's in float32 (its distance from the truth is PyTorch's own error), and ours in
float32. Two things would drown the convolutions' rounding in noise, so both are held fixed:

* Batch statistics. The batch norms run on statistics collected beforehand from the same photographs (eval mode).
  In training mode the float32 batch norm is itself the largest error: two memory formats of the same network
  then differ by a factor of 3 to 6 in every gradient.
* Kinks. A value within rounding of zero falls on either side of a ReLU by chance, and one flip changes a gradient
  by a whole term: the gradients of two float32 runs of PyTorch then differ by percents. So all three runs use the
  sides (and max-pooling winners) of the float64 run: derivatives of one and the same piece of the function.

What is left is rounding: about 2e-6 of each gradient, twenty times its last bit after fifty layers there and back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

RELUS = {F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_}


class SameSides(TorchFunctionMode):
    """Within it, ReLUs and max pooling decide as they did in the first run made within this object.

    Attributes:
        decisions: per ReLU a mask (true: the value passes), per pooling the indices of the winners.
        flips: how many ReLU inputs of the run under way lie on the other side than in the first run.

    """

    def __init__(self) -> None:
        super().__init__()
        self.decisions: list[Tensor] = []
        self.flips = 0
        self.recording = True
        self._next = 0

    def restart(self) -> None:
        """Begins another run, which follows the decisions of the first."""
        self.recording = not self.decisions
        self._next = self.flips = 0

    def finish(self) -> None:
        """Checks that the run asked for as many decisions as the first one made."""
        if self._next != len(self.decisions):
            raise RuntimeError(f"expected {len(self.decisions)} ReLUs and poolings, got {self._next}")

    def _decide(self, decision: Tensor) -> Tensor:
        if self.recording:
            self.decisions.append(decision)
        self._next += 1
        return self.decisions[self._next - 1]

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in RELUS:
            passes = args[0] > 0
            decided = self._decide(passes)
            self.flips += int((decided != passes).sum())
            return args[0] * decided
        if function is F.max_pool2d:
            output, winners = function(*args, **(kwargs | {"return_indices": True}))
            winners = self._decide(winners)
            chosen = args[0].flatten(2).gather(2, winners.flatten(2)).view(winners.shape)
            return torch.empty_like(output).copy_(chosen)  # in the memory format that pooling gives
        return function(*args, **kwargs)


def collect_statistics(model: nn.Module, photos: Tensor) -> None:
    """Sets every batch norm's running mean and variance to those of the photographs; leaves the model in eval mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches seen: here, one
    with torch.no_grad():
        model.train()(photos)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def forward_backward(model: nn.Module, photos: Tensor, labels: Tensor, sides: SameSides) -> dict[str, Tensor]:
    """One forward and backward pass of cross-entropy.

    Args:
        model: a classifier in eval mode.
        photos: (N, 3, H, W), of the model's dtype; its memory format is that of the run.
        labels: (N,) int64.
        sides: the decisions to follow, or, if it is new, to record.

    Returns:
        "logits", "photographs" (the loss's gradient by the pixels) and each parameter's gradient by its name,
        all in float64.

    """
    photos = photos.detach().clone().requires_grad_()
    sides.restart()
    with sides:
        logits = model(photos)
    sides.finish()
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(F.cross_entropy(logits, labels), [photos, *parameters.values()])
    results = [logits.detach(), *gradients]
    names = ["logits", "photographs", *parameters]
    return {name: result.to("cpu", torch.float64) for name, result in zip(names, results, strict=True)}


@dataclass(frozen=True)
class Row:
    """The errors of one tensor: ours and PyTorch's, both in float32, against PyTorch's in float64.

    Attributes:
        name: what the tensor is.
        scale: root mean square of its true values.
        unit: one rounding unit (the last bit in float32) of its largest true value.
        ours, theirs: root mean square of the error.
        ours_largest, theirs_largest: the largest error.

    """

    name: str
    scale: float
    unit: float
    ours: float
    theirs: float
    ours_largest: float
    theirs_largest: float

    @property
    def ratio(self) -> float:
        """Our error as a multiple of PyTorch's own; near 1 is perfect."""
        return _ratio(self.ours, self.theirs)

    @property
    def largest_ratio(self) -> float:
        """The same for the largest error."""
        return _ratio(self.ours_largest, self.theirs_largest)

    @property
    def agrees(self) -> bool:
        """Whether our error is at most twice PyTorch's own, plus one rounding unit of the largest value.

        The errors compared are root mean squares. Each is an average over the tensor's (64 or more) elements, so
        it hardly varies from one correct implementation to the next: 0.8 to 1.4 times among PyTorch's own memory
        formats and orders of the photographs. The largest error is one extreme draw and varies two to three times,
        which a factor of 2 cannot tell from a bug. Still, one wrong element fails: a single one in a million, wrong by
        1 % of the typical value, adds 1e-5 of that value to a root mean square of about 2e-6 of it.
        """
        return self.ours <= 2 * self.theirs + self.unit  # false for NaN, too


def _ratio(ours: float, theirs: float) -> float:
    if theirs == 0:
        return 1.0 if ours == 0 else math.inf
    return ours / theirs


def compare(ours: dict[str, Tensor], theirs: dict[str, Tensor], truth: dict[str, Tensor]) -> list[Row]:
    """One Row per tensor, the worst ratio first.

    Raises:
        ValueError: the three do not have the same names.

    """
    if not ours.keys() == theirs.keys() == truth.keys():
        raise ValueError(f"expected the same tensors, got {sorted(ours.keys() ^ truth.keys())} in only one network")
    rows = []
    for name, true in truth.items():
        errors = [(run[name] - true).abs() for run in (ours, theirs)]
        largest = float(true.abs().max())
        unit = torch.finfo(torch.float32).eps * 2.0 ** math.floor(math.log2(largest)) if largest else 0.0
        rms = [float(values.square().mean().sqrt()) for values in (true, *errors)]
        rows.append(Row(name, rms[0], unit, rms[1], rms[2], *(float(error.max()) for error in errors)))
    return sorted(rows, key=lambda row: -row.ratio if row.ratio == row.ratio else -math.inf)
