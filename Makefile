# `make demo` and `make test` are all a newcomer needs. Every target first calls cluster/setup.sh, which makes .venv
# once and otherwise ends in milliseconds.

PYTHON := .venv/bin/python
# Where the real data stand: pairs/, pretrain/ and benchmarks/ (demo-real and compare-real).
DATA ?= ../shared/data

# Nothing here may ask a model hub, and Ray 2.60 would otherwise turn token authentication on by itself.
export HF_HUB_OFFLINE := 1
export RAY_AUTH_MODE := disabled
export RAY_ENABLE_UV_RUN_RUNTIME_ENV := 0
export RAY_USAGE_STATS_ENABLED := 0
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup demo demo-real compare-real test test-unit test-network chaos-micro lint lock versions wheel
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1|/' | column -t -s '|'

setup:
	@cluster/setup.sh

demo: setup ## run the whole recipe on the embedded sample (WORKSPACE=folder)
	$(PYTHON) jobs/recipe.py --config jobs/configs/sample/recipe.yaml $(if $(WORKSPACE),--workspace $(WORKSPACE))

# Two processes, a file on one of them. The tests that start clusters of their own took 934 s one by one, with 0.6 of
# two cores at work, and 737 s so.
PYTEST = $(PYTHON) -m pytest -n 2 --dist loadfile

test: test-unit ## all tests that need neither network nor GPU
	$(PYTEST) tests/integration tests/e2e

test-unit: setup ## the unit tests: no Ray, no network
	$(PYTEST) tests/unit

test-network: setup ## resolve both package sets against the registry
	$(PYTHON) -m pytest tests/network

lint: setup ## ruff over everything
	$(PYTHON) -m ruff check

demo-real: setup ## the recipe on real Chinese text (DATA=folder, WORKSPACE=folder)
	DATA=$(DATA) $(PYTHON) jobs/recipe.py --config jobs/configs/real/recipe.yaml $(if $(WORKSPACE),--workspace $(WORKSPACE))

compare-real: setup ## the same training by FlagEmbedding's own trainer, beside ours
	DATA=$(DATA) $(PYTHON) tests/benchmarks/compare_real.py $(if $(WORKSPACE),--workspace $(WORKSPACE))

chaos-micro: setup ## kill -9 at five moments, rerun, compare
	$(PYTHON) tests/e2e/chaos.py

# uv keeps the versions that the files already hold, so only what pyproject.toml asks for moves. UPGRADE=1 moves all.
# The CPU set is resolved under the GPU set's versions: what both hold is the same. Python 3.11's answer serves 3.12
# too (tests/network shows it). cpu-override.txt: vLLM's CPU rebuild names a build of torch that the registry lacks.
UV_COMPILE = $(PYTHON) -m uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
	--custom-compile-command 'make lock' $(if $(UPGRADE),--upgrade) pyproject.toml --extra dev

lock: setup ## write cluster/requirements/ from pyproject.toml
	$(UV_COMPILE) --extra gpu -o cluster/requirements/gpu.txt
	$(UV_COMPILE) --extra cpu-llm -c cluster/requirements/gpu.txt \
		--excludes cluster/requirements/cpu-without.txt --overrides cluster/requirements/cpu-override.txt \
		-o cluster/requirements/cpu.txt

versions: setup ## record the stages' code (after raising the version, or with SAME_OUTPUT=1)
	$(PYTHON) tests/record_stage_versions.py $(if $(SAME_OUTPUT),--same-output)

wheel: setup ## build the installable package into dist/
	$(PYTHON) -m uv build --wheel --quiet
