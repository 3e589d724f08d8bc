"""The command line: what it prints, its exit status, and that its check can fail."""

import json
import subprocess
import sys

import pytest
import torch

from resnext_kernels import bench, cli, problems
from resnext_kernels.functional import grouped_conv2d

from .cases import OperatorLog
from .test_fatbinary import fat_binary

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


@pytest.mark.parametrize("arguments", [["info"], ["explain", "8,128,56,56", "--groups", "32"]])
def test_a_reader_may_have_seen_enough(arguments):
    command = [sys.executable, "-m", "resnext_kernels", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == ("", 1)


def test_info(capsys):
    status, out, _ = call(capsys, "info")
    assert status == 0
    assert torch.backends.cpu.get_cpu_capability() in out
    assert str(cli.Path(cli.__file__).parent) in out
    assert "fprop_reference" in out


@pytest.mark.parametrize(
    ("library", "architectures", "words"),
    [
        (None, [], "none: this is a build for the CPU only"),
        (fat_binary((2, 90), (2, 80), (1, 90)), ["sm_80", "sm_90", "compute_90"], "sm_80 sm_90 compute_90"),
    ],
)
def test_info_names_the_architectures_of_the_cuda_library(capsys, monkeypatch, tmp_path, library, architectures, words):
    file = tmp_path / "library.so"
    if library:
        file.write_bytes(library)
    monkeypatch.setattr(cli._ops, "CUDA_LIBRARY", file)
    assert json.loads(call(capsys, "info", "--json")[1])["cuda_architectures"] == architectures
    assert f"cuda architectures {words}\n" in call(capsys, "info")[1]


def test_cpu_features(tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text("processor\t: 0\nflags\t\t: fpu sse2 fma f16c avx2 avx512f amx_tile erms\n")
    assert cli.cpu_features(str(file)) == ["fma", "f16c", "avx2", "avx512f", "amx_tile"]
    assert cli.cpu_features(str(tmp_path / "missing")) == []


def test_explain_a_shape(capsys):
    arguments = ["explain", "2x64x14x14", "--groups", "8", "--op", "fprop", "--layout", "channels_last"]
    expected = cli.explain(
        "fprop",
        torch.empty(2, 64, 14, 14).to(memory_format=torch.channels_last),
        torch.empty(64, 8, 3, 3),
        None,
        1,
        1,
        1,
        8,
    )
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
    assert "\nconv1: PyTorch, since it has a 7x7 kernel" in out
    assert "  37 x PyTorch\n" in out
    _, out, _ = call(capsys, *arguments, "--json")
    found = json.loads(out)
    assert len(found) == 53
    assert sum(item["kernel"] is not None for item in found.values()) == 16


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


# --- bench

BENCH = ["bench", "--seconds", "0.05", "--threads", "1"]  # a busy machine has ten times as long


@pytest.fixture
def small_bench(monkeypatch):
    """Two small layers, and no waiting for a quiet machine."""
    layers = [problems.edge_cases[name] for name in ("odd_map", "odd_map_stride_2")]
    monkeypatch.setitem(cli.NETWORKS, "resnext50_32x4d", layers)
    monkeypatch.setattr(bench, "SHARE_OF_WALL_TIME", 0)
    return layers


def test_bench_prints_a_table_and_draws_it(capsys, tmp_path, small_bench):
    file = tmp_path / "ratios.png"
    status, out, _ = call(capsys, *BENCH, "--op", "fprop", "wgrad", "--png", str(file))
    assert status == 0
    for layer in small_bench:
        assert out.count(layer.with_batch(1).name) == 4
    assert out.count("geometric mean") == 4
    assert "timing" not in out
    assert file.read_bytes().startswith(b"\x89PNG")


def test_bench_json_is_all_that_is_printed(capsys, small_bench):
    status, out, _ = call(capsys, *BENCH, "--json", "--layout", "channels_last", "--batch", "2")
    assert status == 0
    rows = json.loads(out)
    assert [(row["problem"], row["op"]) for row in rows] == [
        (layer.with_batch(2).name, op) for layer in small_bench for op in cli.OPS
    ]
    for row in rows:
        assert row["kernel"].startswith(row["op"])
        assert row["ratio"] == row["pytorch_ms"] / row["ours_ms"] > 0


def test_bench_says_when_no_call_was_counted(capsys, monkeypatch, small_bench):
    monkeypatch.setattr(bench, "SHARE_OF_WALL_TIME", 10)
    status, out, _ = call(capsys, *BENCH, "--op", "fprop", "--layout", "contiguous")
    assert status == 0
    assert out.count("never counted") == len(small_bench)
    assert "geometric mean" not in out


def test_bench_times_the_rivals_it_names():
    """PyTorch's first, ours second, with equal results."""
    problem = problems.edge_cases["odd_map_stride_2"]
    for op, operator in zip(cli.OPS, ("", "_grad_input", "_grad_weight"), strict=True):
        names, results = [], []
        *calls, _ = bench.rivals(problem, op, torch.channels_last, torch.float32)
        for function in calls:
            with OperatorLog() as log:
                results.append(function())
            names.append(log.names[0])
        assert names[0].startswith("aten::convolution")
        assert names[1] == f"grouped_conv2d{operator}"
        index = {"fprop": None, "dgrad": 0, "wgrad": 1}[op]
        expected = results[0] if index is None else results[0][index]
        torch.testing.assert_close(results[1], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "expected --batch, --threads and --seconds to be positive"),
        (["--seconds", "nan"], "expected --batch, --threads and --seconds to be positive"),
        (["--png", "/no/such/folder/a.png"], "expected --png in a folder that exists, got /no/such/folder/a.png"),
        (["--png", "picture.docx"], "expected --png to end in .png, got picture.docx"),
    ],
)
def test_bench_refuses_bad_arguments_before_it_starts(capsys, arguments, message):
    status, out, err = call(capsys, "bench", *arguments)
    assert (status, out) == (2, "")
    assert message in err


def test_bench_without_its_packages(capsys, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    status, _, err = call(capsys, *BENCH)
    assert status == 2
    assert err == "resnext-kernels: bench needs the package rich: pip install 'resnext_kernels[bench]'\n"
