"""What pip sees: sdist and wheel, the stable ABI, and clear words when something is missing."""

import os
import re
import stat
import subprocess
import sys
import tarfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import wheels

ROOT = Path(__file__).resolve().parent.parent
VERSION = re.search('^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
needs_auditors = pytest.mark.skipif(
    not (find_spec("auditwheel") and find_spec("abi3audit")), reason="no requirements-wheel.txt, which make installs"
)
SMOKE = """
import torch, resnext_kernels
assert "{target}" in resnext_kernels.__file__
x, w = torch.randn(2, 8, 6, 6, requires_grad=True), torch.randn(8, 2, 3, 3, requires_grad=True)
y = resnext_kernels.grouped_conv2d(x, w, padding=1, groups=4)
torch.testing.assert_close(y, torch.nn.functional.conv2d(x, w, padding=1, groups=4))
y.sum().backward()
print(resnext_kernels.explain("fprop", x, w, padding=1, groups=4).kernel)
"""


def _run(*command, cwd=ROOT, **env):
    done = subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory):
    """A source archive, the CPU wheel that is built from it, and the folder with what the build left behind."""
    folder = tmp_path_factory.mktemp("dist")
    archive, tree = wheels.unpacked_source(folder)
    with pytest.MonkeyPatch.context() as patch:
        # Compiles in little more than half the time; the library keeps the compiler's options.
        patch.setenv("CXXFLAGS", "-O1 -frecord-gcc-switches")
        return archive, wheels.build(tree, folder), tree


def test_sdist_holds_every_source(artefacts):
    with tarfile.open(artefacts[0]) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*") if p.is_file()}
    assert sources <= names
    assert {"setup.py", "pyproject.toml", "README.md", "LICENSE", "Makefile", "csrc/cuda/budgets.csv"} <= names
    assert {"requirements-dev.txt", "requirements-cuda.txt", "requirements-wheel.txt"} <= names
    assert not [name for name in names if name.endswith(".so")]


def test_wheel_serves_every_python_and_has_no_test_code(artefacts):
    assert artefacts[1].name == f"resnext_kernels-{VERSION}-cp310-abi3-linux_x86_64.whl"
    names = zipfile.ZipFile(artefacts[1]).namelist()
    assert "resnext_kernels/_C.abi3.so" in names
    options = re.findall(rb"GNU C\+\+[^\0]+", zipfile.ZipFile(artefacts[1]).read("resnext_kernels/_C.abi3.so"))
    assert options
    assert {re.findall(rb" -O(\S)", line)[-1] for line in options} == {b"1"}, "CXXFLAGS come after our own"
    assert "resnext_kernels/_C_cuda.abi3.so" not in names
    assert not [name for name in names if "testing" in name or name.startswith(("csrc", "tests"))]


@needs_auditors
def test_wheel_passes_its_audits(artefacts, tmp_path):
    wheel = wheels.audited(artefacts[1], tmp_path)
    assert re.fullmatch(rf"resnext_kernels-{VERSION}-cp310-abi3-manylinux_2_\d+_x86_64\.whl", wheel.name)
    names = zipfile.ZipFile(wheel).namelist()
    assert [name for name in names if ".so" in name] == ["resnext_kernels/_C.abi3.so"], "a copied library"


UNFIT = {
    "a test module": ("_testing_cpu", "", "holds what no user needs: resnext_kernels/_testing_cpu"),
    "no stable ABI": ("_C_cuda", "void PyFrame_GetLasti(); void f() { PyFrame_GetLasti(); }", "abi3audit --strict"),
    "a library of the builder's": ("_C_cuda", "void other(); void f() { other(); }", "auditwheel repair"),
}


