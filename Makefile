# make demo   train, evaluate and draw a 1-bit detector on a drawn dataset
# make test   linter and whole test suite
# make docs   the documentation's site, in site/, from an environment of its own
# The first two make .venv first; all need Python 3.10 to 3.12 and make.

PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3 python; do \
	"$$p" -c 'import sys, venv; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' \
	>/dev/null 2>&1 && { echo "$$p"; break; }; done)
VENV ?= .venv
FLAVOUR ?= mmdet
WORKERS ?= 2
BIN = $(VENV)/bin
export SURGE_DATA_ROOT ?= data
CPU_BUILDS = $(shell sed -nE 's/^torch(vision)?==.*/&+cpu/p' requirements/$(FLAVOUR).txt)
WORK_DIR ?= work_dirs/demo

.PHONY: demo test docs isa test-onedl lint install clean

install: $(VENV)/.installed $(VENV)/.runtime

$(VENV)/.installed: requirements/$(FLAVOUR).txt setup.cfg pyproject.toml
	@test -n "$(PYTHON)" || { echo 'error: no Python 3.10, 3.11 or 3.12 found; name one: make PYTHON=/path/to/python' >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip<26'
	@# The usual build brings CUDA on Linux, on 64-bit ARM too, and nowhere else.
	@[ "$$(uname)" != Linux ] || command -v nvidia-smi >/dev/null || \
	$(BIN)/python -m pip install $(CPU_BUILDS) 2>/dev/null || \
	echo 'note: no CPU build of torch comes from the package index in use; the usual one brings CUDA, 5 GB (docs/installation.md)'
	$(BIN)/python -m pip install -r requirements/$(FLAVOUR).txt
	$(BIN)/python -m pip install --no-deps -e .
	@# OpenCV's ordinary wheel needs the system's libGL; the headless one does not.
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { \
	$(BIN)/python -m pip uninstall -y opencv-python opencv-python-headless && \
	$(BIN)/python -m pip install --no-deps opencv-python-headless==4.12.0.88; }
	$(BIN)/python -m surge_det doctor
	@touch $@

# Compiles the kernels with the clang that comes as the wheel ziglang.
$(VENV)/.runtime: $(VENV)/.installed runtime/setup.py runtime/pyproject.toml $(wildcard runtime/src/*)
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e runtime
	@touch $@

demo: install
	$(BIN)/python tools/demo.py --work-dir $(WORK_DIR)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Two workers with one thread each. A file's tests stay together, as they share
# what was trained for them; files are dealt out in the usual order, which has
# the longest first.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST)

# Those tests whose results depend on the processor's instruction sets.
isa: install
	$(PYTEST) -m isa

test-onedl:
	$(MAKE) test VENV=.venv-onedl FLAVOUR=onedl

# Reads the sources and imports none of them.
docs: .venv-docs/.installed
	NO_MKDOCS_2_WARNING=1 .venv-docs/bin/mkdocs build

.venv-docs/.installed: requirements/docs.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet -r requirements/docs.txt
	@touch $@

clean:
	rm -rf .venv .venv-onedl .venv-docs site work_dirs
