"""What the benchmark's clock counts, with a clock of its own."""

from argparse import Namespace

import pytest
import torch
from rich.progress import Progress

from benchmarks import bench_conv
from resnext_kernels import bench, problems


class Clock:
    """Two threads run for as long as a call takes, or, until `taken`, one: another process has the other's core."""

    def __init__(self, taken):
        self.taken, self.wall, self.cpu, self.calls = taken, 0.0, 0.0, 0

    def call(self):
        self.calls += 1
        self.cpu += 0.03 * (1 if self.wall < self.taken else 2)
        self.wall += 0.03

    def patch(self, monkeypatch):
        monkeypatch.setattr(bench.time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(bench.time, "process_time", lambda: self.cpu)


def test_windows_in_which_a_core_was_taken_do_not_count(monkeypatch):
    clock = Clock(taken=0.5)
    clock.patch(monkeypatch)
    times, disturbed = bench.interleave((clock.call, clock.call), 2, 2.0)
    first, second = times
    assert len(first) == len(second) >= bench.FEWEST_CALLS
    assert first + second == pytest.approx([0.03] * 2 * len(first))
    assert disturbed >= 0.5 / 0.03 - 2
    assert 2 * len(first) + disturbed + 2 == clock.calls  # and a first call of each


def test_a_machine_that_is_never_quiet_ends_the_measurement(monkeypatch):
    clock = Clock(taken=1e9)
    clock.patch(monkeypatch)
    times, disturbed = bench.interleave((clock.call,), 2, 1.0)
    assert times == [[]]
    assert disturbed == clock.calls - 1


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_all_tensors_have_the_layout_of_the_row(monkeypatch, layout):
    """PyTorch would convert another weight at each call."""
    given = []
    problem = problems.edge_cases["odd_map_stride_2"]
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *arguments: given.extend(arguments[:2]))
    theirs, *_ = bench.rivals(problem, "fprop", layout, torch.float32)
    theirs()
    assert [tensor.is_contiguous(memory_format=layout) for tensor in given] == [True, True]


def test_rows_are_timed_in_rounds_and_medians_are_of_all(monkeypatch):
    timed, rows = [], len(bench_conv.OTHER)

    def interleave(calls, threads, seconds):
        assert seconds == pytest.approx(0.1)
        took = (1.0, 9.0, 3.0)[(len(timed) - 1) // rows]  # in the second round the machine is slow
        return [[2 * took] * 5, [took] * 5], 4

    monkeypatch.setattr(bench_conv, "rivals", lambda problem, *_: (timed.append(problem), None, "the kernel"))
    monkeypatch.setattr(bench_conv, "interleave", interleave)
    monkeypatch.setattr(bench_conv, "limit", lambda *_: (1.5, "arithmetic"))
    rows_of = {"network": "other", "batch": [2], "layouts": ["NHWC"], "passes": ["fprop"], "dtype": ["float32"]}
    arguments = Namespace(**rows_of, threads=2, seconds=0.3, own=False, peers=[])
    with Progress(disable=True) as progress:
        results = bench_conv.measure(arguments, progress)
    assert len(timed) == 3 * rows
    assert timed[:rows] == timed[rows : 2 * rows] == timed[2 * rows :]
    for row in results:
        assert (row["torch_ms"], row["ours_ms"], row["ratio"], row["of_limit"]) == (6000, 3000, 2, 0.5)
        assert (row["calls"], row["disturbed"], row["batch"], row["kernel"]) == (15, 12, 2, "the kernel")
