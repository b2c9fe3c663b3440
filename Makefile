# Two commands do all the set-up: `make demo` and `make test`. Both create .venv and build into it first.
#
# pip's own settings are honoured (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, pip.conf); PYTHON chooses the interpreter.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
FUZZ_SECONDS ?= 600
CPP := $(shell git ls-files 'csrc/*' 'tests/native/*' 'tests/fuzz/*' 2>/dev/null | grep -E '\.(h|cpp|inl|cu|cuh)$$')
BUILT_FROM := pyproject.toml CMakeLists.txt constraints.txt demo/requirements.txt \
  $(shell find csrc -type f) $(shell find python -name __init__.py)

.PHONY: install demo test test-all fuzz lint format bench docs clean
.DEFAULT_GOAL := install

install: $(STAMP)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(STAMP): $(BIN)/python $(BUILT_FROM)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch numpy
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[hf,bench,dev]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps --requirement demo/requirements.txt
	touch $@

demo: install  ## fine-tune a real model, pack, check out, compare; writes demo/report.html
	$(BIN)/python -m demo.run

test: install  ## the quick tests (at most 10 minutes)
	$(BIN)/python -m pytest -q -m 'not slow'

test-all: install  ## every test (at most 60 minutes)
	$(BIN)/python -m pytest -q

fuzz: install  ## fuzz the decoders and readers for FUZZ_SECONDS in all, going on from the last time
	$(BIN)/python -m tests.fuzz.run --seconds $(FUZZ_SECONDS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: install  ## measure everything on a quiet machine; writes bench/results and the README's tables
	$(BIN)/python -m bench.run all
	$(BIN)/python -m bench.readme --write

docs: install  ## write what is generated: the table of operations and the README's tables
	$(BIN)/python -m graftwork.ops.table > docs/operations.md
	$(BIN)/python -m bench.readme --write

clean:
	rm -rf $(VENV) build demo/output demo/report.html
