"""Real photographs through ResNeXt-50 on this package: agreement with torchvision, times, learning, a picture.

    python examples/demo.py [--short] [--output FILE.png] [--threads N]

Needs no network: the photographs come with scikit-learn and scikit-image, and the weights are random (seeded),
because pretrained ones would have to be downloaded. Exit status 0 if our network agrees with torchvision's and
the small network trained on our operator reads at least 98 % of the held-out digits, otherwise 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
import torchvision
from demo_parts import agreement, digits, photographs, picture, timing
from demo_parts.timing import FORMATS, Layer, Times
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import resnext_kernels
from resnext_kernels import GroupedConv2d
from resnext_kernels.network import resnext50_32x4d

HEADINGS = {"contiguous": "contig-\nuous", "channels_last": "channels\n_last"}  # the whole fits 80 columns
CLASSES = {"PyTorch": nn.Conv2d, "ours": GroupedConv2d}
NEEDED_ACCURACY = 0.98


@dataclass(frozen=True)
class Size:
    """How much of everything to run."""

    photographs: int
    layers: int | None  # None: all of them
    layer_rounds: int
    network_rounds: int
    epochs: int


FULL = Size(photographs=5, layers=None, layer_rounds=9, network_rounds=3, epochs=6)
SHORT = Size(photographs=2, layers=2, layer_rounds=3, network_rounds=1, epochs=6)


@contextmanager
def progress(console: Console, text: str, total: int):
    """A progress bar; yields the function that moves it on by one."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as bar:
        task = bar.add_task(text, total=total)
        yield lambda: bar.advance(task)


def choose_device() -> tuple[torch.device, str]:
    """The GPU if this package has kernels for it, otherwise the CPU; and the words for it."""
    if not torch.cuda.is_available():
        return torch.device("cpu"), "the CPU (torch finds no CUDA device)"
    input, weight = torch.empty(1, 8, 8, 8, device="cuda"), torch.empty(8, 4, 3, 3, device="cuda")
    for op in ("fprop", "dgrad", "wgrad"):
        explanation = resnext_kernels.explain(op, input, weight, padding=1, groups=2)
        if explanation.kernel is None:
            why = resnext_kernels._ops.why_no_cuda or explanation.reason
            return torch.device("cpu"), f"the CPU (there is a CUDA device, but for {op} on it: {why})"
    return torch.device("cuda"), f"the GPU ({torch.cuda.get_device_name()})"


def choose_threads(asked: int | None) -> str:
    """Sets the number of CPU threads; returns the words for it."""
    count, why = (asked, "as asked") if asked else timing.choose_threads()
    torch.set_num_threads(count)
    return f"{count} thread{'s' * (count > 1)} ({why})"


def networks(names: list[str], photos: Tensor) -> dict[str, nn.Module]:
    """ResNeXt-50 32x4d of torchvision and ours, with the same random weights and the photographs' statistics."""
    torch.manual_seed(0)
    theirs = torchvision.models.resnext50_32x4d(weights=None).to(photos.device)
    agreement.collect_statistics(theirs, photos)
    ours = resnext50_32x4d().to(photos.device)
    ours.load_state_dict(theirs.state_dict())
    return {"PyTorch": theirs, "ours": ours.eval()}


def measure_agreement(
    models: dict[str, nn.Module], photos: Tensor, labels: Tensor, advance: Callable[[], None]
) -> tuple[dict[str, list[agreement.Row]], dict[str, dict[str, int]]]:
    """Per memory format: the rows of the comparison, and how many ReLU inputs rounding moved across zero."""
    sides = agreement.SameSides()
    exact = torchvision.models.resnext50_32x4d(weights=None).to(photos.device, torch.float64).eval()
    exact.load_state_dict(models["PyTorch"].state_dict())
    truth = agreement.forward_backward(exact, photos.double(), labels, sides)
    advance()
    rows, flips = {}, {}
    for name, memory_format in FORMATS.items():
        runs, flips[name] = {}, {}
        for who, model in models.items():
            model.to(memory_format=memory_format)
            images = photos.contiguous(memory_format=memory_format)
            runs[who] = agreement.forward_backward(model, images, labels, sides)
            flips[name][who] = sides.flips
            advance()
        rows[name] = agreement.compare(runs["ours"], runs["PyTorch"], truth)
    for model in models.values():
        model.to(memory_format=torch.contiguous_format)
    return rows, flips


