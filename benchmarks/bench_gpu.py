"""Times every grouped layer of a ResNeXt on a GPU, this package against cuDNN, and prints ratios and bandwidths.

    python benchmarks/bench_gpu.py [--network resnext50_32x4d] [--batch 32] [--csv FILE] [--quick] [--device cpu]

Needs torch only. cuDNN chooses its algorithm by trial (torch.backends.cudnn.benchmark) and TF32 is off, so that both
sides compute the same sums in float32. Rivals take turns call by call; before each call the L2 cache is filled with
something else; times are medians of CUDA events. "of copy" is what a pass must move at least (input, weight and output
once) over the time it takes, in percent of the bandwidth that a large copy reaches on the same device.
--device cpu rehearses the script where there is no GPU; its times mean nothing.
"""

from __future__ import annotations

import argparse
import csv
import time
from pathlib import Path
from statistics import geometric_mean, median

import torch

from resnext_kernels import explain, problems

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
TF32 = "tf32"  # float32 where both may round to TF32, as PyTorch allows unless told otherwise
DTYPES = (TF32, "float32", "float16", "bfloat16", "float64")
PASSES = ("fprop", "dgrad", "wgrad")
OPS = torch.ops.resnext_kernels


class Clock:
    """Times calls on a device, each on a cold cache."""

    def __init__(self, device: str):
        self.cuda = device == "cuda"
        size = 2 * torch.cuda.get_device_properties(0).L2_cache_size if self.cuda else 1 << 20
        self.elsewhere = torch.empty(max(size, 1 << 20), dtype=torch.uint8, device=device)

    def milliseconds(self, call) -> float:
        """One call."""
        self.elsewhere.zero_()
        if not self.cuda:
            start = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - start)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end)

    def medians(self, calls, seconds: float) -> list[float]:
        """The median of each call; calls take turns until the time is up, and five times at least
        (twice if there is no time).

        """
        for call in calls:
            self.milliseconds(call)
            self.milliseconds(call)
        times, end = [[] for _ in calls], time.perf_counter() + seconds
        while len(times[0]) < (5 if seconds else 2) or (time.perf_counter() < end and len(times[0]) < 100):
            for samples, call in zip(times, calls, strict=True):
                samples.append(self.milliseconds(call))
        return [median(samples) for samples in times]


