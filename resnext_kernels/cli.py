"""The command `resnext-kernels` (or `python -m resnext_kernels`): info, explain, check, bench.

Exit status: 0, or 1 if a check failed, or 2 for arguments that make no sense. ``--json`` prints one JSON object.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import platform
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import conv2d

from . import _ops, bench, fatbinary, problems
from .functional import Explanation, explain, grouped_conv2d
from .module import GroupedConv2d, convert

OPS = ("fprop", "dgrad", "wgrad")
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
NETWORKS = {name: getattr(problems, name) for name in ("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d")}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


# --- info


def info() -> dict:
    """What is installed and what it can use."""
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    layer = problems.resnext50_32x4d[0]
    kernels = {op: active_kernels("cpu", op, layer) for op in OPS}
    cuda = {op: active_kernels("cuda", op, layer) for op in OPS} if gpus and not _ops.why_no_cuda else {}
    return {
        "resnext_kernels": installed_version(),
        "installed_in": str(Path(_ops.__file__).parent),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "built_for": "torch >= 2.11 (stable ABI), Python >= 3.10 (abi3)",
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cpu_features": cpu_features(),
        "threads": torch.get_num_threads(),
        "cuda_of_torch": torch.version.cuda,
        "cuda_library": _ops.why_no_cuda or "loaded",
        "cuda_architectures": cuda_architectures(),
        "gpus": [f"{gpu.name} (sm_{gpu.major}{gpu.minor})" for gpu in gpus],
        "example": f"{layer.name} float32 contiguous",
        "kernels": kernels,
        "cuda_kernels": cuda,
    }


def installed_version() -> str:
    """The package's version, if pip has installed it."""
    try:
        return version("resnext_kernels")
    except PackageNotFoundError:
        return "not installed by pip"


def cuda_architectures() -> list[str]:
    """What the CUDA library was built for, loaded or not; [] in a build for the CPU only."""
    return fatbinary.architectures(_ops.CUDA_LIBRARY) if _ops.CUDA_LIBRARY.exists() else []


def active_kernels(device: str, op: str, layer: problems.Problem) -> dict[str, str]:
    """The kernels that this machine has for a layer, with "" if they can run it and else what the CPU lacks."""
    shape = [*layer.input_shape, *layer.weight_shape, layer.groups, *layer.stride, *layer.padding, *layer.dilation]
    entries = _ops.explain_lines(device, op, shape, torch.float32, False)
    return {name: why for name, why in entries if not why or "AVX" in why}


