"""Draws what bench_conv.py measured, and writes README's tables.

    python benchmarks/plot.py benchmarks/results/FILE.csv ... [--networks FILE.csv] [--readme README.md]

Beside the first file: `speedup.png`, each layer's ratio by pass and layout, and `roofline.png`, its operations a second
over the operations for each byte that it has to move. With --readme, the geometric means and the worst layers replace
what stands between two markers of that file, and what bench_network.py measured between two others.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from statistics import geometric_mean

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

PASSES = {"fprop": "forward", "dgrad": "input gradient", "wgrad": "weight gradient"}
LAYOUTS = {"NHWC": "channels_last", "NCHW": "contiguous"}
WRITTEN = "written by benchmarks/plot.py"
MARKERS = {name: (f"<!-- {name}: {WRITTEN} -->", f"<!-- end of {name} -->") for name in ("speed", "networks")}


def read(paths: list[Path]) -> list[dict]:
    """The rows that were measured."""
    rows = [row for path in paths for row in csv.DictReader(path.open())]
    return [row for row in rows if row["ratio"]]


def select(rows: list[dict], **values: str) -> list[dict]:
    """The rows with these values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def draw_speedups(rows: list[dict], path: Path) -> None:
    """A panel for each dtype and layout, a mark for each layer, batch and pass."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    figure, panels = plt.subplots(len(dtypes), 2, figsize=(12, 4 * len(dtypes)), squeeze=False, sharey=True)
    layers = list(dict.fromkeys(row["layer"] for row in sorted(rows, key=lambda row: int(row["group_width"]))))
    for dtype, line in zip(dtypes, panels, strict=True):
        for layout, panel in zip(LAYOUTS, line, strict=True):
            for i, op in enumerate(PASSES):
                for batch, marker in zip(dict.fromkeys(row["batch"] for row in rows), "o^sv", strict=False):
                    found = select(rows, dtype=dtype, layout=layout, batch=batch, **{"pass": op})
                    x = [layers.index(row["layer"]) + (i - 1) / 5 for row in found]
                    y = [float(row["ratio"]) for row in found]
                    panel.plot(x, y, marker, color=f"C{i}", markersize=4, label=f"{PASSES[op]}, N={batch}")
            panel.axhline(1, color="black", linewidth=0.8)
            panel.set(title=f"{dtype}, {LAYOUTS[layout]}", yscale="log", ylabel="time of nn.Conv2d / ours")
            panel.yaxis.set_major_formatter(ScalarFormatter())
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_minor_formatter(NullFormatter())
            panel.set_xticks(range(len(layers)), layers, rotation=60, ha="right", fontsize=7)
    figure.legend(*panels[0][0].get_legend_handles_labels(), fontsize=8, ncols=6, loc="lower center")
    figure.tight_layout(rect=(0, 0.04, 1, 1))
    figure.savefig(path, dpi=100)


def draw_roofline(rows: list[dict], path: Path) -> None:
    """Operations a second over operations for each byte."""
    figure, panel = plt.subplots(figsize=(7, 5))
    for i, dtype in enumerate(dict.fromkeys(row["dtype"] for row in rows)):
        for op, marker in zip(PASSES, "o^s", strict=True):
            found = select(rows, dtype=dtype, **{"pass": op})
            x, y = ([float(row[name]) for row in found] for name in ("flops_per_byte", "ours_gflops"))
            panel.plot(x, y, marker, color=f"C{i}", markersize=4, label=f"{dtype}, {PASSES[op]}")
        bounds = {
            float(row["flops_per_byte"]): float(row["ours_gflops"]) / float(row["of_limit"])
            for row in select(rows, dtype=dtype)
        }
        panel.plot(*zip(*sorted(bounds.items()), strict=True), color=f"C{i}", linewidth=0.8)
    panel.set(xscale="log", yscale="log", xlabel="operations for each byte", ylabel="GFLOP/s")
    panel.set_title("operations of plain sums; lines: a large matrix product or a copy in the same run")
    panel.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def table(rows: list[dict]) -> str:
    """Geometric means and worst layers in Markdown."""
    columns = list(dict.fromkeys((row["dtype"], row["batch"]) for row in rows))
    heads = [f"{dtype}, {batch} image{'' if batch == '1' else 's'}" for dtype, batch in columns]
    lines = ["| memory format | pass | " + " | ".join(heads) + " |", "| --- " * (2 + len(columns)) + "|"]
    for layout, op in ((layout, op) for layout in LAYOUTS for op in PASSES):
        cells = []
        for dtype, batch in columns:
            found = select(rows, dtype=dtype, batch=batch, layout=layout, **{"pass": op})
            ratios = [float(row["ratio"]) for row in found]
            cells.append(f"{geometric_mean(ratios):.2f} ({min(ratios):.2f})" if ratios else "-")
        lines.append(f"| {LAYOUTS[layout]} | {PASSES[op]} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", origin(rows)])


def origin(rows: list[dict]) -> str:
    """Where the rows come from, in a line."""
    about = rows[0]
    return f"{about['cpu']}, {about['threads']} thread(s), torch {about['torch']}, commit {about['commit']}."


def network_table(rows: list[dict]) -> str:
    """Times of torchvision's ResNeXt-50 over ours in Markdown."""
    columns = list(dict.fromkeys((row["dtype"], row["batch"]) for row in rows))
    heads = [f"{dtype}, {batch} image{'' if batch == '1' else 's'}" for dtype, batch in columns]
    lines = ["| ResNeXt-50 32x4d | memory format | " + " | ".join(heads) + " |", "| --- " * (2 + len(columns)) + "|"]
    kinds = {"inference, `convert`": ("infer", "converted"), "inference, `convert` and `fuse`": ("infer", "fused")}
    kinds["training step, `convert`"] = ("train", "converted")
    for title, (mode, name) in kinds.items():
        for layout in dict.fromkeys(row["layout"] for row in rows):
            cells = []
            for dtype, batch in columns:
                found = select(rows, dtype=dtype, batch=batch, layout=layout, mode=mode, network=f"ResNeXt-50, {name}")
                cells.append(f"{float(found[0]['ratio']):.2f} ({float(found[0]['ms']):.0f} ms)" if found else "-")
            lines.append(f"| {title} | {layout} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", origin(rows)])


def replace(path: Path, name: str, text: str) -> None:
    """Puts a text between two markers of a file."""
    begin, end = MARKERS[name]
    before, rest = path.read_text().split(begin)
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("csv", type=Path, nargs="*", help="files of bench_conv.py")
    parser.add_argument("--networks", type=Path, nargs="*", default=[], help="files of bench_network.py")
    parser.add_argument("--readme", type=Path)
    arguments = parser.parse_args()
    if arguments.csv:
        rows = read(arguments.csv)
        draw_speedups(rows, arguments.csv[0].parent / "speedup.png")
        draw_roofline(rows, arguments.csv[0].parent / "roofline.png")
        if arguments.readme:
            replace(arguments.readme, "speed", table(rows))
    if arguments.networks and arguments.readme:
        replace(arguments.readme, "networks", network_table(read(arguments.networks)))


if __name__ == "__main__":
    main()
