# make demo: the main job on a small real default · make test: the fast tests · make test-all: the slow tier too
# make check: lint, types, floors, sizes · make bench: the figures of docs/results
# PYTHON=python3.12 picks the interpreter, VENV=path another environment.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.ready

.PHONY: demo test test-all check bench

demo: $(STAMP)
	$(RUN) -m quantkit demo

test: $(STAMP)
	$(RUN) -m pytest -m "not slow" --cov

test-all: $(STAMP)
	$(RUN) -m pytest --cov

check: $(STAMP)
	$(RUN) tools/check.py

bench: $(STAMP)
	$(RUN) tools/bench.py

# One pip call, so that torch and torchvision are solved together and match.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[test]' torch torchvision
	touch $@
