"""Times every grouped layer of a ResNeXt, this package against torch.nn.functional.conv2d, and prints the ratios.

    python benchmarks/bench_conv.py [--network resnext50_32x4d] [--dtype bfloat16] [--batch 1 16] [--passes fprop dgrad]

Without arguments: all layers of the three networks, in float32 and bfloat16. The network "other" is none: RegNet's and
other widths of groups, odd maps, unequal inputs and outputs. benchmarks/plot.py draws what --csv writes.

Each call is what a training step makes: the function, and the operators that its backward calls, with the output
allocated and weights packed inside. The two rivals take turns call by call, so that whatever else the machine does
falls on both, and calls count, a tenth of a second at a time, only if all threads ran for 94 % of it (otherwise another
process had taken a core, or a rival leaves one idle, as PyTorch's bfloat16 dgrad of one NHWC image does on CPUs with
AVX2 alone: that row is never counted; the column "disturbed" has how many calls were left out). Times are medians over
the calls that count; a ratio above 1 means that ours is faster. All rows are timed in three rounds, with new tensors in
each, as a shared machine may be slow for seconds at a time. In NHWC the weight is channels_last, too, as in a model
that was moved `to(memory_format=torch.channels_last)`.
Each call's output is freed before the next call. Ours from 4 MiB on then have kept memory (docs/cpu.md), PyTorch's what
malloc gives; with MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ at 8000000000 in the environment that is kept, too.
"Ours" is what a user gets: where `explain` says that PyTorch's own convolution runs, both rivals are the same (the
column "kernel" says PyTorch), unless --own asks for this package's kernel all the same.

--peers adds forward calls with weights that are packed ahead: of torch.compile with frozen weights, of this package's
FusedGroupedConv2d ("packed"), and of ONNX Runtime (with onnx) and OpenVINO, these two in float32 NCHW; install what you
name. They take turns with the two rivals in the same process.

"% limit" compares with what the machine was seen to do in the same run: the time of a copy of as many bytes as the pass
moves or, if that is longer, that of as many operations in PyTorch's product of two large matrices of the same dtype.
Operations are those of plain sums, of which a kernel by Winograd's filtering does fewer: it may pass 100 %.
"""

from __future__ import annotations

import argparse
import csv
import functools
import itertools
import os
import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean, median, quantiles

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from resnext_kernels import FusedGroupedConv2d, convert, problems
from resnext_kernels.bench import FEWEST_CALLS, interleave, rivals

LAYOUTS = {"NHWC": torch.channels_last, "NCHW": torch.contiguous_format}
NETWORKS = ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")
ROUNDS = 3
OTHER = tuple(
    problems.Problem(1, width * groups, side, side, outputs * groups, groups=groups, stride=(stride, stride))
    for width, outputs, groups, side, stride in (
        *((2, 2, 48, 56, 1), (3, 3, 32, 35, 1), (6, 6, 32, 28, 2), (12, 12, 16, 28, 1), (14, 14, 16, 28, 2)),
        *((24, 24, 5, 56, 2), (24, 24, 10, 28, 1), (40, 40, 12, 14, 1), (48, 48, 7, 14, 1), (56, 56, 8, 13, 1)),
        *((4, 4, 32, 100, 1), (8, 8, 32, 35, 2), (16, 16, 32, 13, 1), (4, 8, 32, 35, 1), (64, 32, 4, 13, 1)),
    )
)


def best_time(call: Callable, repeats: int = 7) -> float:
    """Seconds of the fastest of some calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


@functools.cache
def matrix_flops(dtype: torch.dtype, side: int = 1024) -> float:
    """Operations a second in a product of two matrices."""
    a, b = torch.randn(2, side, side).to(dtype)
    return 2 * side**3 / best_time(lambda: a @ b, 50)


@functools.cache
def copy_time(moved: int) -> float:
    """Seconds of a copy that reads half of the bytes and writes the other half."""
    source = torch.zeros(moved // 2, dtype=torch.uint8)
    target = torch.zeros_like(source)
    return best_time(lambda: target.copy_(source))


def limit(problem: problems.Problem, dtype: torch.dtype) -> tuple[float, str]:
    """Seconds that the machine needs for a pass at least, and by which limit."""
    arithmetic, memory = problem.flops / matrix_flops(dtype), copy_time(problem.bytes(dtype.itemsize))
    return max((arithmetic, "arithmetic"), (memory, "memory"))


def compiled_by_torch(convolution: torch.nn.Conv2d, input: torch.Tensor, threads: int) -> Callable:
    """A call of torch.compile's code with frozen weights."""
    torch.compiler.reset()  # else it would give up specialising after some layers
    compiled = torch.compile(convolution, options={"freezing": True}, dynamic=False)

    def call():
        with torch.no_grad():
            return compiled(input)

    return call


