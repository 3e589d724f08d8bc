"""What the benchmark's clock counts, with a clock of its own."""

import pytest

from resnext_kernels import bench


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
