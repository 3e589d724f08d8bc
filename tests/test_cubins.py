"""What nvcc makes of each CUDA kernel, held to csrc/cuda/budgets.csv; needs no GPU.

Read out of this checkout's CUDA library, if that is up to date: `make test` builds it for sm_80, `make cuda` for every
architecture, and runs this file with --all-architectures. Otherwise kernels are compiled for the tests.
"""

import os
import re
import subprocess
from collections import Counter

import pytest

from benchmarks import cubins
from benchmarks.cubins import Kernel
from resnext_kernels.fatbinary import architectures

WHY_NOT = cubins.why_not()
needs_compiler = pytest.mark.skipif(bool(WHY_NOT), reason=f"CUDA kernels cannot be compiled here: {WHY_NOT}")


def problems(kernel: Kernel) -> list[str]:
    """What is wrong with a compiled kernel, by its row in budgets.csv."""
    budget = cubins.budget_of(kernel.name)
    if not budget:
        return ["it has no row in csrc/cuda/budgets.csv"]
    found = []
    if kernel.stack or kernel.instructions["local"]:
        found.append(f"{kernel.stack} bytes of local memory, {kernel.instructions['local']} instructions that use it")
    if kernel.name.startswith("wgrad") and kernel.instructions["ATOM"]:
        found.append("atomics: the order of its sums would change from run to run")
    blocks = kernel.blocks_per_multiprocessor(dynamic_shared=int(budget["dynamic_shared"]))
    most, *exceptions = budget["blocks"].split()
    most = dict(exception.split(":") for exception in exceptions).get(kernel.architecture, most)
    wanted = min(int(most), cubins.ARCHITECTURES[kernel.architecture].threads // kernel.threads)
    if blocks < wanted:
        found.append(f"{blocks} blocks fit into a multiprocessor with {kernel.registers} registers, not {wanted}")
    newer = {"LDGSTS", "LDSM", "HMMA"} if kernel.architecture == "sm_75" else set()  # than this architecture's code
    older = kernel.name.startswith("stream_lines<f16") and "PaddedGroups" not in kernel.name
    if older and int(budget["dynamic_shared"]) <= 64 << 10:
        newer.intersection_update({"LDGSTS"})  # runs there, too
    for name in budget["uses"].split():
        if not kernel.instructions[name] and name not in newer:
            found.append(f"no {name}, which it promises")
    return found


@pytest.fixture(scope="module")
def kernels(request):
    everything = request.config.getoption("--all-architectures") or set(cubins.ARCHITECTURES) <= cubins.in_library()
    architectures = tuple(cubins.ARCHITECTURES) if everything else ("sm_80",)
    found = cubins.kernels(architectures)
    assert {kernel.architecture for kernel in found} == set(architectures)
    return found


@needs_compiler
def test_every_kernel_keeps_its_budget(kernels):
    broken = [f"{k.name} {k.architecture}: {what}" for k in kernels for what in problems(k)]
    assert not broken, "\n".join(broken)


@needs_compiler
def test_every_row_has_a_kernel(kernels):
    used = {cubins.budget_of(kernel.name)["kernel"] for kernel in kernels if cubins.budget_of(kernel.name)}
    assert used == {row["kernel"] for row in cubins.budgets()}


@needs_compiler
def test_every_source_and_pass_is_seen(kernels):
    names = {kernel.name for kernel in kernels}
    for dtype in ("f64", "f32", "f16", "bf16"):
        of_dtype = [name for name in names if dtype in name]
        assert [name for name in of_dtype if name.startswith("wgrad")], dtype
        assert [name for name in of_dtype if "Fprop" in name], dtype
        assert [name for name in of_dtype if "Dgrad" in name], dtype
    assert all(re.fullmatch(r"\w+(<[\w, <>]+>)?", name) for name in names), names


# --- the test of the test: kernels with one fault each, compiled for real

FAULTS = """
#include "cuda/device.h"
struct Smem { float tile[64]; };
__global__ void __launch_bounds__(1024, 2) spills(float* y) {  // 32 registers for 64 values
  float value[64];
  for (int i = 0; i < 64; ++i) value[i] = y[1024 * i + threadIdx.x];
  __syncthreads();
  for (int i = 0; i < 64; ++i) y[1024 * (63 - i) + threadIdx.x] = value[i];
}
__global__ void wgrad_atomic(float* y) { atomicAdd(y, 1.0f); }
__global__ void __launch_bounds__(1024) narrow(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }
__global__ void __launch_bounds__(64) staged(const float4* x, float4* y) {
  auto& smem = resnext::cuda::dynamic_smem<Smem>();
  resnext::ptx::cp_async<4>(&smem.tile[threadIdx.x], x + threadIdx.x);
  resnext::ptx::cp_async_wait_all();
  __syncthreads();
  float4 value = x[threadIdx.x];
  value.x += smem.tile[threadIdx.x ^ 1];
  y[threadIdx.x] = value;
}
"""


@needs_compiler
def test_faults_are_found(tmp_path, monkeypatch):
    source = tmp_path / "faults.cu"
    source.write_text(FAULTS)
    row = {"dynamic_shared": "0", "blocks": "1", "uses": ""}
    rows = {
        "spills*": row,
        "wgrad_atomic*": row,
        "narrow*": {**row, "dynamic_shared": "200000", "blocks": "2", "uses": "LDG.128 STG.128"},
        "staged*": {**row, "dynamic_shared": "256", "blocks": "16", "uses": "LDGSTS LDG.128 STG.128 BAR"},
    }
    monkeypatch.setattr(cubins, "budgets", lambda: [{"kernel": name, **row} for name, row in rows.items()])
    (path,) = cubins.build(("sm_80",), ptx=False, sources=[source], output=tmp_path)
    found = {kernel.name: problems(kernel) for kernel in cubins.read(path)}
    assert re.fullmatch(r"[1-9]\d+ bytes of local memory, [1-9]\d+ instructions that use it", found["spills"][0])
    assert found["wgrad_atomic"] == ["atomics: the order of its sums would change from run to run"]
    assert len(found["narrow"]) == 3
    assert "0 blocks fit into a multiprocessor" in found["narrow"][0]
    assert found["narrow"][1:] == ["no LDG.128, which it promises", "no STG.128, which it promises"]
    assert found["staged"] == []
    rows["narrow*"]["blocks"] = "2 sm_75:1 sm_80:0"
    assert len([what for kernel in cubins.read(path) if kernel.name == "narrow" for what in problems(kernel)]) == 2
    monkeypatch.setattr(cubins, "budgets", list)
    assert problems(cubins.read(path)[0]) == ["it has no row in csrc/cuda/budgets.csv"]


@needs_compiler
def test_the_library_is_read_only_if_it_is_newer_than_every_source(tmp_path, monkeypatch):
    source = tmp_path / "csrc/cuda/one.cu"
    source.parent.mkdir(parents=True)
    source.write_text("__global__ void kernel() {}")
    (tmp_path / "setup.py").touch()
    monkeypatch.setattr(cubins, "ROOT", tmp_path)
    monkeypatch.setattr(cubins, "LIBRARY", tmp_path / "library.so")
    assert cubins.in_library() == set()
    options = ["-shared", "-gencode=arch=compute_80,code=sm_80", "-gencode=arch=compute_90,code=sm_90"]
    command = [f"{cubins.find_toolkit()}/bin/nvcc", *options, "-o", str(cubins.LIBRARY), str(source)]
    subprocess.run(command, check=True)
    monkeypatch.setattr(cubins, "build", lambda *_, **__: [])
    assert cubins.in_library() == {"sm_80", "sm_90"}
    assert [kernel.architecture for kernel in cubins.kernels(("sm_90",))] == ["sm_90"]
    assert cubins.kernels(("sm_86", "sm_90")) == []
    for changed in (source, tmp_path / "setup.py"):
        os.utime(changed, (later := cubins.LIBRARY.stat().st_mtime + 1, later))
        assert cubins.in_library() == set()
        os.utime(changed, (0, 0))
    assert cubins.in_library() == {"sm_80", "sm_90"}


@needs_compiler
def test_a_library_for_every_gpu_has_ptx_for_those_to_come():
    """For any that its machine code does not run on, and the newest, in which the kernels are proved."""
    if not set(cubins.ARCHITECTURES) <= cubins.in_library():
        pytest.skip("the library is not that of `make cuda`")
    assert [name for name in architectures(cubins.LIBRARY) if "compute" in name] == ["compute_80", cubins.PTX]


@needs_compiler
def test_a_warning_is_an_error(tmp_path):
    source = tmp_path / "warns.cu"
    source.write_text("__global__ void kernel(float* y) { int unused; y[0] = 1; }")
    with pytest.raises(RuntimeError, match=r"nvcc failed on warns\.cu for sm_80(.|\n)*unused"):
        cubins.build(("sm_80",), ptx=False, sources=[source], output=tmp_path)


@pytest.mark.parametrize(
    ("architecture", "threads", "registers", "shared", "blocks"),
    [
        ("sm_80", 128, 32, 0, 16),  # by threads
        ("sm_80", 128, 64, 0, 8),  # by registers
        ("sm_80", 32, 32, 0, 32),  # by the number of blocks
        ("sm_86", 32, 32, 0, 16),
        ("sm_80", 128, 32, 40 << 10, 4),  # by shared memory: 41 KiB with the reserved one, of 164
        ("sm_75", 128, 32, 16 << 10, 4),
        ("sm_80", 192, 65, 0, 4),  # 72 registers a thread are handed out: 28 warps
    ],
)
def test_occupancy(architecture, threads, registers, shared, blocks):
    kernel = Kernel("k", architecture, threads, registers, 0, shared, Counter())
    assert kernel.blocks_per_multiprocessor() == blocks
    assert kernel.occupancy() == blocks * threads / cubins.ARCHITECTURES[architecture].threads