def cpu_features(path: str = "/proc/cpuinfo") -> list[str]:
    """The vector instructions that the system reports, those that the kernels may use; [] where it tells nothing."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return []
    flags = next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), [])
    return [flag for flag in flags if re.match(r"avx|fma|f16c|amx", flag)]


def show_info(facts: dict) -> None:
    """Prints what `info` found."""
    kernels = {"CPU": facts["kernels"], "CUDA": facts["cuda_kernels"]}
    for key, value in facts.items():
        if not isinstance(value, dict) and key != "example":
            text = (", " if key == "gpus" else " ").join(value) if isinstance(value, list) else value
            none = "none: this is a build for the CPU only" if key == "cuda_architectures" else "none"
            print(f"{key.replace('_', ' '):18} {text or none}")
    for device, ops in kernels.items():
        if ops:
            print(f"\n{device} kernels for {facts['example']}, in the order in which they are tried:")
        for op, entries in ops.items():
            for name, why in entries.items():
                print(f"  {op}  {name:32} {why or 'yes'}")


# --- explain


def explain_shape(arguments: argparse.Namespace) -> dict[str, Explanation]:
    """The explanation of each wanted pass of one problem."""
    n, c, h, w = arguments.shape
    k, groups = arguments.out_channels or c, arguments.groups
    if groups < 1 or c % groups or k % groups:
        raise ValueError(f"expected --groups to divide {c} input and {k} output channels, got {groups}")
    like = {"dtype": DTYPES[arguments.dtype], "device": arguments.device}
    input = torch.empty(n, c, h, w, **like).contiguous(memory_format=LAYOUTS[arguments.layout])
    weight = torch.empty(k, c // groups, arguments.kernel_size, arguments.kernel_size, **like)
    geometry = arguments.stride, arguments.padding, arguments.dilation, groups
    return {op: explain(op, input, weight, None, *geometry) for op in arguments.op}


def explain_model(arguments: argparse.Namespace) -> dict[str, Explanation]:
    """The explanation of every convolution of a model: of each wanted pass of those that `convert` would take."""
    model = find_model(arguments.model)
    kept = convert(model).kept
    model = model.eval().to(DTYPES[arguments.dtype]).to(arguments.device, memory_format=LAYOUTS[arguments.layout])
    found: dict[str, Explanation] = {}

    def note(name: str):
        def hook(module: GroupedConv2d, inputs: tuple, _output) -> None:
            found.update({f"{name} {op}": module.explain(inputs[0], op) for op in arguments.op})

        return hook

    ours = {name: module for name, module in model.named_modules() if isinstance(module, GroupedConv2d)}
    for name, module in ours.items():
        module.register_forward_hook(note(name))
    image = torch.zeros(arguments.shape, dtype=DTYPES[arguments.dtype], device=arguments.device)
    with torch.no_grad():
        model(image.contiguous(memory_format=LAYOUTS[arguments.layout]))
    return found | {name: Explanation(None, f"it {reason}") for name, reason in kept.items() if name not in ours}


def find_model(path: str) -> nn.Module:
    """The module that a call of `package.module.function` without arguments makes."""
    module, _, function = path.rpartition(".")
    if not module:
        raise ValueError(f"expected --model to be a path such as torchvision.models.resnext50_32x4d, got {path!r}")
    try:
        model = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--model {path} cannot be found: {error}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"expected --model {path} to make a torch.nn.Module, got {type(model).__name__}")
    return model


def show_explanations(found: dict[str, Explanation], every_entry: bool) -> None:
    """Prints explanations: whole ones for one problem, a line each for the layers of a model."""
    for name, item in found.items():
        print(f"{name}: {item if every_entry else item.kernel or f'PyTorch, since {item.reason}'}")
    if not every_entry:
        for kernel, count in Counter(item.kernel for item in found.values()).most_common():
            print(f"{count:4} x {kernel or 'PyTorch'}")


# --- check


@dataclass
class Check:
    """The largest error of one pass of one problem, as a share of the bound that its roundings can reach."""

    problem: str
    op: str
    dtype: str
    layout: str
    kernel: str
    ours: float
    pytorch: float

    @property
    def passed(self) -> bool:
        """Whether every element of our result is finite and within its bound."""
        return self.ours <= 1


EDGES = ("odd_map", "odd_map_stride_2", "dilation_2", "more_outputs")
CHECKED = (*problems.resnext50_32x4d, *(problems.edge_cases[name] for name in EDGES))


def check(device: str, chosen: tuple[problems.Problem, ...]) -> Iterator[Check]:
    """Compares every pass, dtype and memory format of some problems with PyTorch's convolution in float64."""
    generator = torch.Generator().manual_seed(0)
    for problem in chosen:
        geometry = problem.stride, problem.padding, problem.dilation, problem.groups
        shapes = problem.input_shape, problem.weight_shape, problem.output_shape
        exact = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
        for name, dtype in DTYPES.items():
            operands = [tensor.to(dtype) for tensor in exact]
            truths = passes(conv2d, geometry, *(tensor.double() for tensor in operands))
            sizes = passes(conv2d, geometry, *(tensor.double().abs() for tensor in operands))
            bounds = [rounding_bound(*each, dtype) for each in zip(truths, sizes, depths(problem), strict=True)]
            for layout, memory_format in LAYOUTS.items():
                placed = [tensor.to(device).contiguous(memory_format=memory_format) for tensor in operands]
                entries = [explain(op, *placed[:2], None, *geometry).entries for op in OPS]
                kernels = [next(name for name, why in each if not why) for each in entries]
                ours = partial(grouped_conv2d, kernel=kernels[0])  # also where PyTorch is faster
                rivals = zip(passes(ours, geometry, *placed), passes(conv2d, geometry, *placed), strict=True)
                for op, kernel, truth, bound, results in zip(OPS, kernels, truths, bounds, rivals, strict=True):
                    shares = [((result.cpu().double() - truth).abs() / bound).max().item() for result in results]
                    yield Check(problem.name, op, name, layout, kernel, *shares)


