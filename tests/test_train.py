"""The training example: it learns, and a killed run ends as an uninterrupted one, bit for bit."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from resnext_kernels import load_weights
from resnext_kernels.network import ResNeXt

pytest.importorskip("rich")
pytest.importorskip("sklearn")
SCRIPT = Path(__file__).parents[1] / "examples/train_imagenet.py"


def start(out, *arguments, launcher=(), **options):
    command = [sys.executable, *launcher, str(SCRIPT), "--out", str(out), "--save-every", "2", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[1])}
    return subprocess.Popen(command, env=environment, text=True, **options)


def run(out, *arguments, launcher=()):
    process = start(out, *arguments, launcher=launcher, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    text = process.communicate(timeout=600)[0]
    assert process.returncode == 0, text
    return text


def read(path):
    return torch.load(path, weights_only=True)


def same(first, second):
    """Whether two nested structures are equal, tensors bit for bit."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of four epochs that nothing disturbed."""
    out = tmp_path_factory.mktemp("whole")
    run(out, "--digits", "--epochs", "4")
    return out


def test_it_learns_and_its_weights_load(whole):
    rows = list(csv.DictReader((whole / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2", "3"]
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])
    assert max(float(row["accuracy"]) for row in rows) > 0.5  # chance is 0.1
    model = ResNeXt((1, 1), 8, 4, num_classes=10, stem="cifar")
    assert load_weights(model, whole / "best.pth") == "torchvision"


def test_a_killed_run_ends_like_the_whole_one(whole, tmp_path):
    last = tmp_path / "last.pth"
    for step in (6, 30):  # in the first and in the second epoch
        process = start(tmp_path, "--digits", "--epochs", "4", stdout=subprocess.DEVNULL)
        while process.poll() is None and not (last.exists() and read(last)["step"] >= step):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
        assert step <= read(last)["step"] < read(whole / "last.pth")["step"]
    run(tmp_path, "--digits", "--epochs", "4")
    assert same(read(last), read(whole / "last.pth"))
    assert same(read(tmp_path / "best.pth"), read(whole / "best.pth"))
    assert (tmp_path / "log.csv").read_text() == (whole / "log.csv").read_text()


@pytest.mark.slow
def test_two_killed_processes_end_like_undisturbed_ones(tmp_path):
    torchrun = {"launcher": ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")}
    options, (one, other) = ("--digits", "--epochs", "2"), (tmp_path / "one", tmp_path / "other")
    assert "epoch 1: loss" in run(one, *options, **torchrun)
    last = other / "last.pth"
    process = start(other, *options, **torchrun, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None and not (last.exists() and read(last)["step"] >= 6):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    assert 6 <= read(last)["step"] < read(one / "last.pth")["step"]
    run(other, *options, **torchrun)
    assert same(read(last), read(one / "last.pth"))


def test_folders_of_images(tmp_path):
    image = pytest.importorskip("skimage.io")
    generator = torch.Generator().manual_seed(0)
    for part in ("train", "val"):
        for label, name in enumerate(("dark", "light")):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for i in range(4):
                pixels = torch.randint(0, 80, (40, 40, 3), generator=generator, dtype=torch.uint8) + 150 * label
                image.imsave(folder / f"{i}.png", pixels.numpy(), check_contrast=False)
    options = ["--data", str(tmp_path), "--epochs", "1", "--batch", "4", "--image-size", "32", "--workers", "1"]
    text = run(tmp_path / "run", *options, "--amp", "bfloat16")
    assert "epoch 0: loss" in text
    assert "fc.weight" in read(tmp_path / "run/best.pth")


def test_another_length_of_run_is_refused(whole, tmp_path):
    (tmp_path / "last.pth").write_bytes((whole / "last.pth").read_bytes())
    process = start(tmp_path, "--digits", "--epochs", "5", stderr=subprocess.PIPE)
    text = process.communicate()[1]
    assert process.returncode == 1
    assert "belongs to a run of" in text
