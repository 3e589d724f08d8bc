"""Builds the wheels, checks them, and tries each in an empty environment (`make wheel`).

    python benchmarks/wheels.py [--output dist] [--cuda-home ROOT] [--torch VERSION] [--environments FOLDER]

There are two: `0.1.0` has the CPU library, and with a CUDA toolkit `0.1.0+cu13` has the one for that CUDA major, too.
Both are built from an unpacked source archive, so that nothing that lies about in this folder can get in. Then

- auditwheel gives each the platform tag of the oldest glibc and libstdc++ that it runs with. It must not copy in what
  torch brings and has loaded before: its own libraries, libcudart, and libgomp, of which a process shall have one;
- abi3audit looks for functions of Python that the stable ABI of Python 3.10 has not;
- a new environment with nothing but torch and the wheel runs `resnext-kernels check`.

Needs requirements-dev.txt and requirements-wheel.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
FROM_TORCH = ("libtorch*.so", "libc10*.so", "libcudart.so.*", "libgomp.so.*")
CONTENTS = re.compile(r"resnext_kernels(/\w+\.py|/_C(_cuda)?\.abi3\.so|-[^/]+\.dist-info/.+)")


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """What a command prints; RuntimeError with that if it fails."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout}")
    return done.stdout


def moved(file: Path, folder: Path) -> Path:
    """The file in another folder, which may be on another disk."""
    folder.mkdir(parents=True, exist_ok=True)
    return Path(shutil.move(file, folder / file.name))


def unpacked_source(folder: Path) -> tuple[Path, Path]:
    """The source archive of this checkout, made in a folder and unpacked there: (archive, unpacked)."""
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", folder, ROOT, RESNEXT_KERNELS_CUDA="0")
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return archive, folder / archive.name.removesuffix(".tar.gz")


def build(source: Path, output: Path, cuda_home: Path | None = None) -> Path:
    """The wheel of an unpacked source archive, with the CUDA library if a toolkit is given."""
    switches = {"RESNEXT_KERNELS_TESTING": "0", "RESNEXT_KERNELS_CUDA": "1" if cuda_home else "0"}
    switches |= {"CUDA_HOME": str(cuda_home)} if cuda_home else {}
    major = str(torch.version.cuda).split(".")[0]  # of torch and, as setup.py sees to, of the toolkit
    tag = ["-C--global-option=egg_info", f"-C--global-option=--tag-build=+cu{major}"] if cuda_home else []
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", folder, *tag, source, **switches)
        (wheel,) = Path(folder).glob("*.whl")
        return moved(wheel, output)


def audited(wheel: Path, output: Path) -> Path:
    """The wheel with its platform tag; RuntimeError if it is not fit for distribution."""
    if strange := [name for name in zipfile.ZipFile(wheel).namelist() if not CONTENTS.fullmatch(name)]:
        raise RuntimeError(f"{wheel.name} holds what no user needs: {', '.join(strange)}")
    run(sys.executable, "-m", "abi3audit", "--strict", wheel)
    excluded = [f"--exclude={library}" for library in FROM_TORCH]
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "auditwheel", "repair", "--patcher=none", *excluded, "-w", folder, wheel)
        (repaired,) = Path(folder).glob("*.whl")
        return moved(repaired, output)


def try_out(wheel: Path, torch_version: str, folder: Path) -> dict:
    """Installs a wheel into a new environment and runs its check; what `resnext-kernels info` tells there."""
    run(sys.executable, "-m", "venv", folder)
    run(folder / "bin/pip", "install", "--quiet", f"torch=={torch_version}", wheel.resolve())
    run(folder / "bin/resnext-kernels", "check", cwd=folder, PYTHONPATH="")
    command = (folder / "bin/python", "-W", "ignore", "-m", "resnext_kernels", "info", "--json")
    return json.loads(run(*command, cwd=folder, PYTHONPATH=""))


def why_unfit(facts: dict, cuda: bool) -> str:
    """What is wrong with what an installed wheel tells of itself, or nothing."""
    if bool(facts["cuda_architectures"]) != cuda:
        return f"expected a wheel {'with' if cuda else 'without'} CUDA code, got {facts['cuda_architectures']}"
    if cuda and facts["cuda_of_torch"] and facts["cuda_library"] != "loaded":
        return f"the CUDA library is not loaded: {facts['cuda_library']}"
    return ""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "dist")
    parser.add_argument("--cuda-home", help="a CUDA toolkit of torch's CUDA major; without one no CUDA wheel is built")
    parser.add_argument("--torch", default=torch.__version__.split("+")[0], help="the torch of the new environments")
    parser.add_argument("--environments", type=Path, help="where to leave the new environments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        _, source = unpacked_source(scratch)
        for cuda_home in (None, *([Path(arguments.cuda_home)] if arguments.cuda_home else [])):
            start, wheel = time.perf_counter(), build(source, scratch, cuda_home)
            print(f"built {wheel.name} in {time.perf_counter() - start:.0f} s", flush=True)
            wheel = audited(wheel, arguments.output)
            print(f"  {wheel}: {wheel.stat().st_size / 1e6:.1f} MB, passed abi3audit and auditwheel", flush=True)
            environment = (arguments.environments or scratch).resolve() / ("cuda" if cuda_home else "cpu")
            facts = try_out(wheel, arguments.torch, environment)
            if why := why_unfit(facts, bool(cuda_home)):
                sys.exit(f"{wheel.name}: {why}")
            print(f"  checked in a new environment with torch {facts['torch']}", flush=True)


if __name__ == "__main__":
    main()