def show_agreement(console: Console, name: str, rows: list[agreement.Row], flips: dict[str, int], worst: int) -> bool:
    """Prints the worst tensors of one memory format and the verdict; returns whether all agree."""
    table = Table(
        title=f"Distance from float64, {name}: logits, photographs' gradient, {worst} worst gradients",
        box=box.SIMPLE_HEAD,
    )
    table.add_column("tensor", no_wrap=True)
    for heading in (
        "PyTorch's\nerror per\nvalue (rms)",
        "ours /\nPyTorch's\n(rms)",
        "PyTorch's\nlargest\nerror",
        "our\nlargest\nerror",
        "agrees",
    ):
        table.add_column(heading, justify="right")
    by_name = {row.name: row for row in rows}
    shown = [by_name.pop(first) for first in ("logits", "photographs")] + list(by_name.values())[:worst]
    for row in shown:
        share = f"{row.theirs / row.scale:.1e}" if row.scale else "-"
        largest = (f"{row.theirs_largest:.1e}", f"{row.ours_largest:.1e}")
        table.add_row(row.name, share, f"{row.ratio:.2f}", *largest, "yes" if row.agrees else "NO")
    console.print(table)
    good = sum(row.agrees for row in rows)
    verdict = "PASSED" if good == len(rows) else "FAILED"
    console.print(
        f"Agreement, {name}: {verdict}: {good} of {len(rows)} tensors within twice PyTorch's own float32 error plus "
        f"one rounding unit; ours is {median(row.ratio for row in rows):.2f} times PyTorch's in the median, "
        f"{rows[0].ratio:.2f} at worst."
    )
    console.print(
        f"ReLU inputs that rounding moved across zero: PyTorch {flips['PyTorch']}, ours {flips['ours']}.\n", style="dim"
    )
    return good == len(rows)


