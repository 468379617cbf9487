# `make` alone lists the targets. MODEL, TO, OUT, REPO, DATA and ARGS are handed to the command `bit`.
PYTHON ?= python3
MODEL ?= Synthetic-R50x1
TO ?= transformers
OUT ?=
REPO ?=
DATA ?= digits
ARGS ?=
# Handed on through the environment, so that names may hold spaces and quotes.
export MODEL TO OUT REPO DATA

# A comma, which separates the arguments of make's functions.
, := ,
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt
# Two files of tests at a time, or as many as there are cores; each framework runs with one thread.
# They start hundreds of Python processes, which need not compile again what they import.
PYTEST := PYTHONDONTWRITEBYTECODE= $(VENV)/bin/python -m pytest --numprocesses auto --dist worksteal
# What is installed: nothing but the command's own dependencies, or all that tests and models need.
CORE := $(VENV)/.core-installed
DEV := $(VENV)/.dev-installed

.DEFAULT_GOAL := help
.PHONY: help setup convert verify push list record finetune evaluate inspect test test-all faults mutants fuzz \
	bench bench-convert bench-model bench-verify lint clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22
	@echo "  MODEL=$$MODEL  TO=$$TO  OUT=$${OUT:-converted/MODEL/TO}  REPO=owner/name  DATA=$$DATA  ARGS=options of bit"

setup: $(DEV) ## install every framework and tool into .venv (about 8 GB)

convert: $(CORE) ## convert MODEL to the layout TO, in the folder OUT, and verify it (ARGS=--force replaces)
	@$(VENV)/bin/bit convert "$$MODEL" --to "$$TO" $${OUT:+--out "$$OUT"} $(ARGS)

verify: $(CORE) ## verify the conversion of MODEL to TO, or the folder OUT, again
	@$(VENV)/bin/bit verify "$${OUT:-$$MODEL}" --to "$$TO" $(ARGS)

push: $(CORE) ## push that folder to REPO on the Hugging Face Hub (ARGS=--dry-run sends nothing)
	@$(VENV)/bin/bit push "$${OUT:-$$MODEL}" "$$REPO" --to "$$TO" $(ARGS)

list: $(CORE) ## list the checkpoints that Google published (ARGS=R50x1, ARGS="--task dtd")
	@$(VENV)/bin/bit list $(ARGS)

record: $(CORE) ## record the outputs of MODEL, so that conversions can be compared with them
	@$(VENV)/bin/bit record "$$MODEL" $(ARGS)

finetune: $(DEV) ## fine-tune MODEL on the images DATA by BiT-HyperRule; without them, seeded weights learn digits
	@$(VENV)/bin/bit finetune $(if $(filter file,$(origin MODEL)),,"$$MODEL") --data "$$DATA" $${OUT:+--out "$$OUT"} $(ARGS)

evaluate: $(DEV) ## measure MODEL, one or several checkpoints, on DATA; without MODEL, what finetune made
	@$(VENV)/bin/bit evaluate $(if $(filter file,$(origin MODEL)),finetuned/Synthetic-R14x1-digits,$$MODEL) \
		--data "$$DATA" $(ARGS)

inspect: $(CORE) ## show the layout, network and weights of MODEL
	@$(VENV)/bin/bit inspect "$$MODEL" $(ARGS)

test: $(DEV) ## run the tests, in minutes
	$(PYTEST) -m "not long" $(ARGS)

test-all: $(DEV) ## run the tests that take gigabytes or minutes, too; one needs the package chromium
	$(PYTEST) $(ARGS)

faults: $(DEV) ## plant 26 faults into conversions, and print what is found beside allclose(atol=1e-3)
	PYTHONPATH=tests $(VENV)/bin/python -m support.planted

mutants: $(DEV) ## plant 2,000 generated mutants into conversions, and print what kills, locates and names each
	PYTHONPATH=tests $(VENV)/bin/python -m mutants.run $(ARGS)

fuzz: $(DEV) ## fuzz every reader of files (ARGS="--reader npz --seconds 60"), and print what is found
	PYTHONPATH=tests $(VENV)/bin/python -m fuzzing.run $(ARGS)

bench: bench-convert bench-model bench-verify ## run the next three

bench-convert: $(DEV) ## converting: time and memory against cp + sync + sha256 and other ways to convert
	PYTHONPATH=tests $(VENV)/bin/python -m benchmarks.converting $(ARGS)

bench-model: $(DEV) ## running: bit against timm, transformers and others
	PYTHONPATH=tests $(VENV)/bin/python -m benchmarks.running $(ARGS)
	PYTHONPATH=tests $(VENV)/bin/python -m benchmarks.training

bench-verify: $(DEV) ## verifying: time and memory of the command and of the process of every reference
	PYTHONPATH=tests $(VENV)/bin/python -m benchmarks.verifying $(ARGS)

lint: $(DEV) ## run ruff, mypy and import-linter
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

clean: ## remove .venv and what tools cached; checkpoints and conversions stay
	rm -rf $(VENV) build dist .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .hypothesis

# One line for a Python that cannot be used: $(call require,CONDITION,WHAT).
python_is = $(shell $(PYTHON) -c 'import sys; print("yes" if $(1) else "no")' 2>/dev/null)
version = $(or $(shell $(PYTHON) -V 2>/dev/null),not a Python that runs here)
require = $(if $(filter yes,$(call python_is,$(1))),,$(error $(PYTHON) is $(version); $(2)))

$(VENV)/bin/python:
	$(call require,sys.version_info >= (3$(,) 11),Python 3.11 or newer is needed: make PYTHON=python3.12 …)
	@$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing the core dependencies into $(VENV) …"
	@$(PIP) --editable .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(call require,sys.version_info < (3$(,) 14),TensorFlow has no release for Python 3.14: make PYTHON=python3.13 …)
	@echo "installing every framework and tool into $(VENV), about 8 GB …"
	@$(PIP) --editable '.[dev]'
	@touch $(CORE) $@
