# Each target does all of its own set-up: `make demo` and `make test` run on a fresh machine.

PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/scenes

.PHONY: demo test lint clean

demo: .venv/run
	$(BIN)/python train.py --config=configs/scenes.py --workdir=$(RUN)
	$(BIN)/python sample.py --checkpoint=$(RUN) --num_samples=8 --out=$(RUN)/demo --overwrite
	$(BIN)/python -m diffusion_jax.evaluate --checkpoint=$(RUN)
	@echo "The picture: $(RUN)/demo/grid.png"

test: .venv/dev
	$(BIN)/python -m pytest

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/ty check

clean:
	rm -rf .venv

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/run: .venv/bin/python requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

.venv/dev: .venv/run pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@
