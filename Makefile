PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: setup demo test lint kaggle bench gpu torture clean

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	touch $@

demo: setup
	$(PY) -m sartorius_infer --images samples --out out/submission.csv --overlays out/overlays
	$(PY) -m sartorius_infer check --submission out/submission.csv --images samples

test: setup
	$(PY) -m pytest -n logical --maxprocesses 4 --dist worksteal -m "slow or not slow"

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

kaggle: setup
	$(PY) -m kernel.simulate

bench: setup
	$(PY) -m benchmarks --json out/bench.json

gpu: setup
	$(PY) -m benchmarks.gpu --out out/gpu.md

TORTURE_SECONDS ?= 3000
TORTURE_SEED ?= 0

torture: setup
	$(PY) -m torture --bombs
	$(PY) -m torture --disturb --seed $(TORTURE_SEED)
	$(PY) -m torture --kills 100 --seed $(TORTURE_SEED)
	$(PY) -m torture --seconds $(TORTURE_SECONDS) --seed $(TORTURE_SEED)

clean:
	rm -rf out dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
