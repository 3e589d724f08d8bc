"""The rules that keep the layers apart; docs/design.md says why each exists."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = [path for path in (ROOT / "csrc").rglob("*") if path.suffix in {".h", ".cpp", ".cu", ".cuh"}]
PACKAGE = list((ROOT / "resnext_kernels").glob("*.py"))
PYTHON = PACKAGE + [path for folder in ("tests", "benchmarks", "examples") for path in (ROOT / folder).rglob("*.py")]


def _relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _matches(paths, pattern: str, allowed: str = "(?!)") -> list[str]:
    """'file: line' of every line that matches the pattern in a file whose name does not match `allowed`."""
    found = []
    for path in paths:
        if not re.match(allowed, _relative(path)):
            lines = path.read_text().splitlines()
            found += [f"{_relative(path)}: {line.strip()}" for line in lines if re.search(pattern, line)]
    return found


def test_there_is_something_to_check():
    assert len(CSRC) > 8
    assert len(PACKAGE) > 5


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (r'#\s*include\s*[<"](torch|ATen|c10|Python\.h)', r"csrc/torch/"),
        (r'#\s*include\s*[<"](ATen|c10|torch/all|torch/extension|torch/library)', r"(?!)"),  # stable ABI only
        (r'#\s*include\s*[<"]pybind11', r"csrc/testing/"),
        (r"\basm\b", r"csrc/(cuda/ptx\.h|cpu/simd\.h|simt/scheduler\.cpp)"),
        (r"<<<|cudaLaunchKernel", r"csrc/(cuda/launch\.h|simt/simt\.h)"),
        (r"__shared__", r"csrc/cuda/device\.h"),  # kernels call dynamic_smem<Smem>()
        (r"\bgetenv\b", r"(?!)"),
        (r"march=native|ffast-math", r"(?!)"),
    ],
)
def test_belongs_in_one_place(pattern, allowed):
    assert _matches(CSRC, pattern, allowed) == []


def test_cpu_and_cuda_never_include_each_other():
    cpu = [path for path in CSRC if "csrc/cpu/" in _relative(path)]
    cuda = [path for path in CSRC if "csrc/cuda/" in _relative(path)]
    assert _matches(cpu, r'#\s*include\s*[<"].*cuda') == []
    assert _matches(cuda, r'#\s*include\s*[<"].*cpu') == []


def test_only_device_h_asks_which_compiler_it_is():
    cuda = [path for path in CSRC if "csrc/cuda/" in _relative(path)]
    assert _matches(cuda, r"^\s*#\s*(if|el|define)|__CUDACC__|__CUDA_ARCH__", r"csrc/cuda/device\.h") == []


def test_the_emulation_compiles_every_cuda_source():
    sources = {_relative(p) for p in CSRC if _relative(p).startswith("csrc/cuda/") and p.suffix in {".cu", ".cpp"}}
    sources |= {_relative(path) for path in CSRC if path.suffix == ".cu"}
    units = [path.read_text() for path in (ROOT / "csrc/simt/units").iterdir()]
    assert sorted(units) == sorted(f'#include "{source.removeprefix("csrc/")}"\n' for source in sources)


# Modules of the package, lowest first: each imports only those before it.
ORDER = [
    "_private_torch",
    "_ops",
    "_packed",
    "_formats",
    "_autograd",
    "functional",
    "module",
    "mmpretrain",
    "alexnet",
    "inference",
    "fusion",
    "complexity",
    "block",
    "network",
    "weights",
]
ORDER += ["__init__", "problems", "fatbinary", "bench", "cli", "__main__"]


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: path.stem)
def test_python_depends_one_way(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("resnext_kernels")):
            module = (node.module or "").removeprefix("resnext_kernels").strip(".")
            imported |= {module} if module else {alias.name for alias in node.names}
    if path.stem in ORDER:
        assert imported <= set(ORDER[: ORDER.index(path.stem)])
    else:
        assert imported == set(), f"{path.stem} is not in the order of layers"


def test_results_depend_on_arguments_not_on_the_environment():
    assert _matches(PACKAGE, r"os\.environ|os\.getenv") == []


# A file stays readable: a function has at most 80 lines, a file 400.


@pytest.mark.parametrize("path", CSRC + PYTHON, ids=_relative)
def test_file_length(path):
    assert len(path.read_text().splitlines()) <= 400


@pytest.mark.parametrize("path", PYTHON, ids=_relative)
def test_python_function_length(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 80, node.name


@pytest.mark.parametrize("path", CSRC, ids=_relative)
def test_cpp_function_length(path):
    """In clang-format's style a block that opens at column 0 (or 2, in a class) closes at the same column."""
    lines = path.read_text().splitlines()
    for start, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if indent in (0, 2) and line.endswith("{") and "(" in " ".join(lines[max(0, start - 3) : start + 1]):
            if re.match(r"\s*(namespace|class|struct|enum|extern)\b", line):
                continue
            end = next(i for i in range(start + 1, len(lines)) if re.match(rf"^ {{{indent}}}}}", lines[i]))
            assert end - start < 80, line


def test_nothing_names_a_machine():
    text = [path for path in ROOT.glob("*") if path.is_file()] + list((ROOT / "docs").rglob("*.md"))
    assert (
        _matches(CSRC + PYTHON + text, r"(^|[^A-Za-z0-9_.])/(home|root|work)/", r"(tests/test_layering|\.git$)") == []
    )
