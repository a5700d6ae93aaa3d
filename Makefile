# make demo: the main job on a small real default · make test: the fast tests · make test-all: the slow tier too, and the floors of coverage
# make coverage: the fast tests with the floors
# make test-matrix: the fast tests under other threads, instruction sets, orders and torch: over an hour, resumable
# make check: lint, types, layers, sizes · make bench: the figures of docs/results · make bench-sensitivity: hours, resumable
# make results: all figures that are older than the code, then the pages that show them: hours, resumable; ONLY=spine.json for some
# make docs: the documentation as a site in build/site
# PYTHON=python3.12 picks the interpreter, VENV=path another environment.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.ready
# Two processes of one thread each: most tests wait for Python, and idle threads that spin would take each other's cores.
PYTEST := OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(RUN) -m pytest -n 2 --dist loadfile

# Branches tried, in percent: of the whole package, and of plain arithmetic and text, which has no excuse for an untried one.
FLOORS = $(RUN) -m coverage report --format=total --fail-under=94 && $(RUN) -m coverage report --fail-under=95 --include='$(PLAIN)'
PLAIN = quantkit/core/*.py,quantkit/allocation/*.py,quantkit/allocation/search/*.py,$(SETTINGS)
SETTINGS = quantkit/settings/arguments.py,quantkit/settings/kinds.py,quantkit/settings/bounds.py,quantkit/settings/config.py,quantkit/settings/options.py,quantkit/settings/recipe.py

.PHONY: demo test coverage test-all test-matrix browser check bench bench-sensitivity results docs

demo: $(STAMP)
	$(RUN) -m quantkit demo

test: $(STAMP)
	$(PYTEST) -m "not slow"

# The same with the branches counted, which takes a third longer: the floors are held, and kept in docs/results/claims.json.
coverage: $(STAMP)
	$(PYTEST) -m "not slow" --cov --cov-report=
	$(FLOORS)
	$(RUN) tools/claims.py --write

test-all: $(STAMP) browser
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[refine]'
	$(PYTEST) --cov --cov-report=
	$(FLOORS)

test-matrix: $(STAMP)
	$(RUN) tools/run_matrix.py

# What the page of `quantkit report` is tried in. Where it cannot be had, those tests are skipped and say so.
browser: $(STAMP)
	@command -v chromium >/dev/null || { apt-get update && apt-get install -y --no-install-recommends chromium; } >/dev/null 2>&1 \
		|| $(RUN) -m playwright install chromium >/dev/null 2>&1 || echo "no Chromium: the tests of the page in a browser are skipped"

check: $(STAMP)
	$(RUN) tools/check.py

bench: $(STAMP)
	$(RUN) tools/bench.py
	$(RUN) tools/bench_targets.py

bench-sensitivity: $(STAMP)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(RUN) tools/bench_sensitivity.py
	$(RUN) tools/bench_costs.py
	$(RUN) tools/sensitivity_page.py

results: $(STAMP)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[test,bench]'
	$(RUN) tools/results.py $(if $(ONLY),--only $(ONLY))

docs: $(STAMP)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(RUN) -m mkdocs build --strict

# One pip call, so that torch and torchvision are solved together and match.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -e '.[test]' torch torchvision
	touch $@
