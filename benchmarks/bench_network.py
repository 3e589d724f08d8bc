"""Times whole networks: ResNeXt-50 of torchvision, converted to this package and fused, and ResNet-50.

    python benchmarks/bench_network.py [--batch 1 8] [--layout channels_last] [--dtype bfloat16] [--steps 10]

Inference and one training step (forward, backward, SGD). The rivals take turns, step by step; times are medians.

A page fault costs up to a microsecond. There are 100,000 in a step where the C library returns freed memory to the
system, and none with MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ at 8000000000 in the environment.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median

import torch
import torchvision
from bench_conv import about_this_run, write
from rich.console import Console
from rich.table import Table

from resnext_kernels import convert, fuse

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
FIRST, FUSED = "ResNeXt-50, torchvision", "ResNeXt-50, fused"


def networks(layout: str, dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    """The rivals, the first two with the same weights."""
    theirs, ours = torchvision.models.resnext50_32x4d(), torchvision.models.resnext50_32x4d()
    ours.load_state_dict(theirs.state_dict())
    convert(ours)
    rivals = {
        FIRST: theirs,
        "ResNeXt-50, converted": ours,
        "ResNet-50, torchvision": torchvision.models.resnet50(),
    }
    return {name: network.to(dtype, memory_format=LAYOUTS[layout]) for name, network in rivals.items()}


def infer(network: torch.nn.Module, images: torch.Tensor) -> None:
    """One forward pass without gradients."""
    network.eval()
    with torch.inference_mode():
        network(images)


def train(network: torch.nn.Module, images: torch.Tensor) -> None:
    """One step of SGD."""
    network.train()
    loss = torch.nn.functional.cross_entropy(network(images), torch.zeros(len(images), dtype=torch.long))
    loss.backward()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter -= 1e-4 * parameter.grad
            parameter.grad = None


def page_faults() -> int:
    """Pages that this process has touched first, so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def measure(mode: Callable, rivals: dict[str, torch.nn.Module], images: torch.Tensor, steps: int):
    """Yields name, milliseconds of a step and page faults in it of each rival; medians."""
    times: dict[str, list[float]] = {name: [] for name in rivals}
    faults: dict[str, list[int]] = {name: [] for name in rivals}
    for step in range(steps + 1):
        for name, network in rivals.items():
            before, start = page_faults(), time.perf_counter()
            mode(network, images)
            if step:  # the first warms up
                times[name].append(1e3 * (time.perf_counter() - start))
                faults[name].append(page_faults() - before)
    for name in rivals:
        yield name, median(times[name]), round(median(faults[name]))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[8])
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    about, rows, dtype = about_this_run(arguments.threads), [], getattr(torch, arguments.dtype)
    table = Table(title=f"{arguments.threads} thread(s), {arguments.dtype}, 224x224: ms, and how many times as fast")
    for head in ("images", "layout", "mode", "network", "ms", "as fast as the first", "page faults"):
        table.add_column(head)
    for batch, layout in product(arguments.batch, arguments.layout):
        rivals = networks(layout, dtype)
        images = torch.randn(batch, 3, 224, 224).to(dtype).contiguous(memory_format=LAYOUTS[layout])
        for mode in (infer, train):
            runners = dict(rivals)
            if mode is infer:
                runners[FUSED] = fuse(rivals["ResNeXt-50, converted"].eval())
            results = list(measure(mode, runners, images, arguments.steps))
            for name, milliseconds, faults in results:
                ratio = results[0][1] / milliseconds
                cells = (str(batch), layout, mode.__name__, name, f"{milliseconds:.0f}", f"{ratio:.3f}", str(faults))
                table.add_row(*cells)
                values = {"mode": mode.__name__, "network": name, "ms": milliseconds, "ratio": ratio, "faults": faults}
                rows.append({"batch": batch, "layout": layout, "dtype": arguments.dtype, **values})
    console = Console(width=120)
    console.print(table)
    if arguments.csv:
        write(rows, about, arguments.csv)
        console.print(f"wrote {arguments.csv}")


if __name__ == "__main__":
    main()