def depths(problem: problems.Problem) -> tuple[int, int, int]:
    """How many products each element of the output and of the two gradients is the sum of, at most."""
    taps = problem.kernel_size[0] * problem.kernel_size[1]
    return (
        taps * problem.c // problem.groups,
        taps * problem.k // problem.groups,
        problem.n * problem.p * problem.q,
    )


def rounding_bound(truth, size, depth: int, dtype: torch.dtype) -> torch.Tensor:
    """The most by which `depth` products of sum `truth`, or `size` without their signs, may come out wrong.

    They are added up in float32 (float64 for float64), in any order, and a 16-bit result is rounded once more. The
    truth is a float64 sum with an error of its own. N. Higham, Accuracy and Stability of Numerical Algorithms, 3.1.
    """
    unit = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps / 2
    summed, of_truth = (depth * u / (1 - depth * u) * size for u in (unit, torch.finfo(torch.float64).eps / 2))
    stored = 0 if unit == torch.finfo(dtype).eps / 2 else torch.finfo(dtype).eps / 2 * (truth.abs() + summed)
    return summed + of_truth + stored + torch.finfo(dtype).tiny


def passes(convolution, geometry, input, weight, grad_output) -> list[torch.Tensor]:
    """The output and the gradients of input and weight."""
    input, weight = (tensor.detach().requires_grad_() for tensor in (input, weight))
    output = convolution(input, weight, None, *geometry)
    return [output.detach(), *torch.autograd.grad(output, (input, weight), grad_output)]


def show_checks(checks: list[Check], seconds: float) -> None:
    """Prints the largest shares by dtype and pass, and every failure."""
    print("largest error, as a share of what rounding can explain (ours, PyTorch's):")
    for dtype in DTYPES:
        for op in OPS:
            rows = [row for row in checks if (row.dtype, row.op) == (dtype, op)]
            print(f"  {dtype:9} {op}  {max(r.ours for r in rows):.3f}  {max(r.pytorch for r in rows):.3f}")
    for row in checks:
        if not row.passed:
            print(f"FAILED: {row.problem} {row.op} {row.dtype} {row.layout} {row.kernel}, error / bound {row.ours:.3g}")
    kernels = len({row.kernel for row in checks})
    passed = sum(row.passed for row in checks)
    print(f"{passed} of {len(checks)} results of {kernels} kernels agree with PyTorch in float64 ({seconds:.0f} s)")


# --- bench


def bench_shapes(arguments: argparse.Namespace) -> int:
    """Times the layers of a network against PyTorch; the exit status."""
    for name in ("rich", *(["matplotlib"] if arguments.png else [])):
        if find_spec(name) is None:
            raise ValueError(f"bench needs the package {name}: pip install 'resnext_kernels[bench]'")
    if arguments.png and not arguments.png.parent.is_dir():
        raise ValueError(f"expected --png in a folder that exists, got {arguments.png}")
    if arguments.png and arguments.png.suffix != ".png":
        raise ValueError(f"expected --png to end in .png, got {arguments.png}")
    if arguments.batch < 1 or arguments.threads < 1 or not arguments.seconds > 0:
        raise ValueError("expected --batch, --threads and --seconds to be positive")
    torch.set_num_threads(arguments.threads)
    layers = [layer.with_batch(arguments.batch) for layer in NETWORKS[arguments.network]]
    jobs = list(itertools.product(layers, arguments.op, arguments.dtype, arguments.layout))
    timings = bench.with_progress(bench.measure(jobs, LAYOUTS, arguments.seconds), len(jobs))
    if arguments.json:
        print(json.dumps([{**asdict(row), "ratio": row.ratio} for row in timings]))
    else:
        bench.show(timings)
    if arguments.png:
        bench.draw(timings, arguments.png)
    return 0


