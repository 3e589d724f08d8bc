"""The documentation names everything that is public, its site builds without a warning, and its tutorial runs."""

import ast
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import resnext_kernels

ROOT = Path(__file__).resolve().parent.parent
API = re.findall(r"^::: resnext_kernels\.(.+)$", (ROOT / "docs/api.md").read_text(), re.M)


def test_every_public_name_is_on_the_api_page():
    names = {entry.split(".")[-1] for entry in API}
    missing = set(resnext_kernels.__all__) - names - {"ResNeXtKernelsWarning"}
    assert missing == set()


@pytest.mark.parametrize("entry", API)
def test_what_the_api_page_names_exists(entry):
    module, _, name = entry.partition(".")
    tree = ast.parse((ROOT / f"resnext_kernels/{module}.py").read_text())
    kinds = (ast.FunctionDef, ast.ClassDef)
    assert not name or name in {node.name for node in tree.body if isinstance(node, kinds)}


def test_every_page_is_in_the_menu():
    menu = re.findall(r"(\w+\.md)", (ROOT / "mkdocs.yml").read_text())
    assert sorted(menu) == sorted(page.name for page in (ROOT / "docs").glob("*.md"))


@pytest.mark.skipif(not importlib.util.find_spec("mkdocs"), reason="make docs installs mkdocs")
def test_the_site_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "grouped_conv2d" in (tmp_path / "api/index.html").read_text()


def test_the_tutorial_runs(tmp_path):
    pytest.importorskip("sklearn")
    picture = tmp_path / "maps.png"
    options = ["--images", "1", "--size", "64", "--rounds", "1", "--picture", str(picture)]
    command = [sys.executable, str(ROOT / "examples/tutorial.py"), *options]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "converted 16 of 53 convolutions" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