def in_onnxruntime(convolution: torch.nn.Conv2d, input: torch.Tensor, threads: int) -> Callable:
    """A call of ONNX Runtime."""
    import onnx
    import onnxruntime

    shapes = {"x": input.shape, "y": convolution(input).shape}
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, size) for name, size in shapes.items())
    pads = [convolution.padding[0], convolution.padding[1]] * 2
    node = onnx.helper.make_node(
        "Conv", ["x", "w"], ["y"], group=convolution.groups, pads=pads, strides=list(convolution.stride)
    )
    weight = onnx.numpy_helper.from_array(convolution.weight.detach().contiguous().numpy(), "w")
    graph = onnx.helper.make_graph([node], "convolution", [x], [y], [weight])
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 21)])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or it takes time from its rivals
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    array = input.numpy()
    return lambda: session.run(None, {"x": array})


def in_openvino(convolution: torch.nn.Conv2d, input: torch.Tensor, threads: int) -> Callable:
    """A call of OpenVINO, held to float32."""
    import openvino

    model = openvino.convert_model(convolution, example_input=input)
    model.reshape(list(input.shape))
    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    array = input.numpy()
    return lambda: compiled(array)


def with_packed_weights(convolution: torch.nn.Conv2d, input: torch.Tensor, threads: int) -> Callable:
    """A call of this package's module for inference."""
    convert(convolution)
    module = FusedGroupedConv2d(convolution, None, "none")
    return lambda: module(input)


PEERS = {
    "compile": compiled_by_torch,
    "onnxruntime": in_onnxruntime,
    "openvino": in_openvino,
    "packed": with_packed_weights,  # last: it changes the convolution's class
}


def peer_calls(
    names: list[str], problem: problems.Problem, op: str, layout: str, dtype: torch.dtype, threads: int
) -> dict[str, Callable]:
    """Calls without arguments of those peers that have this pass, layout and dtype."""
    every = ("compile", "packed")  # layout and dtype
    suits = lambda name: op == "fprop" and (name in every or (layout, dtype) == ("NCHW", torch.float32))  # noqa: E731
    names = [name for name in PEERS if name in names and suits(name)]
    if not names:
        return {}
    convolution = torch.nn.Conv2d(
        problem.c, problem.k, 3, problem.stride, problem.padding, groups=problem.groups, bias=False, dtype=dtype
    )
    convolution = convolution.eval().requires_grad_(False).to(memory_format=LAYOUTS[layout])
    input = torch.randn(problem.input_shape).to(dtype).contiguous(memory_format=LAYOUTS[layout])
    return {name: PEERS[name](convolution, input, threads) for name in names}


def measure(arguments: argparse.Namespace, progress: Progress) -> list[dict]:
    """A row for each layer, batch, layout and pass."""
    networks = NETWORKS if arguments.network == "all" else [arguments.network]
    layers = [layer for network in networks for layer in (OTHER if network == "other" else getattr(problems, network))]
    dtypes = [getattr(torch, name) for name in arguments.dtype]
    cases = list(itertools.product(dtypes, arguments.batch, layers, arguments.layouts, arguments.passes))
    rows = [Row(*case) for case in cases]
    for row in progress.track(rows * ROUNDS, description="layers"):
        row.measure(arguments)
    return [row.summary() for row in rows]


class Row:
    """A pass of a layer, and all times of it."""

    def __init__(self, dtype: torch.dtype, batch: int, layer: problems.Problem, layout: str, op: str) -> None:
        self.dtype, self.layout, self.op = dtype, layout, op
        self.problem = layer.with_batch(batch)
        self.times: dict[str, list[float]] = defaultdict(list)
        self.disturbed = 0

    def measure(self, arguments: argparse.Namespace) -> None:
        """One round: new tensors, and times until its share of the seconds is up."""
        theirs, ours, self.kernel = rivals(self.problem, self.op, LAYOUTS[self.layout], self.dtype, arguments.own)
        peers = peer_calls(arguments.peers, self.problem, self.op, self.layout, self.dtype, arguments.threads)
        calls = {"torch": theirs, "ours": ours, **peers}
        times, disturbed = interleave(tuple(calls.values()), arguments.threads, arguments.seconds / ROUNDS)
        for name, its_times in zip(calls, times, strict=True):
            self.times[name] += its_times
        self.disturbed += disturbed

    def summary(self) -> dict:
        """What is shown and written; without times if too few calls were counted."""
        problem = self.problem
        width, outputs = problem.c // problem.groups, problem.k // problem.groups
        widths = f"{width}" if width == outputs else f"{width}->{outputs}"
        row = {
            "layer": f"{problem.c}/{widths} {problem.h}x{problem.w} s{problem.stride[0]}",
            "group_width": width,
            "dtype": str(self.dtype).removeprefix("torch."),
            "batch": problem.n,
            "layout": self.layout,
            "pass": self.op,
            "disturbed": self.disturbed,
            "calls": min(map(len, self.times.values())),
            "kernel": self.kernel or "PyTorch",
        }
        if row["calls"] >= FEWEST_CALLS:
            middle = {name: median(samples) for name, samples in self.times.items()}
            ours = middle["ours"]
            row["torch_ms"], row["ours_ms"] = 1e3 * middle["torch"], 1e3 * ours
            row["ratio"] = middle["torch"] / ours
            low, _, high = quantiles(self.times["ours"], n=4)
            row["ours_spread"] = (high - low) / ours
            row["ours_gflops"] = problem.flops / ours / 1e9
            row["flops_per_byte"] = problem.flops / problem.bytes(self.dtype.itemsize)
            seconds, row["limited_by"] = limit(problem, self.dtype)
            row["of_limit"] = seconds / ours
            for name in list(middle)[2:]:
                row[f"{name}_ms"], row[f"{name}_ratio"] = 1e3 * middle[name], middle[name] / ours
        return row