def time_table(title: str, rows: list[tuple[str, str, Times]]) -> Table:
    """Milliseconds of both implementations in both memory formats, and the ratio of the best ones."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("what")
    table.add_column("pass", no_wrap=True)
    for who in ("PyTorch", "ours"):
        for name in FORMATS:
            table.add_column(f"{who}\n{HEADINGS[name]}", justify="right")
    table.add_column("PyTorch\n/ ours,\nbest", justify="right")
    for what, part, times in rows:
        cells = []
        for who in ("PyTorch", "ours"):
            for name in FORMATS:
                cell = f"{1e3 * times.seconds(who, name):.2f}"
                cells.append(f"[bold]{cell}[/bold]" if name == times.best(who) else cell)
        table.add_row(what, part, *cells, f"{times.speedup:.2f}x", end_section=part in ("backward", "training step"))
    return table


def show_layers(console: Console, measured: list[tuple[Layer, dict[str, Times]]], batch: int) -> None:
    """Prints the per-layer table and what the layers add up to in one network."""
    rows = []
    for layer, parts in measured:
        lines = (
            f"{layer.count} x {layer.channels}x{layer.side}x{layer.side}",
            f"d={layer.width}, stride {layer.stride}",
        )
        rows += [(line, part, times) for line, (part, times) in zip(lines, parts.items(), strict=True)]
    images = "1 image" if batch == 1 else f"{batch} images"
    console.print(time_table(f"Grouped 3x3 layers (d channels per group), {images}, ms (bold: better format)", rows))
    count = sum(layer.count for layer, _ in measured)
    for part in ("forward", "backward"):
        sums = {
            who: sum(layer.count * parts[part].seconds(who, parts[part].best(who)) for layer, parts in measured)
            for who in CLASSES
        }
        console.print(
            f"Sum of these {count} layers, {part}, each in its best format: nn.Conv2d "
            f"{1e3 * sums['PyTorch']:.1f} ms, GroupedConv2d {1e3 * sums['ours']:.1f} ms: "
            f"{sums['PyTorch'] / sums['ours']:.2f}x."
        )


def kernels_line(layer: Layer, batch: int, device: torch.device) -> str:
    """Which kernels of this package run a layer, per pass and memory format."""
    parts = []
    weight = torch.empty(layer.out_channels, layer.width, 3, 3, device=device)
    for name, memory_format in FORMATS.items():
        input = torch.empty(batch, layer.channels, layer.side, layer.side, device=device)
        input = input.contiguous(memory_format=memory_format)
        arguments = (input, weight, None, layer.stride, 1, 1, layer.groups)
        chosen = [resnext_kernels.explain(op, *arguments).kernel for op in ("fprop", "dgrad", "wgrad")]
        parts.append(f"{name} {', '.join(str(kernel) for kernel in chosen)}")
    return f"Kernels of the first layer: {'; '.join(parts)}."


def show_digits(console: Console, histories: dict[str, digits.History], held_out: int) -> bool:
    """Prints the two trainings side by side and the verdict; returns whether ours reads enough digits."""
    table = Table(title="Handwritten digits: a ResNeXt of 3 blocks, trained twice from one seed", box=box.SIMPLE_HEAD)
    table.add_column("epoch", justify="right")
    for column in ("loss, nn.Conv2d", "loss, GroupedConv2d", "held out, nn.Conv2d", "held out, GroupedConv2d"):
        table.add_column(column, justify="right")
    epochs = len(histories["ours"].accuracies)
    steps = len(histories["ours"].losses) // epochs
    for epoch in range(epochs):
        chunks = [histories[who].losses[epoch * steps : (epoch + 1) * steps] for who in CLASSES]
        table.add_row(
            str(epoch + 1),
            *(f"{sum(chunk) / steps:.4f}" for chunk in chunks),
            *(f"{histories[who].accuracies[epoch]:.1%}" for who in CLASSES),
        )
    console.print(table)
    theirs, ours = (histories[who] for who in CLASSES)
    apart = max(abs(a - b) for a, b in zip(ours.losses[:5], theirs.losses[:5], strict=True))
    passed = ours.accuracies[-1] >= NEEDED_ACCURACY
    console.print(
        f"Accuracy: {'PASSED' if passed else 'FAILED'}: GroupedConv2d {ours.accuracies[-1]:.1%}, nn.Conv2d "
        f"{theirs.accuracies[-1]:.1%} of {held_out} held-out digits ({NEEDED_ACCURACY:.0%} needed). The losses of the "
        f"first five steps differ by at most {apart:.1e}; then rounding differences grow, as in any two trainings.\n"
    )
    return passed


def train_digits(console: Console, device: torch.device, epochs: int) -> tuple[dict[str, digits.History], int]:
    """Trains the small network on each convolution class; returns the histories and the number of held-out digits."""
    split = digits.load_split(device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # 8x8 images: handing work to other threads costs more than it saves
    try:
        with progress(console, "Training on digits, twice", 2 * epochs) as advance:
            histories = {who: digits.train(conv, split, epochs, advance) for who, conv in CLASSES.items()}
    finally:
        torch.set_num_threads(threads)
    return histories, len(split.held_out_labels)


def limit_line(measured: list[tuple[Layer, dict[str, Times]]], inference: Times) -> str:
    """How much of the network's time its grouped layers take, and so how much faster kernels for them can make it."""
    name = inference.best("PyTorch")
    grouped = sum(layer.count * parts["forward"].seconds("PyTorch", name) for layer, parts in measured)
    whole = inference.seconds("PyTorch", name)
    return (
        f"In torchvision's network, the grouped layers take {1e3 * grouped:.0f} of {1e3 * whole:.0f} ms of inference "
        f"({name}): if they took no time at all, it would be {whole / (whole - grouped):.2f} times as fast."
    )


