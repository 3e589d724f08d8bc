"""Times of grouped convolution passes on the CPU, this package's against PyTorch's: `resnext-kernels bench`.

Each call is what a training step makes: `grouped_conv2d`, and the operators that its backward calls, with the output
allocated and weights packed inside. The two rivals take turns call by call, so that whatever else the machine does
falls on both.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean, median

import torch

from . import problems
from ._autograd import call_operator
from ._ops import OPERATORS
from .functional import explain, grouped_conv2d

SHARE_OF_WALL_TIME = 0.94
WINDOW = 0.1  # seconds. The time of a thread that runs on another core is known at the last tick, 10 ms ago at most
FEWEST_CALLS = 5


def rivals(
    problem: problems.Problem, op: str, layout: torch.memory_format, dtype: torch.dtype, own: bool = False
) -> tuple[Callable, Callable, str | None]:
    """Calls without arguments of PyTorch's pass and ours, and the name of our kernel.

    Ours is what a user gets: where that is PyTorch's own convolution, both are the same and the name is None.

    Args:
        problem: the convolution.
        op: "fprop", "dgrad" or "wgrad".
        layout: memory format of all tensors, as in a model that was moved to it.
        dtype: of all tensors.
        own: time this package's kernel also where PyTorch's own convolution runs because it is faster.

    """
    draw = lambda size: torch.randn(size).to(dtype).contiguous(memory_format=layout)  # noqa: E731
    input, output, weight = map(draw, (problem.input_shape, problem.output_shape, problem.weight_shape))
    geometry = problem.stride, problem.padding, problem.dilation
    mask = [op == "dgrad", op == "wgrad", False]
    backward = (output, input, weight, None, *geometry, False, [0, 0], problem.groups, mask)
    theirs = {
        "fprop": lambda: torch.nn.functional.conv2d(input, weight, None, *geometry, problem.groups),
        "dgrad": lambda: torch.ops.aten.convolution_backward(*backward),
        "wgrad": lambda: torch.ops.aten.convolution_backward(*backward),
    }
    explanation = explain(op, input, weight, None, *geometry, problem.groups)
    if explanation.kernel is None and not own:
        return theirs[op], theirs[op], None
    kernel = next(name for name, why in explanation.entries if not why)
    size, window, groups = input.shape[2:], problem.kernel_size, problem.groups
    named = kernel if own else ""
    ours = {
        "fprop": lambda: grouped_conv2d(input, weight, None, *geometry, groups, kernel=named),
        "dgrad": lambda: call_operator(OPERATORS["input"], output, weight, size, *geometry, groups),
        "wgrad": lambda: call_operator(OPERATORS["weight"], output, input, window, *geometry, groups),
    }
    return theirs[op], ours[op], kernel


def interleave(calls: tuple[Callable, ...], threads: int, seconds: float) -> tuple[list[list[float]], int]:
    """Undisturbed wall times of each call, in turns until the time is up; and how many calls were disturbed.

    Calls count, a window at a time, only if all threads ran for 94 % of it: otherwise another process had taken a core,
    or one of the calls leaves it idle.
    Each round has an order of its own: a call finds the caches as the one before it has left them.
    """
    times: list[list[float]] = [[] for _ in calls]
    disturbed = 0
    for call in calls:
        call()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or min(map(len, times)) < FEWEST_CALLS:
        window: list[list[float]] = [[] for _ in calls]
        cpu, begin = time.process_time(), time.perf_counter()
        while time.perf_counter() < begin + WINDOW:
            for i in random.sample(range(len(calls)), len(calls)):
                start = time.perf_counter()
                calls[i]()
                window[i].append(time.perf_counter() - start)
        wall, cpu = time.perf_counter() - begin, time.process_time() - cpu
        if cpu >= SHARE_OF_WALL_TIME * wall * threads:
            for all_times, its_times in zip(times, window, strict=True):
                all_times += its_times
        else:
            disturbed += sum(map(len, window))
        if time.perf_counter() > end + 10 * seconds:  # say so rather than wait for ever
            break
    return times, disturbed


@dataclass
class Timing:
    """Median times of one pass of one layer, in milliseconds; None if none were counted."""

    problem: str
    op: str
    dtype: str
    layout: str
    kernel: str | None
    pytorch_ms: float | None
    ours_ms: float | None
    disturbed: int

    @property
    def ratio(self) -> float | None:
        """How many times faster ours is."""
        return self.pytorch_ms / self.ours_ms if self.pytorch_ms and self.ours_ms else None


def measure(jobs: Iterable[tuple], layouts: dict[str, torch.memory_format], seconds: float) -> Iterator[Timing]:
    """A Timing for each job, which is (problem, op, name of the dtype, name of the layout)."""
    for problem, op, dtype, layout in jobs:
        *calls, kernel = rivals(problem, op, layouts[layout], getattr(torch, dtype))
        times, disturbed = interleave(tuple(calls), torch.get_num_threads(), seconds)
        enough = min(map(len, times)) >= FEWEST_CALLS
        middle = [1e3 * median(samples) for samples in times] if enough else [None, None]
        yield Timing(problem.name, op, dtype, layout, kernel, *middle, disturbed)


def with_progress(timings: Iterator[Timing], total: int) -> list[Timing]:
    """All timings, with a progress bar on the standard error meanwhile."""
    from rich.console import Console
    from rich.progress import track

    return list(track(timings, "timing", total, console=Console(file=sys.stderr), transient=True))


def show(timings: list[Timing]) -> None:
    """Prints a table, and the geometric means of the ratios."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="PyTorch against resnext_kernels: medians; a ratio above 1 means ours is faster")
    for name in ("problem", "pass", "dtype", "layout", "PyTorch ms", "ours ms", "ratio", "kernel"):
        table.add_column(name, justify="right" if name.endswith("ms") or name == "ratio" else "left")
    for row in timings:
        numbers = ("-", "-", "never counted")
        if row.ratio:
            colour = "green" if row.ratio >= 1.05 else "yellow" if row.ratio >= 0.95 else "red"
            numbers = (f"{row.pytorch_ms:.3f}", f"{row.ours_ms:.3f}", f"[{colour}]{row.ratio:.2f}[/]")
        table.add_row(row.problem, row.op, row.dtype, row.layout, *numbers, row.kernel or "PyTorch's")
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    for op, dtype, layout in dict.fromkeys((row.op, row.dtype, row.layout) for row in timings):
        same = [row.ratio for row in timings if (row.op, row.dtype, row.layout) == (op, dtype, layout) and row.ratio]
        if same:
            console.print(f"{op} {dtype} {layout}: geometric mean {geometric_mean(same):.2f}, worst {min(same):.2f}")


def draw(timings: list[Timing], path: Path) -> None:
    """Draws the ratios as bars: a panel for each dtype and layout, a group for each layer."""
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((row.dtype, row.layout) for row in timings))
    names = list(dict.fromkeys(row.problem for row in timings))
    ops = list(dict.fromkeys(row.op for row in timings))
    figure = Figure(figsize=(2 + 1.3 * len(names), 4 * len(panels)), layout="constrained")
    for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        for i, op in enumerate(ops):
            rows = [row for row in timings if (row.dtype, row.layout, row.op) == (*panel, op) and row.ratio]
            places = [names.index(row.problem) + (i - (len(ops) - 1) / 2) * 0.8 / len(ops) for row in rows]
            axes.bar(places, [row.ratio for row in rows], 0.8 / len(ops), label=op)
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(title=", ".join(panel), ylabel="time of PyTorch / ours")
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=7)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)