# --- the command line


def shape(text: str) -> tuple[int, ...]:
    """`8x128x56x56` or `8,128,56,56` as four numbers."""
    if not re.fullmatch(r"\d+([x,]\d+){3}", text):
        raise argparse.ArgumentTypeError(f"expected N,C,H,W such as 8,128,56,56, got {text!r}")
    return tuple(int(number) for number in re.split("[x,]", text))


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    main = argparse.ArgumentParser(prog="resnext-kernels", description="Grouped 3x3 convolution for PyTorch.")
    commands = main.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print one JSON object")
    commands.add_parser("info", parents=[common], help="what is installed and what it can use")
    one = commands.add_parser("explain", parents=[common], help="which kernel runs, and why")
    one.add_argument("shape", type=shape, nargs="?", default=(1, 3, 224, 224), help="N,C,H,W of the input")
    one.add_argument(
        "--model", help="explain every layer of this model instead, e.g. torchvision.models.resnext50_32x4d"
    )
    one.add_argument("--groups", type=int, default=1)
    one.add_argument("--out-channels", type=int, help="default: as many as input channels")
    one.add_argument("--kernel-size", type=int, default=3)
    one.add_argument("--stride", type=int, default=1)
    one.add_argument("--padding", type=int, default=1)
    one.add_argument("--dilation", type=int, default=1)
    one.add_argument("--op", nargs="+", choices=OPS, default=list(OPS))
    one.add_argument("--dtype", choices=DTYPES, default="float32")
    one.add_argument("--layout", choices=LAYOUTS, default="contiguous")
    one.add_argument("--device", default="cpu")
    one = commands.add_parser(
        "bench", parents=[common], help="time the layers of a network on the CPU, against PyTorch"
    )
    one.add_argument("--network", choices=NETWORKS, default="resnext50_32x4d")
    one.add_argument("--batch", type=int, default=1)
    one.add_argument("--op", nargs="+", choices=OPS, default=list(OPS))
    one.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"])
    one.add_argument("--layout", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    one.add_argument("--threads", type=int, default=torch.get_num_threads())
    one.add_argument("--seconds", type=float, default=0.3, help="per line, for both rivals together")
    one.add_argument("--png", type=Path, help="also draw the ratios into this file")
    one = commands.add_parser("check", parents=[common], help="compare with PyTorch on this machine, in a minute")
    one.add_argument("--device", default="cpu")
    return main


def run(arguments: argparse.Namespace) -> int:
    """Runs one command; the exit status."""
    if arguments.command == "info":
        facts = info()
        print(json.dumps(facts)) if arguments.json else show_info(facts)
    elif arguments.command == "explain":
        found = explain_model(arguments) if arguments.model else explain_shape(arguments)
        if arguments.json:
            print(json.dumps({name: asdict(explanation) for name, explanation in found.items()}))
        else:
            show_explanations(found, every_entry=not arguments.model)
    elif arguments.command == "bench":
        return bench_shapes(arguments)
    else:
        start = time.perf_counter()
        checks = list(check(arguments.device, CHECKED))
        if arguments.json:
            print(json.dumps([{**asdict(row), "passed": row.passed} for row in checks]))
        else:
            show_checks(checks, time.perf_counter() - start)
        return 0 if all(row.passed for row in checks) else 1
    return 0


def main(arguments: list[str] | None = None) -> int:
    """Entry point of the command."""
    try:
        status = run(parser().parse_args(arguments))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # who reads has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python flushes at its end
        return 1
    except (RuntimeError, ValueError) as error:
        print(f"resnext-kernels: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
