"""Prints what the compiler made of each CUDA kernel, per architecture; needs no GPU.

    python benchmarks/kernel_report.py [--arch sm_80 sm_90] [--kernel 'wgrad*'] [--csv FILE] [--library FILE]

Registers per thread, bytes of shared memory (static and, from csrc/cuda/budgets.csv, dynamic) and of local memory
(spills; should be 0), blocks and warps that fit into a multiprocessor, and how often selected instructions stand in
the code: a static count, not how often they run.
"""

from __future__ import annotations

import argparse
import csv
import sys
from fnmatch import fnmatchcase
from pathlib import Path

import cubins
from rich.console import Console
from rich.table import Table

COUNTED = [name for name in cubins.INSTRUCTIONS if name != "local"]


def rows(kernels: list[cubins.Kernel]) -> list[dict]:
    """One row a kernel and architecture."""
    table = []
    for kernel in kernels:
        budget = cubins.budget_of(kernel.name)
        dynamic = int(budget["dynamic_shared"]) if budget else 0
        blocks = kernel.blocks_per_multiprocessor(dynamic_shared=dynamic)
        table.append(
            {
                "kernel": kernel.name,
                "arch": kernel.architecture,
                "threads": kernel.threads,
                "registers": kernel.registers,
                "shared": kernel.shared + dynamic,
                "local": kernel.stack,
                "spill_instructions": kernel.instructions["local"],
                "blocks": blocks,
                "occupancy": round(kernel.occupancy(dynamic_shared=dynamic), 3),
                "instructions": kernel.instructions["all"],
                **{name: kernel.instructions[name] for name in COUNTED},
            }
        )
    return table


def show(table: list[dict], console: Console) -> None:
    """The rows as a table; an instruction that no kernel uses gets no column."""
    unused = [name for name in COUNTED if not any(row[name] for row in table)]
    columns = [name for name in table[0] if name not in unused and name != "spill_instructions"]
    view = Table(title="Compiled kernels: per thread registers and local bytes, per block shared bytes")
    for name in columns:
        view.add_column(name, justify="left" if name in ("kernel", "arch") else "right", no_wrap=True)
    last = None
    for row in table:
        if last not in (None, row["kernel"]):
            view.add_section()
        cells = [f"{row[name]:.0%}" if name == "occupancy" else str(row[name]) for name in columns]
        cells[0] = cells[0] if row["kernel"] != last else ""
        last = row["kernel"]
        cells[columns.index("local")] = f"[red]{row['local']}[/]" if row["local"] else "0"
        view.add_row(*cells)
    console.print(view)
    if unused:
        console.print(f"used by none: {', '.join(unused)}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", nargs="+", choices=cubins.ARCHITECTURES, default=list(cubins.ARCHITECTURES))
    parser.add_argument("--kernel", default="*", help="shell pattern of kernel names")
    parser.add_argument("--csv", type=Path, help="also write the rows here")
    parser.add_argument("--library", type=Path, help="read this compiled file instead of compiling csrc/cuda")
    arguments = parser.parse_args()
    if reason := cubins.why_not():
        sys.exit(reason)
    kernels = cubins.read(arguments.library) if arguments.library else cubins.kernels(arguments.arch)
    kernels = [kernel for kernel in kernels if fnmatchcase(kernel.name, arguments.kernel)]
    order = list(cubins.ARCHITECTURES)
    kernels.sort(key=lambda kernel: (kernel.name, order.index(kernel.architecture)))
    if not kernels:
        sys.exit(f"no kernel is called {arguments.kernel}")
    table = rows(kernels)
    show(table, Console(width=None if sys.stdout.isatty() else 170))
    if arguments.csv:
        arguments.csv.parent.mkdir(parents=True, exist_ok=True)
        with arguments.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(table[0]))
            writer.writeheader()
            writer.writerows(table)
        print(f"wrote {arguments.csv}")


if __name__ == "__main__":
    main()