@needs_auditors
@pytest.mark.parametrize("fault", UNFIT)
def test_unfit_wheels_are_refused(artefacts, tmp_path, fault):
    name, text, message = UNFIT[fault]
    compiler = ["cc", "-shared", "-fPIC", "-xc", "-", "-o"]
    subprocess.run([*compiler, tmp_path / "libother.so"], input="void other() {}", text=True, check=True)
    link = ["-xnone", f"-L{tmp_path}", "-lother", f"-Wl,-rpath,{tmp_path}"] if "other" in text else []
    subprocess.run([*compiler, tmp_path / "bad.so", *link], input=text, text=True, check=True)
    wheel, library = tmp_path / artefacts[1].name, f"resnext_kernels/{name}.abi3.so"
    with zipfile.ZipFile(artefacts[1]) as good, zipfile.ZipFile(wheel, "w") as bad:
        for entry in good.namelist():
            more = f"{library},,\n" if entry.endswith("/RECORD") else ""
            bad.writestr(entry, good.read(entry) + more.encode())
        bad.write(tmp_path / "bad.so", library)
    with pytest.raises(RuntimeError, match=message):
        wheels.audited(wheel, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_cuda_wheel_is_told_by_its_version(tmp_path, monkeypatch):
    """The switches that setup.py reads, and the version, with a source that notes them and takes no time to compile."""
    monkeypatch.setattr(torch.version, "cuda", "13.7")
    monkeypatch.setenv("RESNEXT_KERNELS_TESTING", "1")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text().replace("README.md", "words.md"))
    for file in ("words.md", "LICENSE", "resnext_kernels/__init__.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "setup.py").write_text(
        "import os, setuptools\nswitches = {key: os.environ.get(key, '') for key in ('CUDA_HOME', "
        "'RESNEXT_KERNELS_CUDA', 'RESNEXT_KERNELS_TESTING')}\n"
        "open('resnext_kernels/switches.py', 'w').write(repr(switches))\nsetuptools.setup()\n"
    )
    for home, version, cuda in ((None, VERSION, "0"), (tmp_path / "toolkit", f"{VERSION}+cu13", "1")):
        wheel = wheels.build(tmp_path, tmp_path / "out", home)
        assert wheel.name.startswith(f"resnext_kernels-{version}-")
        archive = zipfile.ZipFile(wheel)
        assert f"Version: {version}\n" in archive.read(f"resnext_kernels-{version}.dist-info/METADATA").decode()
        switches = eval(archive.read("resnext_kernels/switches.py"))
        assert switches["RESNEXT_KERNELS_CUDA"] == cuda
        assert switches["RESNEXT_KERNELS_TESTING"] == "0"
        assert home is None or switches["CUDA_HOME"] == str(home)


@pytest.mark.parametrize(
    ("cuda", "changes", "why"),
    [
        (False, {}, ""),
        (False, {"cuda_architectures": ["sm_80"]}, r"expected a wheel without CUDA code, got \['sm_80'\]"),
        (True, {}, r"expected a wheel with CUDA code, got \[\]"),
        (True, {"cuda_architectures": ["sm_80"], "cuda_library": "loaded"}, ""),
        (True, {"cuda_architectures": ["sm_80"]}, "the CUDA library is not loaded: it is broken"),
        (True, {"cuda_architectures": ["sm_80"], "cuda_of_torch": None}, ""),
    ],
)
def test_what_an_installed_wheel_must_tell_of_itself(cuda, changes, why):
    facts = {"cuda_architectures": [], "cuda_of_torch": "13.0", "cuda_library": "it is broken", **changes}
    assert re.fullmatch(why, wheels.why_unfit(facts, cuda))


@pytest.mark.slow
@needs_auditors
def test_wheel_installs_into_an_empty_environment_and_passes_its_check(artefacts, tmp_path):
    facts = wheels.try_out(wheels.audited(artefacts[1], tmp_path), torch.__version__.split("+")[0], tmp_path / "new")
    assert str(tmp_path / "new") in facts["installed_in"]
    assert facts["resnext_kernels"] == VERSION
    assert wheels.why_unfit(facts, cuda=False) == ""


def test_library_uses_only_the_stable_abi(artefacts, tmp_path):
    zipfile.ZipFile(artefacts[1]).extract("resnext_kernels/_C.abi3.so", tmp_path)
    code, symbols = _run("nm", "-DC", "--undefined-only", str(tmp_path / "resnext_kernels/_C.abi3.so"))
    assert code == 0, symbols
    assert "aoti_torch" in symbols
    assert not [line for line in symbols.splitlines() if " at::" in line or " c10::" in line or " torch::" in line]
    assert "GOMP_parallel" in symbols, "built without OpenMP: every loop would be serial"


def test_instruction_sets_share_no_functions(artefacts):
    """A weak symbol compiled for AVX-512 could be the one that the linker keeps for every CPU."""
    libraries = list((artefacts[2] / "build").glob("temp*/libresnext_cpu_*_avx*.a"))
    assert len(libraries) == len(list((ROOT / "csrc/cpu").glob("*_avx*.cpp")))
    functions = 0
    for library in libraries:
        code, symbols = _run("nm", "-C", "--defined-only", str(library))
        assert code == 0
        own = f"resnext::cpu::{library.stem.split('_')[-1]}::"
        weak = [line for line in symbols.splitlines() if re.match(r"\w+ [WVu] ", line)]
        functions += len(weak)
        assert not [line for line in weak if own not in line and "DW.ref.__gxx_personality_v0" not in line]
    assert functions


