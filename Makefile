# make demo, make test: everything is set up in .venv on first use; a machine needs Python >= 3.10, g++ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml
export RESNEXT_KERNELS_TESTING ?= 1
export MAX_JOBS ?= 2

.PHONY: help build demo test fuzz cuda verify mmpretrain docs asan avx512 gpu bench lint format wheel abi clean
help:  ## Show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

$(VENV)/.installed: requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

$(VENV)/.built: $(VENV)/.installed $(SOURCES)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	touch $@

build: $(VENV)/.built  ## Set up .venv and build the package in place

demo: build  ## Real photographs through ResNeXt-50 on this package: agreement, times, a picture
	$(BIN)/python examples/demo.py

test: build $(VENV)/.nvcc $(VENV)/.verify $(VENV)/.wheel  ## The whole test suite
	$(BIN)/python -m pytest -n $(MAX_JOBS) --dist loadfile --no-loadscope-reorder  # else files of few, long tests end it

fuzz: build  ## 10,000 random calls, good and bad, against nn.Conv2d; `make test` has 550 others
	$(BIN)/python -m pytest -q -n $(MAX_JOBS) -m slow tests/test_fuzz.py

$(VENV)/.nvcc: $(VENV)/.installed requirements-cuda.txt
	$(BIN)/python benchmarks/cubins.py > $@ || $(BIN)/pip install --quiet -r requirements-cuda.txt || \
	  echo "no CUDA compiler and none to be had: tests that need one will be skipped"
	$(BIN)/python benchmarks/cubins.py > $@ || true

# With a toolkit from pip, libcudart has a version in its name only; the link gives the linker the name that it wants.
build/cuda/lib: $(VENV)/.nvcc
	mkdir -p $@
	test ! -s $< || ln -sf "$$(ls -d $$(cat $<)/lib/libcudart.so.* | head -1)" $@/libcudart.so

TOOLKIT = LIBRARY_PATH="$(CURDIR)/build/cuda/lib" PATH="$(abspath $(BIN)):$$PATH"
cuda: build/cuda/lib  ## Compile every CUDA kernel for every architecture, check the budgets, build and load the library
	RESNEXT_KERNELS_CUDA=1 RESNEXT_KERNELS_TESTING=0 CUDA_HOME="$$(cat $(VENV)/.nvcc)" $(TOOLKIT) \
	  $(BIN)/python setup.py --quiet build_clib build_ext --inplace
	$(BIN)/python -c "from resnext_kernels import _ops; assert not _ops.why_no_cuda, _ops.why_no_cuda"
	$(BIN)/python -m pytest -q tests/test_cubins.py --all-architectures

$(VENV)/.verify: $(VENV)/.installed requirements-verify.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-verify.txt || \
	  echo "no sentryward to be had: its proofs will be skipped"
	touch $@

verify: build $(VENV)/.nvcc $(VENV)/.verify  ## Prove every kernel free of races, and one equal to its formula, on compiled PTX
	$(BIN)/python -m pytest -q -n $(MAX_JOBS) -m "slow or not slow" tests/test_races.py tests/test_equality.py

mmpretrain: build requirements-mmpretrain.txt  ## Run the tests against mmpretrain, which they skip elsewhere
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/mmpretrain -r requirements-mmpretrain.txt
	PYTHONPATH="$(CURDIR)/build/mmpretrain" $(BIN)/python -m pytest -q tests/test_models.py tests/test_variants.py -k mmpretrain

asan: build  ## Run all kernels under sanitizers, the emulated ones too
	$(BIN)/python -m pytest -q tests/test_asan.py --asan

EMULATED = build/avx512
avx512: $(VENV)/.installed  ## Test the AVX-512 kernels on a CPU that has AVX2 alone, their instructions emulated
	RESNEXT_KERNELS_CUDA=0 RESNEXT_KERNELS_EMULATE_AVX512=1 \
	  $(BIN)/python setup.py --quiet build --build-base $(EMULATED) --build-lib $(EMULATED)/lib
	rm -rf $(EMULATED)/lib/tests
	cp -r tests $(EMULATED)/lib/tests
	cd $(EMULATED)/lib && $(abspath $(BIN))/python -m pytest -q -n $(MAX_JOBS) --dist loadfile -c /dev/null --rootdir . \
	  tests/test_kernels.py tests/test_winograd.py tests/test_epilogue.py tests/test_packed.py tests/test_threads.py \
	  tests/test_infinities.py tests/test_routing.py

docs: $(VENV)/.installed requirements-docs.txt  ## Build the documentation into build/site, every warning an error
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-docs.txt
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

gpu:  ## On a machine with a GPU: build for it, test, sanitize, benchmark (PYTHON=one with torch, pytest, numpy)
	$(PYTHON) benchmarks/run_gpu.py

bench: build  ## Every ResNeXt layer against nn.Conv2d, interleaved
	$(BIN)/python benchmarks/bench_conv.py

lint: $(VENV)/.installed  ## Check style of Python and C++
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')

format: $(VENV)/.installed  ## Bring Python and C++ into style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu')

$(VENV)/.wheel: $(VENV)/.installed requirements-wheel.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-wheel.txt
	touch $@

wheel: $(VENV)/.wheel build/cuda/lib  ## Build and check the CPU wheel in dist and, with a CUDA toolkit, the CUDA wheel
	$(TOOLKIT) $(BIN)/python benchmarks/wheels.py --cuda-home "$$(cat $(VENV)/.nvcc)"

ABI_TORCH ?= 2.13.0
abi: $(VENV)/.wheel  ## Build and check the CPU wheel and run its tests under another torch (ABI_TORCH=2.13.0)
	rm -rf build/abi
	$(BIN)/python benchmarks/wheels.py --output build/abi --torch $(ABI_TORCH) --environments build/abi
	build/abi/cpu/bin/pip install --quiet $$(grep -E '^(numpy|pytest|setuptools)==' requirements-dev.txt)
	cp -r tests build/abi/tests
	cd build/abi && cpu/bin/python -m pytest -q -c /dev/null --rootdir . \
	  tests/test_functional.py tests/test_autograd.py tests/test_compile.py tests/test_private_torch.py

clean:  ## Remove everything that make made
	rm -rf $(VENV) build dist *.egg-info resnext_kernels/*.so
