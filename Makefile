# Everything runs in a virtual environment of the checkout; PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin
# pip says what went wrong; it need not say what went right.
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
COMMA := ,
# Linking needs a C compiler: where the system has none, PyPI's is installed.
ZIG := $(if $(shell command -v cc || command -v gcc || command -v clang),,$(COMMA)zig)

.PHONY: help demo reproduce bench gpu-prepare gpu test lint types unit docs recording clean

help:
	@echo "make demo    train, prune, retrain and compile a small network on bundled data (about a minute)"
	@echo "make reproduce  the paper's results on MNIST, three seeds of each network (hours)"
	@echo "make bench   lwc beside other engines, each in an environment of its own (hours); ARGS='--models lenet5' chooses"
	@echo "make gpu-prepare  all that a GPU has to show, in one file, made without a GPU; ARGS='--target a100' chooses one"
	@echo "make gpu     runs that file: needs a GPU, Python and NumPy (under 5 minutes)"
	@echo "make test    everything that has to pass: lint, types, tests"
	@echo "make lint    ruff: rules and formatting"
	@echo "make types   mypy"
	@echo "make unit    pytest; ARGS='tests/passes -k prune' chooses tests"
	@echo "make docs    the documents as a site, in build/site"
	@echo "make recording  the quick start in a terminal as a picture, docs/pictures/quick-start.svg"
	@echo "make clean   remove the environment and everything that tools left behind"

demo: .venv/demo.stamp
	@rm -rf demo-output
	$(BIN)/lwc demo -o demo-output

reproduce: .venv/demo.stamp
	$(BIN)/lwc reproduce lenet-300-100 --figure-5 -o reproduce/lenet-300-100
	$(BIN)/lwc reproduce lenet-5 --figure-5 -o reproduce/lenet-5

bench: .venv/demo.stamp
	$(BIN)/python -m benchmarks.peers $(ARGS)

gpu-prepare: .venv/test.stamp
	$(BIN)/python -m benchmarks.gpu.prepare $(ARGS)

# Without the environment: the machine with the GPU need not have lwc.
gpu:
	$(PYTHON) build/lwc-gpu.pyz --output benchmarks/results $(ARGS)

test: lint types unit

lint: .venv/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: .venv/test.stamp
	$(BIN)/mypy

unit: .venv/test.stamp
	$(BIN)/python -m tests.wheels
	$(BIN)/pytest -n 2 --dist loadgroup $(ARGS)

# The theme prints news about its successor unless this is set.
docs: .venv/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

recording: .venv/demo.stamp
	$(BIN)/python docs/pictures/record.py

clean:
	rm -rf .venv .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist demo-output
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 10) <= v <= (3, 12) else "lwc is developed on Python 3.10 to 3.12, and this is %d.%d: make PYTHON=python3.12 ..." % v)'
	@echo "making the environment .venv"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "on Debian and Ubuntu, venv is in the package python3-venv" >&2; exit 1; }

.venv/demo.stamp: pyproject.toml | .venv/bin/python
	@echo "installing lwc and what it needs (a few minutes the first time)"
	@$(PIP) -e '.[plots$(ZIG)]'
	@touch $@

.venv/docs.stamp: pyproject.toml | .venv/bin/python
	@echo "installing what the site is built with"
	@$(PIP) -e '.[docs]'
	@touch $@

.venv/test.stamp: pyproject.toml | .venv/bin/python
	@echo "installing lwc and what its tests need (a few minutes the first time)"
	@$(PIP) -e '.[dev,test]'
	@$(BIN)/python -m pip check
	@touch $@ .venv/demo.stamp .venv/docs.stamp
