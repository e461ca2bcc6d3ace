# make publish | make test | make lint | make types | make wheel-test | make bench
PYTHON ?= python3
CONSTRAINTS = .ci/constraints.txt
LMMS_EVAL = .ci/lmms-eval.txt
INSTALL = .venv/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

BUNDLED = tests/assets/shapes-moe-vl
MODEL ?= $(BUNDLED)
# The bundled model goes to a folder and is asked the questions that come with it; others go where publish sends them.
ifeq ($(MODEL),$(BUNDLED))
TO ?= ./published/shapes-moe-vl-MoPEQ
QUESTIONS ?= $(BUNDLED)/eval.jsonl
endif

# make bench SECTIONS="kernels quantize" OPTIONS="--turns 5"; every section where none is named.
SECTIONS ?=

.PHONY: publish test lint types wheel-test bench clean

publish: .venv/.publish
	.venv/bin/mopeq-hub publish $(MODEL) $(if $(TO),--to $(TO)) $(if $(QUESTIONS),--questions $(QUESTIONS)) $(OPTIONS)

test: .venv/.develop
	.venv/bin/python -m pytest

lint: .venv/.develop
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.ci/lint-workflows

types: .venv/.develop
	.venv/bin/mypy

wheel-test: .venv/.develop
	.ci/wheel-test

bench: .venv/.develop
	.venv/bin/python -m tests.bench $(SECTIONS) $(OPTIONS)

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.publish: .venv/bin/python pyproject.toml $(CONSTRAINTS)
	$(INSTALL) --editable .
	touch $@

.venv/.develop: .venv/bin/python pyproject.toml $(CONSTRAINTS) $(LMMS_EVAL)
	$(INSTALL) --editable '.[dev]'
	$(INSTALL) --no-deps --requirement $(LMMS_EVAL)
	touch .venv/.publish $@

clean:
	rm -rf .venv published build dist
