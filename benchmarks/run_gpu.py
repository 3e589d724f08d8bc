"""Everything that needs a GPU, in one run (`make gpu`): build, tests, compute-sanitizer, benchmark, one summary.

    python benchmarks/run_gpu.py [--output FOLDER] [--device cpu --quick]

Needs torch >= 2.11 with CUDA, nvcc of torch's CUDA major, pytest and numpy; builds in place, for the GPUs of this
machine only. Writes build.log, tests.log, tests.xml, sanitizer.log, bench.txt, bench.csv and summary.md to a new folder
of build/gpu. A step that fails does not stop those after it (but for the build); the exit status tells.
--device cpu --quick rehearses all of it but the build on a machine without a GPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from cubins import find_toolkit

ROOT = Path(__file__).resolve().parent.parent
QUICK = (  # every test, most of them for one case only
    "test_device or test_wrappers or odd_map_stride_2 or infinities or strides or autocast or compile or n1_c1024_7x7 "
    "or (test_derivatives and more) or operator_with_two_results or per_sample or reads_grad_output_once"
)


class Steps:
    """Runs commands one after the other, each to a log of its own, and remembers how they went."""

    def __init__(self, output: Path):
        self.output, self.rows = output, []

    def run(self, name: str, command: list[str], **environment: str) -> bool:
        """True if the command succeeded."""
        log, start = self.output / f"{name}.{'txt' if name == 'bench' else 'log'}", time.perf_counter()
        print(f"{name}: {' '.join(command)}", flush=True)
        with log.open("w") as file:
            done = subprocess.run(
                command, cwd=ROOT, env={**os.environ, **environment}, stdout=file, stderr=subprocess.STDOUT
            )
        lines = [line for line in log.read_text().splitlines() if line.strip()]
        last = lines[-1].strip("= ") if lines else ""
        self.rows.append((name, "passed" if done.returncode == 0 else "FAILED", time.perf_counter() - start, last))
        print(f"  {self.rows[-1][1]} in {self.rows[-1][2]:.0f} s: {last}", flush=True)
        return done.returncode == 0

    def skip(self, name: str, reason: str) -> None:
        """Notes why a step is not run."""
        self.rows.append((name, "skipped", 0.0, reason))
        print(f"{name}: skipped: {reason}", flush=True)

    @property
    def failed(self) -> bool:
        """Whether any step has failed."""
        return any(row[1] == "FAILED" for row in self.rows)


def build(steps: Steps) -> bool:
    """Builds the package in place for the GPUs that are here."""
    capabilities = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    architectures = ";".join(f"{major}.{minor}" for major, minor in sorted(capabilities))
    toolkit = find_toolkit()
    environment = {"RESNEXT_KERNELS_CUDA": "1", "RESNEXT_KERNELS_TESTING": "0", "TORCH_CUDA_ARCH_LIST": architectures}
    if toolkit:
        environment["CUDA_HOME"] = str(toolkit)
    return steps.run("build", [sys.executable, "setup.py", "build_clib", "build_ext", "--inplace"], **environment)


def sanitize(steps: Steps, device: str) -> None:
    """compute-sanitizer's memcheck and racecheck over one exact test of every pass and layout."""
    toolkit = find_toolkit()
    path = shutil.which("compute-sanitizer", path=f"{toolkit}/bin{os.pathsep}{os.environ.get('PATH', '')}")
    if not path or device != "cuda":
        steps.skip("sanitizer", "no compute-sanitizer here" if device == "cuda" else "no GPU")
        return
    cases = "(test_exact or test_grad_bias) and (odd_map or several_slices or 5x29 or group_width_3)"
    files = ["tests/gpu/test_values.py", "tests/gpu/test_grad_bias.py"]
    tests = [sys.executable, "-m", "pytest", "-q", *files, "-k", cases, "-p", "no:cacheprovider"]
    for tool in ("memcheck", "racecheck", "synccheck", "initcheck"):
        command = [path, "--tool", tool, "--error-exitcode", "9", "--target-processes", "all"]
        # PyTorch's caching allocator would hide overruns between tensors.
        steps.run(f"sanitizer-{tool}", [*command, *tests], PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def summarise(steps: Steps, device: str) -> None:
    """Writes summary.md."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if device == "cuda" else []
    lines = [
        f"# {', '.join(devices) or 'CPU: a rehearsal, its times mean nothing'}",
        "",
        f"torch {torch.__version__}, CUDA {torch.version.cuda}, commit {commit.stdout.strip() or 'unknown'}, "
        f"{time.strftime('%Y-%m-%d')}",
        "",
        "| step | result | seconds | last line |",
        "| --- | --- | --- | --- |",
        *(f"| {name} | {result} | {seconds:.0f} | {last} |" for name, result, seconds, last in steps.rows),
    ]
    bench = steps.output / "bench.txt"
    if bench.exists():
        means = [line for line in bench.read_text().splitlines() if "geometric mean" in line or "GB/s" in line]
        lines += ["", *(f"- {line}" for line in means)]
    (steps.output / "summary.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="fewer tests and layers")
    parser.add_argument("--output", type=Path, help="a folder for the results")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit(f"no GPU that torch {torch.__version__} (CUDA {torch.version.cuda}) can use: this needs one")
    steps = Steps(arguments.output or ROOT / "build/gpu" / time.strftime("%Y%m%d-%H%M%S"))
    steps.output.mkdir(parents=True, exist_ok=True)
    if arguments.device == "cpu":
        steps.skip("build", "no GPU")
    if arguments.device == "cpu" or build(steps):
        tests = [sys.executable, "-m", "pytest", "tests/gpu", "--device", arguments.device, "-q", "--durations=10"]
        tests += [f"--junitxml={steps.output}/tests.xml", "-p", "no:cacheprovider"]
        steps.run("tests", [*tests, *(["-k", QUICK] if arguments.quick else ["--huge"])])
        sanitize(steps, arguments.device)
        bench = [sys.executable, "benchmarks/bench_gpu.py", "--device", arguments.device]
        bench += [
            "--csv",
            f"{steps.output}/bench.csv",
            *(["--quick", "--dtypes", "tf32", "bfloat16"] * arguments.quick),
        ]
        steps.run("bench", bench, PYTHONPATH=str(ROOT))
    summarise(steps, arguments.device)
    print(f"results: {steps.output / 'summary.md'}")
    sys.exit(1 if steps.failed else 0)


if __name__ == "__main__":
    main()
