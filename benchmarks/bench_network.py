"""Times whole networks: ResNeXt-50 of torchvision, converted to this package and fused, and ResNet-50.

    python benchmarks/bench_network.py [--batch 8] [--layout channels_last] [--steps 10]

Inference and one training step (forward, backward, SGD). The rivals take turns, step by step; times are medians.

A page fault costs up to a microsecond. There are 100,000 in a step where the C library returns freed memory to the
system, and none with MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ at 8000000000 in the environment.
"""

from __future__ import annotations

import argparse
import resource
import time
from statistics import median

import torch
import torchvision
from rich.console import Console
from rich.table import Table

from resnext_kernels import convert, fuse

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def networks(layout: str) -> dict[str, torch.nn.Module]:
    """The rivals, the first two with the same weights."""
    theirs, ours = torchvision.models.resnext50_32x4d(), torchvision.models.resnext50_32x4d()
    ours.load_state_dict(theirs.state_dict())
    convert(ours)
    rivals = {
        "ResNeXt-50, torchvision": theirs,
        "ResNeXt-50, converted": ours,
        "ResNet-50, torchvision": torchvision.models.resnet50(),
    }
    return {name: network.to(memory_format=LAYOUTS[layout]) for name, network in rivals.items()}


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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    table = Table(
        title=f"batch {arguments.batch}, {arguments.threads} thread(s), float32, 224x224: ms, and how many times"
    )
    for head in ("layout", "mode", "network", "ms", "as fast as the first", "page faults"):
        table.add_column(head)
    for layout in arguments.layout:
        rivals = networks(layout)
        images = torch.randn(arguments.batch, 3, 224, 224).contiguous(memory_format=LAYOUTS[layout])
        for mode in (infer, train):
            runners = dict(rivals)
            if mode is infer:
                runners["ResNeXt-50, fused"] = fuse(rivals["ResNeXt-50, converted"].eval())
            times: dict[str, list[float]] = {name: [] for name in runners}
            faults: dict[str, list[int]] = {name: [] for name in runners}
            for step in range(arguments.steps + 1):
                for name, network in runners.items():
                    before, start = page_faults(), time.perf_counter()
                    mode(network, images)
                    if step:  # the first warms up
                        times[name].append(1e3 * (time.perf_counter() - start))
                        faults[name].append(page_faults() - before)
            first = median(next(iter(times.values())))
            for name, samples in times.items():
                cells = f"{median(samples):.0f}", f"{first / median(samples):.3f}", f"{median(faults[name]):.0f}"
                table.add_row(layout, mode.__name__, name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
