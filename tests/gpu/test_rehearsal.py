"""What stands for the tests of this folder where there is no GPU."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def test_on_a_gpu():
    pytest.skip("no GPU here: on a machine with one, `make gpu` runs the tests of tests/gpu")


def test_the_whole_run_on_cpu_tensors(tmp_path):
    command = [sys.executable, "benchmarks/run_gpu.py", "--device", "cpu", "--quick", "--output", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    logs = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert done.returncode == 0, done.stdout + done.stderr + logs.get("tests.log", "") + logs.get("bench.txt", "")
    assert "| tests | passed |" in logs["summary.md"]
    assert "| bench | passed |" in logs["summary.md"]
    assert "geometric mean" in logs["summary.md"]
    assert len(logs["bench.csv"].splitlines()) == 1 + 2 * 2 * 3  # dtypes, layouts, passes
    assert " failed" not in logs["tests.log"]