def test_installed_wheel_runs(artefacts, tmp_path):
    target = tmp_path / "site"
    code, text = _run(
        sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target), str(artefacts[1])
    )
    assert code == 0, text
    code, text = _run(sys.executable, "-c", SMOKE.format(target=target), cwd=tmp_path, PYTHONPATH=str(target))
    assert code == 0, text
    assert "fprop_" in text
    code, text = _run(sys.executable, str(target / "bin/resnext-kernels"), "info", cwd=tmp_path, PYTHONPATH=str(target))
    assert code == 0, text
    assert "fprop_reference" in text


# --- setup.py's words; `setup.py --name` does all its checks and builds nothing


def _setup(prelude="pass", **env):
    run = "sys.argv = ['setup.py', '--name']; runpy.run_path('setup.py', run_name='__main__')"
    return _run(sys.executable, "-c", f"import runpy, sys; {prelude}; {run}", **env)


def test_missing_torch_gives_a_sentence():
    code, text = _setup("sys.modules['torch'] = None")
    assert code == 1
    assert "building needs torch >= 2.11" in text
    assert "pip install --no-build-isolation ." in text
    assert "Traceback" not in text


def test_cuda_switch():
    code, text = _setup(RESNEXT_KERNELS_CUDA="yes")
    assert code == 1
    assert "expected RESNEXT_KERNELS_CUDA to be auto, 0 or 1, got 'yes'" in text
    code, text = _setup("import torch; torch.version.cuda = '99.1'", RESNEXT_KERNELS_CUDA="1")
    assert code == 1
    assert "RESNEXT_KERNELS_CUDA=1, but the CUDA library cannot be built: torch has CUDA 99.1, toolkits found:" in text
    code, text = _setup("import torch; torch.version.cuda = '99.1'", RESNEXT_KERNELS_CUDA="auto")
    assert code == 0
    assert "CUDA library left out: torch has CUDA 99.1" in text
    assert "CUDA library left out: RESNEXT_KERNELS_CUDA=0" in _setup(RESNEXT_KERNELS_CUDA="0")[1]


def _script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)


def test_toolkit_is_found_behind_an_nvcc_wrapper(tmp_path):
    toolkit = tmp_path / "toolkit"
    nvcc = f"""case "$*" in *--dryrun*) echo '#$ _HERE_={toolkit}/bin' >&2;; *) echo 'release 99.0, V99';; esac"""
    _script(toolkit / "bin/nvcc", nvcc)
    _script(tmp_path / "bin/nvcc", f'exec "{toolkit}/bin/nvcc" "$@"')
    (toolkit / "include").mkdir()
    (toolkit / "include/cuda_runtime.h").touch()
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    code, text = _setup("import torch; torch.version.cuda = '99.1'", PATH=path, CUDA_HOME="", RESNEXT_KERNELS_CUDA="1")
    assert code == 0, text
    assert f"CUDA library with {toolkit.resolve()}" in text


# --- loading


def test_unbuilt_source_tree_says_how_to_build(tmp_path):
    for file in (ROOT / "resnext_kernels").glob("*.py"):
        (tmp_path / "resnext_kernels").mkdir(exist_ok=True)
        (tmp_path / "resnext_kernels" / file.name).write_text(file.read_text())
    code, text = _run(sys.executable, "-c", "import resnext_kernels", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert code == 1
    assert "resnext_kernels is not built (_C.abi3.so is missing): pip install --no-build-isolation ." in text


def test_broken_library_names_the_torch_it_found(tmp_path):
    for file in (ROOT / "resnext_kernels").glob("*.py"):
        (tmp_path / "resnext_kernels").mkdir(exist_ok=True)
        (tmp_path / "resnext_kernels" / file.name).write_text(file.read_text())
    (tmp_path / "resnext_kernels/_C.abi3.so").write_text("not a library")
    code, text = _run(sys.executable, "-c", "import resnext_kernels", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert code == 1
    assert f"_C.abi3.so, built for torch >= 2.11, cannot be loaded with torch {torch.__version__}" in text


@pytest.mark.skipif(not torch.version.cuda, reason="torch without CUDA")
def test_cuda_library_is_loaded_or_its_absence_explained():
    from resnext_kernels import _ops

    built = (ROOT / "resnext_kernels/_C_cuda.abi3.so").exists()
    assert _ops.why_no_cuda == ("" if built else "this installation was built without its CUDA library")
