# Everything on a fresh Linux machine: `make demo`, `make test`. No sudo. Python 3.11 or later.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint types layers check install clean

demo: install  ## solve one attention problem with the sampler and write its report
	$(BIN)/warpsmith solve attention/relative_position --model sampler --strategy beam --budget calls=24,minutes=15 --seed 0 --out runs/demo --overwrite

test: install
	$(BIN)/python -m pytest -n auto --dist loadfile

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

layers: install
	$(BIN)/lint-imports

check: lint types layers test  ## all that CI checks

install: $(VENV)/.installed

# torch first: a machine without a GPU gets the CPU build, which is ten times smaller.
$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or later is needed: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@if [ -e /dev/nvidiactl ]; then echo "GPU found: the CUDA build of torch"; \
	else echo "no GPU found: the CPU build of torch"; \
	  $(PIP) install -q --no-compile 'torch==2.13.0+cpu' 2>/dev/null \
	  || { $(PIP) install -q uv && $(BIN)/uv pip install -q --python $(BIN)/python --torch-backend cpu 'torch==2.13.0' 2>/dev/null; } \
	  || $(PIP) install -q --no-compile 'torch==2.13.0'; fi
	$(PIP) install -q --no-compile -e '.[dev]'
	@$(BIN)/python -m compileall -qq -j 0 -x '/tests/' $(VENV)/lib || true  # what pip does on one core; some files are templates
	@touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache
