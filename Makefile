# `make demo` and `make test` do all set-up on a machine with Python >= 3.11, pip and Rust.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := .uv/bin/uv
export VIRTUAL_ENV := $(CURDIR)/$(VENV)
export UV_PYTHON_DOWNLOADS := never

RUST_SOURCES := Cargo.toml Cargo.lock $(shell find rust -name target -prune -o \( -name '*.rs' -o -name Cargo.toml \) -print)
INSTALLED := $(VENV)/.installed
BUILT := $(VENV)/.built

.PHONY: help setup test test-long demo demo-scratch lint check-crate format bench fuzz sanitize miri check-free-threaded clean

help:
	@echo "make demo          fine-tune a real model on this machine's Python source (5 minutes)"
	@echo "make demo-scratch  the same without a download: train a small model from scratch, then fine-tune it"
	@echo "make test          run all tests with small budgets; make test-long: with large ones"
	@echo "make lint          check formatting, lints, types, imports and contracts; make format: mend the first two"
	@echo "make check-crate   build the crate's documentation and dry-run its publication"
	@echo "make fuzz          run every fuzz target for FUZZ_SECONDS (60)"
	@echo "make sanitize      run the unsafe code under AddressSanitizer and valgrind (needs nightly Rust)"
	@echo "make miri          run the mapping's tests under Miri (needs nightly Rust with Miri)"
	@echo "make bench         run every benchmark; make clean: remove all that these commands made"

setup: $(BUILT)

# uv goes into a folder of its own: that needs only pip, no venv module and no writable system.
$(UV):
	@echo "Set-up, 1 of 3: uv, the installer of Python packages (a few seconds)"
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target .uv uv

$(INSTALLED): pyproject.toml .ci/constraints.txt | $(UV)
	@echo "Set-up, 2 of 3: Python packages, of which torch is the largest (downloads some GB; 1 to 5 minutes)"
	test -x $(BIN)/python || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	$(UV) pip install --quiet -r pyproject.toml --extra all --group dev -c .ci/constraints.txt
	touch $@

# The extension in release mode, editable. Rebuilt only when its sources change.
$(BUILT): $(INSTALLED) $(RUST_SOURCES)
	@echo "Set-up, 3 of 3: compiling the Rust core (about a minute)"
	PATH="$(CURDIR)/$(BIN):$$PATH" $(UV) pip install --quiet --no-deps --no-build-isolation --reinstall-package apr --editable .
	touch $@

test: $(BUILT)
	cargo test --quiet --workspace
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --durations 10

# With the packages of examples/, whose tests are skipped without them.
test-long: $(BUILT)
	$(UV) pip install --quiet --group examples -c .ci/constraints.txt
	cargo test --quiet --workspace
	APR_TEST_BUDGET=long $(BIN)/python -m pytest -n auto --maxprocesses 4

demo: $(BUILT)
	PYTHON="$(PYTHON)" docs/demo.sh

demo-scratch: $(BUILT)
	docs/demo-scratch.sh

# exact.py is no benchmark: it compares ids, and needs a vocabulary and text.
bench: $(BUILT)
	for bench in $(filter-out benches/exact.py,$(wildcard benches/*.py)); do $(BIN)/python $$bench || exit; done

fuzz:  # needs: cargo install cargo-fuzz. FUZZ_SECONDS for each target (60)
	$(PYTHON) rust/fuzz.py

sanitize: $(BUILT)
	PYTHON=$(CURDIR)/$(BIN)/python .ci/sanitize

miri:
	.ci/miri

lint: $(BUILT)
	cargo fmt --all --check
	cargo clippy --quiet --workspace --all-targets -- -D warnings
	cargo clippy --quiet -p apr-format --all-targets --no-default-features -- -D warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/apr contracts lint --strict-test-binding

# What publishing the crate would refuse: broken documentation links, missing files, code that needs the workspace.
check-crate:
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --no-deps -p apr-format
	cargo publish --quiet --dry-run -p apr-format

# Check that the bindings compile for a free-threaded CPython, which need not be installed.
check-free-threaded:
	PYO3_CONFIG_FILE=$(CURDIR)/rust/apr-python/cp314t.cfg CARGO_TARGET_DIR=target/cp314t \
		cargo clippy --quiet -p apr-python -- -D warnings

format:
	cargo fmt --all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) .uv target demo