def show(rows: list[dict], console: Console) -> None:
    """The table, and the geometric mean of the ratios by layout, pass and batch."""
    table = Table(title="nn.Conv2d against resnext_kernels: medians; a ratio above 1 means ours is faster")
    headers = [
        "layer",
        "dtype",
        "N",
        "layout",
        "pass",
        "torch ms",
        "ours ms",
        "ratio",
        "spread",
        "GFLOP/s",
        "% limit",
        "disturbed",
        "kernel",
    ]
    for i, name in enumerate(headers):
        table.add_column(name, justify="left" if i in (0, 1, 3, 4, 12) else "right")
    for row in rows:
        fixed = [row["layer"], row["dtype"], str(row["batch"]), row["layout"], row["pass"]]
        if "ratio" not in row:
            table.add_row(*fixed, "-", "-", "never counted", "-", "-", "-", str(row["disturbed"]), row["kernel"])
            continue
        colour = "green" if row["ratio"] >= 1.05 else "yellow" if row["ratio"] >= 0.95 else "red"
        times = [f"{row['torch_ms']:.3f}", f"{row['ours_ms']:.3f}", f"[{colour}]{row['ratio']:.2f}[/]"]
        table.add_row(
            *fixed,
            *times,
            f"{row['ours_spread']:.0%}",
            f"{row['ours_gflops']:.0f}",
            f"{row['of_limit']:.0%}",
            str(row["disturbed"]),
            row["kernel"],
        )
    console.print(table)
    keys = ("dtype", "layout", "pass", "batch")
    for key in dict.fromkeys(tuple(row[name] for name in keys) for row in rows):
        ratios = [row["ratio"] for row in rows if tuple(row[name] for name in keys) == key and "ratio" in row]
        if ratios:
            mean, worst = geometric_mean(ratios), min(ratios)
            console.print(f"{' '.join(map(str, key))}: geometric mean {mean:.2f}x, worst layer {worst:.2f}x")
    for row in rows:
        if row.get("ratio", 1) < 1 and row["kernel"] != "PyTorch":
            console.print("below 1:", *(row[name] for name in ("layer", *keys)), f"{row['ratio']:.2f}x")
    for peer in PEERS:
        ratios = [row[f"{peer}_ratio"] for row in rows if f"{peer}_ratio" in row]
        if ratios:
            console.print(
                f"{peer} / ours: geometric mean {geometric_mean(ratios):.2f}x, worst layer {min(ratios):.2f}x"
            )


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def about_this_run(threads: int) -> dict:
    """What has to be known of a run: machine, versions, and how busy it is."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    about = {"cpu": cpu_name(), "threads": threads, "torch": torch.__version__, "commit": commit}
    return {**about, "load": f"{os.getloadavg()[0]:.1f}"}


def write(rows: list[dict], about: dict, path: Path) -> None:
    """Writes the rows as CSV, with what is known of the run in each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)) + list(about))
        writer.writeheader()
        writer.writerows({**row, **about} for row in rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=[*NETWORKS, "all", "other"], default="all")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--passes", nargs="+", choices=["fprop", "dgrad", "wgrad"], default=["fprop", "dgrad", "wgrad"])
    dtypes = ["float32", "bfloat16", "float16", "float64"]
    parser.add_argument("--dtype", nargs="+", choices=dtypes, default=dtypes[:2])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.5, help="per row, for both rivals together")
    parser.add_argument("--own", action="store_true", help="this package's kernels also where PyTorch's own would run")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=[], help="also time these, forward")
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    console = Console(width=150)
    about = about_this_run(arguments.threads)
    console.print(
        f"{arguments.network}, {' and '.join(arguments.dtype)}: " + ", ".join(f"{k} {v}" for k, v in about.items())
    )
    with Progress(console=console, transient=True) as progress:
        rows = measure(arguments, progress)
    show(rows, console)
    if arguments.csv:
        write(rows, about, arguments.csv)
        console.print(f"wrote {arguments.csv}")


if __name__ == "__main__":
    main()
