"""The demonstration's report on one page: a photograph, what a grouped layer makes of it, learning, and times."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.gridspec import SubplotSpec
from torch import Tensor

from .digits import History
from .photographs import displayable
from .timing import Layer, Times

COLOURS = {"PyTorch": "#b9b4a7", "ours": "#1f6f8b"}
NAMES = {"PyTorch": "nn.Conv2d", "ours": "GroupedConv2d"}
INK = "#22303a"


@dataclass
class Report:
    """All that the page shows.

    Attributes:
        names: of the photographs.
        photos: (N, 3, H, W), normalised.
        maps: (C, P, Q), the output of the network's first grouped layer for the first photograph.
        groups: its number of groups.
        layers: the times of each layer, by "forward" and "backward".
        networks: the times of the whole network, by "inference" and "training step".
        histories: the two trainings, by "PyTorch" and "ours".
        summary: one line under the title.

    """

    names: list[str]
    photos: Tensor
    maps: Tensor
    groups: int
    layers: list[tuple[Layer, dict[str, Times]]]
    networks: dict[str, Times]
    histories: dict[str, History]
    summary: str


def draw(report: Report, path: Path) -> None:
    """Writes the page to `path` as a PNG of 1760 x 1210 pixels."""
    figure = Figure(figsize=(16, 11), dpi=110, facecolor="white")
    figure.text(0.035, 0.962, "ResNeXt-50 32x4d on resnext_kernels", size=21, weight="bold", color=INK)
    figure.text(0.035, 0.934, report.summary, size=12, color=INK)
    above = figure.add_gridspec(
        1, 2, left=0.035, right=0.978, top=0.872, bottom=0.515, wspace=0.05, width_ratios=(1, 2)
    )
    below = figure.add_gridspec(
        1, 3, left=0.065, right=0.978, top=0.42, bottom=0.07, wspace=0.3, width_ratios=(3.6, 5, 2.4)
    )
    _photographs(figure, above[0], report)
    _maps(figure, above[1], report)
    _losses(figure, below[0], report)
    _layers(figure, below[1], report)
    _networks(figure, below[2], report)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _title(axes, text: str) -> None:
    axes.set_title(text, loc="left", size=12.5, weight="bold", color=INK, pad=9)


def _plain(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=11, colors=INK, length=0)


def _photographs(figure: Figure, place: SubplotSpec, report: Report) -> None:
    rows = max(4, len(report.names) - 1)
    grid = place.subgridspec(rows, rows + 1, hspace=0.05, wspace=0.05)
    axes = figure.add_subplot(grid[:, :rows])
    axes.imshow(displayable(report.photos[0]), aspect="equal", interpolation="lanczos")
    axes.axis("off")
    _title(axes, f"A photograph ({report.names[0]}) and the rest of the batch")
    for i in range(1, len(report.names)):
        axes = figure.add_subplot(grid[i - 1, rows])
        axes.imshow(displayable(report.photos[i]), aspect="equal", interpolation="lanczos")
        axes.axis("off")


def _maps(figure: Figure, place: SubplotSpec, report: Report, columns: int = 10) -> None:
    width = len(report.maps) // report.groups
    grid = place.subgridspec(width, columns, hspace=0.05, wspace=0.05)
    maps = report.maps.float().cpu().numpy()
    for column in range(columns):
        for row in range(width):
            axes = figure.add_subplot(grid[row, column])
            image = maps[column * width + row]
            low, high = np.percentile(image, (1, 99))
            axes.imshow(image, cmap="cividis", vmin=low, vmax=high, aspect="equal")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if row == width - 1:
                axes.set_xlabel(f"group {column + 1}", size=11, color=INK)
            if row == column == 0:
                _title(
                    axes,
                    f"What the first grouped layer makes of it: {columns} of {report.groups} groups of {width} "
                    "channels (random weights)",
                )


def _losses(figure: Figure, place: SubplotSpec, report: Report) -> None:
    axes = figure.add_subplot(place)
    styles = {"PyTorch": {"linewidth": 5, "alpha": 0.9}, "ours": {"linewidth": 1.4}}
    for who in ("PyTorch", "ours"):
        history = report.histories[who]
        epochs = np.arange(1, len(history.losses) + 1) / len(history.losses) * len(history.accuracies)
        smooth = np.convolve(np.pad(history.losses, (2, 2), "edge"), np.ones(5) / 5, "valid")
        label = f"{NAMES[who]}: {history.accuracies[-1]:.1%} held out"
        axes.plot(epochs, smooth, color=COLOURS[who], label=label, **styles[who])
    axes.set_xlabel("epoch", size=11, color=INK)
    axes.set_ylabel("loss (mean of 5 steps)", size=11, color=INK)
    axes.grid(axis="y", color="#e6e6e6")
    axes.legend(frameon=False, fontsize=11, loc="upper right")
    _plain(axes)
    _title(axes, "Learning handwritten digits from one seed")


def _layers(figure: Figure, place: SubplotSpec, report: Report) -> None:
    grid = place.subgridspec(1, 2, wspace=0.12)
    spots = np.arange(len(report.layers))
    for column, part in enumerate(("forward", "backward")):
        axes = figure.add_subplot(grid[0, column])
        top = 0.0
        for offset, who in ((-0.2, "PyTorch"), (0.2, "ours")):
            values = [1e3 * times[part].seconds(who, times[part].best(who)) for _, times in report.layers]
            axes.barh(spots + offset, values, 0.38, color=COLOURS[who], label=NAMES[who])
            top = max(top, *values)
        for spot, (_, times) in zip(spots, report.layers, strict=True):
            longest = max(times[part].seconds(who, times[part].best(who)) for who in COLOURS)
            label = f"{times[part].speedup:.1f}x"
            axes.text(1e3 * longest + 0.02 * top, spot, label, va="center", size=11, weight="bold", color=INK)
        axes.set_xlim(0, 1.2 * top)
        axes.invert_yaxis()
        axes.set_xlabel(f"{part}, ms (better format)", size=11, color=INK)
        _plain(axes)
        if column == 0:
            labels = [f"{layer.channels} ch, {layer.side}²\nstride {layer.stride}" for layer, _ in report.layers]
            axes.set_yticks(spots, labels)
            _title(axes, f"Grouped 3x3 layers, {len(report.photos)} images")
        else:
            axes.set_yticks([])
            axes.legend(
                frameon=False,
                fontsize=11,
                ncols=2,
                handlelength=1.2,
                columnspacing=1,
                loc="lower right",
                bbox_to_anchor=(1.17, 0.985),
            )


def _networks(figure: Figure, place: SubplotSpec, report: Report) -> None:
    axes = figure.add_subplot(place)
    spots = np.arange(len(report.networks))
    for offset, who, name in ((-0.2, "PyTorch", "torchvision"), (0.2, "ours", "this package")):
        values = [1e3 * times.seconds(who, times.best(who)) for times in report.networks.values()]
        bars = axes.bar(spots + offset, values, 0.38, color=COLOURS[who], label=name)
        axes.bar_label(bars, fmt="%.0f", size=11, color=INK, padding=2)
    labels = [f"{name}\n{times.speedup:.2f}x" for name, times in report.networks.items()]
    axes.set_xticks(spots, labels)
    axes.set_ylabel(f"ms for {len(report.photos)} photographs", size=11, color=INK)
    axes.margins(y=0.28)
    axes.legend(frameon=False, fontsize=11, loc="upper left")
    _plain(axes)
    _title(axes, "The whole network")