def measure_times(
    console: Console, models: dict[str, nn.Module], photos: Tensor, labels: Tensor, size: Size
) -> tuple[list[tuple[Layer, dict[str, Times]]], dict[str, Times]]:
    """The times of the grouped layers and of the whole networks; prints both."""
    device = photos.device
    wait = torch.cuda.synchronize if photos.is_cuda else lambda: None
    layers = timing.grouped_layers(models["PyTorch"])[: size.layers]
    with progress(console, "Timing grouped layers", len(layers)) as advance:
        measured = []
        for layer in layers:
            measured.append((layer, timing.time_layer(layer, CLASSES, len(photos), size.layer_rounds, device, wait)))
            advance()
    show_layers(console, measured, len(photos))
    console.print(kernels_line(layers[0], len(photos), device) + "\n", style="dim")
    with progress(console, "Timing whole networks", 1) as advance:
        whole = timing.time_networks(models, photos, labels, size.network_rounds, wait)
        advance()
    rows = [("network" if part == "inference" else "", part, times) for part, times in whole.items()]
    console.print(time_table(f"Whole network, {len(photos)} photographs, milliseconds", rows))
    console.print((limit_line(measured, whole["inference"]) if size.layers is None else "") + "\n")
    return measured, whole


def first_maps(model: nn.Module, photo: Tensor) -> tuple[Tensor, int]:
    """The output (C, P, Q) of the network's first grouped layer for a photograph, and its number of groups."""
    layer = model.get_submodule("layer1.0.conv2")
    caught = []
    handle = layer.register_forward_hook(lambda module, inputs, output: caught.append(output))
    with torch.no_grad():
        model(photo[None])
    handle.remove()
    return caught[0][0], layer.groups


def introduce(console: Console, where: str, names: list[str]) -> None:
    """Says what is about to run, on what."""
    console.print("\n[bold]ResNeXt-50 32x4d on resnext_kernels[/bold]")
    console.print(f"Running on {where}; torch {torch.__version__}, torchvision {torchvision.__version__}.")
    if hasattr(os, "getloadavg"):
        console.print(f"Load of the machine before the start: {os.getloadavg()[0]:.1f} (times suffer from neighbours).")
    console.print(f"Photographs: {', '.join(names)} (from scikit-learn and scikit-image), 224x224.")
    console.print("Weights: random, seed 0, the same in both networks (pretrained ones would need a download).\n")


def main(arguments: list[str] | None = None) -> int:
    """Runs the demonstration; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("build/demo_report.png"), help="where the picture goes")
    parser.add_argument("--short", action="store_true", help="fewer photographs, layers, rounds and epochs")
    parser.add_argument("--threads", type=int, help="CPU threads (default: as many as help)")
    options = parser.parse_args(arguments)
    size = SHORT if options.short else FULL
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    start = time.monotonic()
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32 here
    device, where = choose_device()
    if device.type == "cpu":
        where += f", with {choose_threads(options.threads)}"
    names, photos = photographs.load(size.photographs)
    introduce(console, where, names)

    photos, labels = photos.to(device), 100 * torch.arange(len(photos), device=device)
    models = networks(names, photos)
    with progress(console, "Forward and backward, float64 and float32", 1 + 2 * len(FORMATS)) as advance:
        rows, flips = measure_agreement(models, photos, labels, advance)
    agrees = [show_agreement(console, name, rows[name], flips[name], worst=4) for name in FORMATS]
    measured, whole = measure_times(console, models, photos, labels, size)
    histories, held_out = train_digits(console, device, size.epochs)
    learned = show_digits(console, histories, held_out)

    tensors = sum(len(part) for part in rows.values())
    good = sum(row.agrees for part in rows.values() for row in part)
    summary = (
        f"{good} of {tensors} tensors (logits and gradients, two memory formats) within twice PyTorch's own float32 "
        f"error of float64. {device.type.upper()}, torch {torch.__version__}."
    )
    maps, groups = first_maps(models["ours"], photos[0])
    report = picture.Report(names, photos, maps, groups, measured, whole, histories, summary)
    picture.draw(report, options.output)
    console.print(f"Picture: {options.output}")
    passed = all(agrees) and learned
    console.print(f"[bold]Demo {'PASSED' if passed else 'FAILED'}[/bold] in {time.monotonic() - start:.0f} seconds.")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
