# `make quickstart` and `make test` need Python >= 3.11, make and a package index, and nothing else.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := 0.13.9
EXTRAS := local,rag,serve,postgres,tools,gepa,excel,cluster
INFERENCE := startup embedding label_scoring generation gpu_generation
TUNING := tuning tuning_prefix head_only

# two processes, each on one thread (threads of several processes wait for each other); each may take 7 GiB
PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: quickstart test test-all models check docs bench bench-tuning lock sbom clean

quickstart: $(VENV)/.local
	$(BIN)/rung climb examples/banking77/task.yaml --budget 3m --resume

test: $(VENV)/.dev models
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.dev models
	$(PYTEST)

# the tests run with the network off
models: $(VENV)/.dev
	$(BIN)/rung models pull embedded
	$(BIN)/rung models pull embedded-encoder

check: $(VENV)/.dev
	$(BIN)/ruff format --check src tests benchmarks docs/site.py
	$(BIN)/ruff check src tests benchmarks docs/site.py
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/vulture

# the site, with every warning an error
docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 HF_HUB_OFFLINE=1 $(BIN)/mkdocs build --quiet --strict

bench: $(VENV)/.dev
	for script in $(INFERENCE:%=benchmarks/%.py); do \
	  $(BIN)/python $$script || { code=$$?; [ $$code -eq 3 ] || exit $$code; }; done  # 3: the device is not there

bench-tuning: $(VENV)/.dev
	for script in $(TUNING:%=benchmarks/%.py); do $(BIN)/python $$script || exit; done

$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit("Rung needs Python 3.11 or newer; set PYTHON=...") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet 'uv==$(UV)'

# the hashes of constraints.txt, for every platform; torch and torchvision come from another index where UV_TORCH_BACKEND
# is set, with other files of the same version, so they have none
lock: | $(BIN)/uv
	grep -v '^torch' constraints.txt | $(BIN)/uv pip compile --quiet --no-deps --generate-hashes --universal --no-annotate \
	  --python-version 3.11.5 --custom-compile-command 'make lock' - -o constraints.lock
	grep '^torch' constraints.txt >> constraints.lock

# the bill of materials of a release: what `rung` with all extras for users installs, with versions and licences
sbom: | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python build/release
	$(BIN)/uv pip install --quiet --python build/release/bin/python -c constraints.lock '.[$(EXTRAS)]'
	mkdir -p dist
	$(BIN)/uv tool run --quiet --from 'cyclonedx-bom==7.5.0' cyclonedx-py environment --pyproject pyproject.toml \
	  --output-reproducible -o dist/rung.cdx.json build/release/bin/python

$(VENV)/.local: pyproject.toml constraints.lock | $(BIN)/uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.lock -e '.[local,serve]'
	touch $@

$(VENV)/.dev: pyproject.toml constraints.lock | $(BIN)/uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.lock -e '.[$(EXTRAS),docs,dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist site
