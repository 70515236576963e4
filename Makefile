# `make` explains itself. Everything runs from .venv, which `setup` makes once.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

VENV := .venv
BIN := $(VENV)/bin
EXTRAS := node,control,sim,dev
C_ROOMS := $(patsubst %/Makefile,%,$(wildcard xcuda-preload/Makefile libs/*/Makefile))
ROOM_TESTS := $(sort $(patsubst %/,%,$(dir $(wildcard libs/*/tests/*.py services/*/tests/*.py xcuda-preload/tests/*.py))))
PYTEST_ARGS ?=
BENCH_ARGS ?=
MATCHING ?= predicted
PREDICTION ?= on
DYNAMIC_SM ?= on
RUN_ARGS ?=

# Prints the first python that is new enough and can make a virtual environment. Running each
# one matters: a name on the PATH may be a shim that leads nowhere.
define FIND_PYTHON
found=; \
for python in python3.13 python3.12 python3.11 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	found=$$python; \
	"$$python" -c 'import ensurepip, venv' 2>/dev/null && { command -v "$$python"; exit 0; }; \
done; \
if [[ -z $$found ]]; then \
	echo 'error: no Python 3.11 or newer on the PATH; install one (Debian 12, Ubuntu 24.04 or newer: apt install python3 python3-venv)' >&2; \
else \
	echo "error: $$found cannot make virtual environments; install its venv module (Debian, Ubuntu: apt install $$found-venv)" >&2; \
fi; \
exit 1
endef

.PHONY: help
help: ## show this list
	@grep -E '^[a-z][a-z-]*:.*## ' $(firstword $(MAKEFILE_LIST)) \
		| sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' \
		| while IFS=$$'\t' read -r target text; do printf '  make %-16s  %s\n' "$$target" "$$text"; done
	@echo
	@echo '  Leave a part out of a run: make run MATCHING=random, PREDICTION=off, DYNAMIC_SM=off'
	@echo '  More for the test runner: make test PYTEST_ARGS="-k lease -x"'

.PHONY: setup
setup: native $(VENV)/.installed ## make .venv with every extra, at the versions of constraints.txt

# Each room's Makefile puts its libraries into the Python package that ships them.
.PHONY: native
native: ## build what is written in C
	@echo '#include <stdio.h>' | $(CC) -fsyntax-only -x c - 2>/dev/null || { \
		echo 'error: "$(CC)" compiles no C; install a compiler (Debian, Ubuntu: apt install gcc libc6-dev), or name one by CC=' >&2; \
		exit 1; \
	}
	@for room in $(C_ROOMS); do $(MAKE) --silent -C "$$room" all; done

$(VENV)/.installed: pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
		python=$$($(FIND_PYTHON)); \
		echo "setup: $(VENV) from $$python ($$("$$python" --version))"; \
		"$$python" -m venv --clear $(VENV); \
	fi
	@echo 'setup: installing muxflow[$(EXTRAS)], which takes a minute the first time'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	@touch $@
	@echo 'setup: done; `. $(BIN)/activate` puts muxflow on the PATH'

# Not in the list: `.ci/run` asks whether this machine's Python will do.
.PHONY: python
python:
	@$(FIND_PYTHON)

.PHONY: run
run: setup ## see the whole system at work, in three minutes: figures in out/run.json, plots in out/run.html
	@$(BIN)/python examples/run --matching $(MATCHING) --prediction $(PREDICTION) --dynamic-sm $(DYNAMIC_SM) $(RUN_ARGS)

.PHONY: test
test: setup ## run the tests, on two workers
	@$(BIN)/pytest -n 2 --dist loadgroup $(PYTEST_ARGS)

.PHONY: soak
soak: setup ## run the long tests, one after the other
	@$(BIN)/pytest -m soak $(PYTEST_ARGS)

# mypy runs once for the packages and tests/, and once for the tests of each room: see pyproject.toml.
.PHONY: lint
lint: setup ## check style, types, import rules, C format and generated schemas
	@echo 'lint: ruff check'; $(BIN)/ruff check --quiet
	@echo 'lint: ruff format'; $(BIN)/ruff format --check
	@echo 'lint: mypy'; $(BIN)/mypy --no-error-summary
	@for tests in $(ROOM_TESTS); do echo "lint: mypy $$tests"; $(BIN)/mypy --no-error-summary "$$tests"; done
	@echo 'lint: import rules'; $(BIN)/lint-imports --no-cache >$(VENV)/imports.log || { cat $(VENV)/imports.log; exit 1; }
	@echo 'lint: C format'; git ls-files -z '*.c' '*.h' | xargs -0 -r $(BIN)/clang-format --dry-run -Werror
	@echo 'lint: schemas'; $(BIN)/python -m muxflow.contracts.export --check

.PHONY: schemas
schemas: setup ## write schemas/ anew from the contracts
	@$(BIN)/python -m muxflow.contracts.export

.PHONY: bench
bench: bench-bus bench-protection bench-speed bench-matching bench-xcuda ## run all benchmarks

.PHONY: bench-bus
bench-bus: setup ## measure the bus
	@$(BIN)/python tests/bench/bench_bus.py

.PHONY: bench-protection
bench-protection: setup ## measure how well a device is protected
	@$(BIN)/python tests/bench/bench_protection.py $(BENCH_ARGS)

.PHONY: bench-speed
bench-speed: setup ## measure how well speeds are predicted; DATA=FILE: on gavel's measured pairs
	@$(BIN)/python tests/bench/bench_speed.py $(DATA) $(BENCH_ARGS)

.PHONY: bench-matching
bench-matching: setup ## measure the matching, up to 100,000 jobs
	@$(BIN)/python tests/bench/bench_matching.py $(BENCH_ARGS)

.PHONY: bench-xcuda
bench-xcuda: setup ## measure what the preload library costs and holds
	@$(BIN)/python tests/bench/bench_xcuda.py $(BENCH_ARGS)

.PHONY: clean
clean: ## remove what the other targets made
	@for room in $(C_ROOMS); do $(MAKE) --silent -C "$$room" clean; done
	@rm -rf $(VENV) dist out .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name .git -prune -o -type d '(' -name __pycache__ -o -name build ')' -prune -exec rm -rf {} +