def copy_bandwidth(clock: Clock, device: str) -> float:
    """Bytes per second that a copy reads and writes, by a copy far larger than any cache."""
    source = torch.empty(1 << (30 if device == "cuda" else 26), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    (ms,) = clock.medians([lambda: target.copy_(source)], 0.5)
    return 2 * source.numel() / (ms / 1e3)


def rivals(problem: problems.Problem, op: str, layout: str, dtype: torch.dtype, device: str):
    """Calls of PyTorch's pass and ours, and the name of our kernel."""
    draw = lambda size: torch.randn(size, device=device).to(dtype).contiguous(memory_format=LAYOUTS[layout])  # noqa: E731
    input, output = draw(problem.input_shape), draw(problem.output_shape)
    weight = draw(problem.weight_shape)
    geometry = problem.stride, problem.padding, problem.dilation
    mask = [op == "dgrad", op == "wgrad", False]
    backward = (output, input, weight, None, *geometry, False, [0, 0], problem.groups, mask)
    forward = (input, weight, None, *geometry, problem.groups)
    theirs = {
        "fprop": lambda: torch.nn.functional.conv2d(*forward),
        "dgrad": lambda: torch.ops.aten.convolution_backward(*backward)[0],
        "wgrad": lambda: torch.ops.aten.convolution_backward(*backward)[1],
    }[op]
    size = {"dgrad": input.shape[2:], "wgrad": weight.shape[2:]}
    ours = {
        "fprop": lambda: OPS.grouped_conv2d(*forward),
        "dgrad": lambda: OPS.grouped_conv2d_grad_input(output, weight, size["dgrad"], *geometry, problem.groups),
        "wgrad": lambda: OPS.grouped_conv2d_grad_weight(output, input, size["wgrad"], *geometry, problem.groups),
    }[op]
    return theirs, ours, explain(op, *forward).kernel


def measure(arguments, clock: Clock, bandwidth: float):
    """Yields a row for each dtype, layout, pass and layer."""
    layers = getattr(problems, arguments.network)[-1 if arguments.quick else 0 :]
    for dtype in arguments.dtypes:
        torch.backends.cudnn.allow_tf32 = dtype == TF32
        element = torch.float32 if dtype == TF32 else getattr(torch, dtype)
        for layout in LAYOUTS:
            for op in PASSES:
                for layer in layers:
                    problem = layer.with_batch(arguments.batch)
                    theirs, ours, kernel = rivals(problem, op, layout, element, arguments.device)
                    difference = (theirs().double() - ours().double()).abs().max() / theirs().double().abs().max()
                    torch_ms, ours_ms = clock.medians((theirs, ours), arguments.seconds)
                    least = problem.bytes(element.itemsize) / bandwidth * 1e3
                    yield {
                        "dtype": dtype,
                        "layout": layout,
                        "pass": op,
                        "layer": f"{problem.c}/{problem.c // problem.groups} {problem.h}x{problem.w} "
                        f"s{problem.stride[0]}",
                        "batch": problem.n,
                        "torch_ms": round(torch_ms, 5),
                        "ours_ms": round(ours_ms, 5),
                        "ratio": round(torch_ms / ours_ms, 4),
                        "torch_of_copy": round(least / torch_ms, 4),
                        "ours_of_copy": round(least / ours_ms, 4),
                        "ours_tflops": round(problem.flops / ours_ms / 1e9, 4),
                        "difference": f"{difference.item():.1e}",
                        "kernel": kernel,
                    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    networks = ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")
    parser.add_argument("--network", choices=networks, default="resnext50_32x4d")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--seconds", type=float, default=0.2, help="per row, for both rivals together")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="one layer, batch 1, two calls each")
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.batch, arguments.seconds = 1, 0
    torch.backends.cudnn.benchmark = True
    clock = Clock(arguments.device)
    bandwidth = copy_bandwidth(clock, arguments.device)
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU: a rehearsal, its times mean nothing"
    cudnn = torch.backends.cudnn.version() if arguments.device == "cuda" else "-"
    print(f"{name}; torch {torch.__version__}, cuDNN {cudnn}; copy {bandwidth / 1e9:.0f} GB/s")
    rows = []
    header = f"{'dtype':9}{'layout':7}{'pass':6}{'layer':18}{'cuDNN ms':>10}{'ours ms':>10}{'ratio':>7}{'of copy':>9}"
    print(f"{header}  kernel")
    for row in measure(arguments, clock, bandwidth):
        rows.append(row)
        times = f"{row['torch_ms']:10.4f}{row['ours_ms']:10.4f}{row['ratio']:7.2f}{row['ours_of_copy']:9.1%}"
        line = f"{row['dtype']:9}{row['layout']:7}{row['pass']:6}{row['layer']:18}{times}  {row['kernel']}"
        print(line, flush=True)
    for key in dict.fromkeys((row["dtype"], row["layout"], row["pass"]) for row in rows):
        some = [row for row in rows if (row["dtype"], row["layout"], row["pass"]) == key]
        mean, share = (geometric_mean(row[name] for row in some) for name in ("ratio", "ours_of_copy"))
        print(f"{' '.join(key)}: geometric mean {mean:.2f}x cuDNN, {share:.0%} of copy bandwidth")
    if arguments.csv:
        about = {"device": name, "torch": torch.__version__, "cudnn": cudnn, "copy_gb_per_s": round(bandwidth / 1e9, 1)}
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], *about])
            writer.writeheader()
            writer.writerows({**row, **about} for row in rows)


if __name__ == "__main__":
    main()
