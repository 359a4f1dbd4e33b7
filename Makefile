PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
GPU_PYTHON := $(if $(wildcard $(READY)),$(BIN)/python,$(PYTHON))
# One thread each: a second process runs tests beside the others (`tests/beside.py`), and on two cores OpenMP threads
# that spin while they wait for each other cost more than they bring; networks here are small.
TEST_ENV := OMP_NUM_THREADS=1

.PHONY: demo test test-wheel slow soak kernels bench gpu gpu-stamp train-default lint docs figures audit wheel clean

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(TEST_ENV) $(BIN)/python -m pytest -m "not slow"

# The fast tests of what a user installs: the wheel, in an environment of its own. Nothing of the source tree is imported,
# as Python puts neither the folder that it stands in nor that of a script first.
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
WHEEL := dist/srgan_fast-$(VERSION)-py3-none-any.whl
test-wheel: wheel
	$(PYTHON) -m venv --clear $(VENV)-wheel
	$(VENV)-wheel/bin/python -m pip install --quiet --disable-pip-version-check -c requirements.lock '$(WHEEL)[dev]'
	SRGAN_FAST_TEST_WHEEL=1 PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/tests $(TEST_ENV) \
	  $(VENV)-wheel/bin/python -m pytest -p no:cacheprovider -m "not slow"

# The long tests, with small counts.
slow: $(READY)
	$(TEST_ENV) $(BIN)/python -m pytest -m slow

soak: $(READY)
	SRGAN_FAST_SOAK=1 $(TEST_ENV) $(BIN)/python -m pytest

# The same cases under pytest-benchmark: `make bench ARGS="--benchmark-compare"`; its options are in ARGS.
bench: $(READY)
	$(BIN)/python -m pytest bench/suite_frame.py bench/suite_kernel.py bench/suite_train.py $(ARGS)

# Everything that needs a GPU, on any machine with torch, triton and pytest: nothing is installed. Its options are in
# ARGS, such as ARGS="--budget-s 300 --parts parity,ceilings".
gpu:
	@if [ -e .git ]; then PYTHONPATH=. $(GPU_PYTHON) -m srgan_fast.bench.gpu --stamp; fi
	PYTHONPATH=. $(GPU_PYTHON) -m srgan_fast.bench.gpu $(ARGS)

# Before a copy without .git goes to a bare GPU machine: notes the commit in bench/results/stamp.json and puts the few
# packages that such a machine may lack into .gpu-site, for the Python that it has. Both have to go along.
GPU_PYTHON_VERSION ?= 3.12
gpu-stamp: $(READY)
	PYTHONPATH=. $(BIN)/python -m srgan_fast.bench.gpu --stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --upgrade \
	  --python-version $(GPU_PYTHON_VERSION) -c requirements.lock --target .gpu-site \
	  safetensors hypothesis sortedcontainers pillow

# The weights that ship, in slices that may be cut off anywhere: make train-default ARGS="photos/ runs/ --slices 1"
train-default: $(READY)
	$(BIN)/python tools/train_default.py $(ARGS)

# Parity by op, on the GPU or in the interpreter; registers, shared memory and instructions by architecture.
kernels: $(READY)
	$(TEST_ENV) $(BIN)/python tests/kernel_table.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# What `make docs` and `make audit` need beside the rest.
$(VENV)/.docs $(VENV)/.audit: $(VENV)/.%: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[$*]'
	touch $@

# The documentation as a site, in site/. A warning is an error, which --quiet would undo.
docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

figures: $(READY)
	$(BIN)/python tools/draw_figures.py

# Known vulnerabilities of the pinned packages.
audit: $(VENV)/.audit
	$(BIN)/python tools/audit.py

wheel: $(READY)
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf $(VENV) $(VENV)-wheel dist build site
