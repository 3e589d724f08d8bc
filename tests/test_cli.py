"""The command line: what it prints, its exit status, and that its check can fail."""

import json
import subprocess
import sys

import pytest
import torch

from resnext_kernels import cli, problems
from resnext_kernels.functional import grouped_conv2d

SMALL = [problems.edge_cases["odd_map"]]


def call(capsys, *arguments):
    """Exit status and what was printed to both streams."""
    status = cli.main(list(arguments))
    return status, *capsys.readouterr()


def test_it_runs_as_a_module():
    command = [sys.executable, "-m", "resnext_kernels", "info", "--json"]
    facts = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert facts["torch"] == torch.__version__
    assert facts["kernels"]["wgrad"]["wgrad_reference"] == ""


def test_info(capsys):
    status, out, _ = call(capsys, "info")
    assert status == 0
    assert torch.backends.cpu.get_cpu_capability() in out
    assert "fprop_reference" in out


def test_explain_a_shape(capsys):
    arguments = ["explain", "2x64x14x14", "--groups", "8", "--op", "fprop", "--layout", "channels_last"]
    expected = cli.explain("fprop", torch.empty(2, 64, 14, 14), torch.empty(64, 8, 3, 3), None, 1, 1, 1, 8)
    status, out, _ = call(capsys, *arguments)
    assert status == 0
    assert out == f"fprop: {expected}\n"
    _, out, _ = call(capsys, *arguments, "--json")
    answer = json.loads(out)
    assert answer["fprop"]["kernel"] == expected.kernel
    assert dict(answer["fprop"]["entries"])["fprop_reference"] == ""


def test_explain_says_when_pytorch_runs(capsys):
    status, out, _ = call(capsys, "explain", "1,64,14,14", "--op", "dgrad")
    assert status == 0
    assert "PyTorch" in out
    assert "groups=1" in out


def test_explain_a_model(capsys):
    pytest.importorskip("torchvision")
    arguments = ["explain", "1,3,64,64", "--model", "torchvision.models.resnext50_32x4d", "--op", "fprop"]
    status, out, _ = call(capsys, *arguments)
    assert status == 0
    assert len([line for line in out.splitlines() if ".conv2 fprop: fprop_" in line]) == 16
    _, out, _ = call(capsys, *arguments, "--json")
    assert len(json.loads(out)) == 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["1,64,14,14", "--groups", "5"], "expected --groups to divide 64 input and 64 output channels, got 5"),
        (["1,64,14,14", "--groups", "0"], "expected --groups to divide"),
        (["1,64,1,1", "--groups", "8", "--padding", "0"], "Kernel size can't be greater than actual input size"),
        (["--model", "resnet"], "expected --model to be a path such as torchvision.models.resnext50_32x4d"),
        (["--model", "no_such_package.net"], "--model no_such_package.net cannot be found"),
        (["--model", "collections.Counter"], "expected --model collections.Counter to make a torch.nn.Module"),
    ],
)
def test_bad_input(capsys, arguments, message):
    status, out, err = call(capsys, "explain", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("resnext-kernels: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_shape_that_is_none(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["explain", "64x14"])
    assert stop.value.code == 2
    assert "expected N,C,H,W such as 8,128,56,56, got '64x14'" in capsys.readouterr().err


def test_check_passes(capsys, monkeypatch):
    rows = list(cli.check("cpu", SMALL))
    assert len(rows) == len(cli.OPS) * len(cli.DTYPES) * len(cli.LAYOUTS)
    assert all(0 < row.ours <= 1 for row in rows)
    assert {row.kernel.split("_")[0] for row in rows} == set(cli.OPS)
    monkeypatch.setattr(cli, "CHECKED", SMALL)
    status, out, _ = call(capsys, "check")
    assert status == 0
    assert f"{len(rows)} of {len(rows)} results" in out


@pytest.mark.parametrize("fault", ["slightly_wrong", "nan"])
def test_check_fails_when_a_result_is_wrong(capsys, monkeypatch, fault):
    def wrong(*arguments, **options):
        output = grouped_conv2d(*arguments, **options)
        return output * (1 + 1e-4) if fault == "slightly_wrong" else output * float("nan")

    monkeypatch.setattr(cli, "grouped_conv2d", wrong)
    monkeypatch.setattr(cli, "CHECKED", SMALL)
    status, out, _ = call(capsys, "check")
    assert status == 1
    assert "FAILED: " + SMALL[0].name in out
    _, out, _ = call(capsys, "check", "--json")
    failed = {row["dtype"] for row in json.loads(out) if not row["passed"]}
    assert failed == ({"float32", "float64"} if fault == "slightly_wrong" else set(cli.DTYPES))
