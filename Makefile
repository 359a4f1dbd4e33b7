PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
# One process, few cores: spinning OpenMP threads of a second one would slow both tenfold.
TEST_ENV := OMP_NUM_THREADS=2 PYTHONDONTWRITEBYTECODE=1

.PHONY: demo test slow soak bench lint wheel clean

$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c requirements.lock -e '.[dev]'
	touch $@

demo: $(READY)
	$(BIN)/python examples/demo.py

test: $(READY)
	$(TEST_ENV) $(BIN)/python -m pytest -m "not slow"

# The long tests, with small counts.
slow: $(READY)
	$(TEST_ENV) $(BIN)/python -m pytest -m slow

soak: $(READY)
	SRGAN_FAST_SOAK=1 $(TEST_ENV) $(BIN)/python -m pytest

# The same cases under pytest-benchmark: `make bench ARGS="--benchmark-compare"`; its options are in ARGS.
bench: $(READY)
	$(BIN)/python -m pytest bench/suite_frame.py bench/suite_kernel.py bench/suite_train.py $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(READY)
	$(BIN)/python -m build --wheel --outdir dist .

clean:
	rm -rf $(VENV) dist build
