# Two commands: `make demo` and `make test`. Each does all set-up on a machine with Python >= 3.11, pip and Rust.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := .uv/bin/uv
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export UV_PYTHON_DOWNLOADS := never

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust -name target -prune -o \( -name '*.rs' -o -name Cargo.toml \) -print)
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built

.PHONY: help setup test test-long demo demo-scratch lint format bench fuzz check-free-threaded clean

help:
	@echo "make demo          a real model in, Python source in, a fine-tuned .apr and a verdict out"
	@echo "make demo-scratch  the same offline: a small model from scratch, then fine-tuned"
	@echo "make test          all tests (small budgets); make test-long: large budgets"
	@echo "make fuzz          every fuzz target for FUZZ_SECONDS (60) each"
	@echo "make lint format bench clean"

setup: $(BUILT)

# uv into a folder of its own: needs pip alone, neither the venv module nor a writable system.
$(UV):
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .uv uv

$(INSTALLED): pyproject.toml .ci/constraints.txt | $(UV)
	test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet -r pyproject.toml --extra all --group dev -c .ci/constraints.txt
	touch $@

# The extension, in release mode, linked to python/apr: rebuilt only when its sources changed.
$(BUILT): $(INSTALLED) $(RUST_SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(UV) pip install --quiet --no-deps --no-build-isolation --reinstall-package apr --editable .
	touch $@

test: $(BUILT)
	cargo test --quiet --workspace
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8

test-long: $(BUILT)
	cargo test --quiet --workspace
	APR_TEST_BUDGET=long $(BIN)/python -m pytest -n auto --maxprocesses 4

demo: $(BUILT)
	PYTHON="$(PYTHON)" docs/demo.sh

demo-scratch: $(BUILT)
	docs/demo-scratch.sh

bench: $(BUILT)
	for bench in benches/*.py; do $(BIN)/python $$bench || exit; done

fuzz:  # needs: cargo install cargo-fuzz. FUZZ_SECONDS for each target (60)
	$(PYTHON) rust/apr-format/fuzz/run.py

lint: $(BUILT)
	cargo fmt --all --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/apr contracts lint

# The bindings compile for a CPython without a GIL, which need not be here.
check-free-threaded:
	PYO3_CONFIG_FILE=$(CURDIR)/rust/apr-python/cp314t.cfg CARGO_TARGET_DIR=target/cp314t \
		cargo clippy --quiet -p apr-python -- -D warnings

format:
	cargo fmt --all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .uv target demo
