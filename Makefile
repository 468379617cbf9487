# `make` alone lists the targets. MODEL, TO, OUT, REPO and ARGS are handed to the command `bit`.
PYTHON ?= python3
MODEL ?= Synthetic-R50x1
TO ?= transformers
OUT ?=
REPO ?=
ARGS ?=
# Handed on through the environment, so that names may hold spaces and quotes.
export MODEL TO OUT REPO

VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# What is installed: nothing but the command's own dependencies, or all that tests and models need.
CORE := $(VENV)/.core-installed
DEV := $(VENV)/.dev-installed

.DEFAULT_GOAL := help
.PHONY: help setup convert verify push list record inspect test test-all faults bench bench-convert bench-model bench-verify lint clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 20
	@echo "  MODEL=$$MODEL  TO=$$TO  OUT=$${OUT:-converted/MODEL/TO}  REPO=owner/name  ARGS=options of bit"

setup: $(DEV) ## install every framework and tool into .venv (about 8 GB)

convert: $(CORE) ## convert MODEL to the layout TO, in the folder OUT, and verify it (ARGS=--force replaces)
	@$(VENV)/bin/bit convert "$$MODEL" --to "$$TO" $${OUT:+--out "$$OUT"} $(ARGS)

verify: $(CORE) ## verify the conversion of MODEL to TO, or the folder OUT, again
	@$(VENV)/bin/bit verify "$${OUT:-$$MODEL}" --to "$$TO" $(ARGS)

push: $(CORE) ## push that folder to REPO on the Hugging Face Hub (ARGS=--dry-run only says what)
	@$(VENV)/bin/bit push "$${OUT:-$$MODEL}" "$$REPO" --to "$$TO" $(ARGS)

list: $(CORE) ## list the checkpoints that Google published (ARGS=R50x1, ARGS="--task dtd")
	@$(VENV)/bin/bit list $(ARGS)

record: $(CORE) ## record what MODEL computes, to hold its conversions to
	@$(VENV)/bin/bit record "$$MODEL" $(ARGS)

inspect: $(CORE) ## say what MODEL is
	@$(VENV)/bin/bit inspect "$$MODEL" $(ARGS)

test: $(DEV) ## the tests, in minutes
	$(VENV)/bin/python -m pytest -m "not long" $(ARGS)

test-all: $(DEV) ## the tests that take gigabytes, too; one needs the package chromium
	$(VENV)/bin/python -m pytest $(ARGS)

faults: $(DEV) ## plant 26 faults into conversions, and print what is found beside allclose(atol=1e-3)
	PYTHONPATH=tests $(VENV)/bin/python -m support.planted

bench: bench-convert bench-model bench-verify ## all of the next

bench-convert: $(DEV) ## converting: time and memory against cp + sync + sha256 and other ways to convert
	$(VENV)/bin/python tests/benchmarks/bench_convert.py $(ARGS)

bench-model: $(DEV) ## running: bit against timm, transformers and others
	$(VENV)/bin/python tests/benchmarks/bench_model.py $(ARGS)

bench-verify: $(DEV) ## verifying: time and memory of the command and of every reference's process
	$(VENV)/bin/python tests/benchmarks/bench_verify.py $(ARGS)

lint: $(DEV) ## ruff and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean: ## remove .venv and what tools cached; checkpoints and conversions stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing the core dependencies into $(VENV) …"
	@$(PIP) --editable .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing every framework and tool into $(VENV), about 8 GB …"
	@$(PIP) --editable '.[dev]'
	@touch $(CORE) $@
