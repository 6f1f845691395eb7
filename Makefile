# make demo    see it work: data, two trainings, translation, evaluation, one page (no GPU, minutes)
# make test    format, lint, types and the whole suite, as CI runs them
# make lowest  the suite again, on the oldest packages that are allowed, Python 3.11 or 3.12 (in CI too)
# make newest  the browser and viewer tests on the newest Python that is installed (in CI too)
# make check   format, lint and types only        make bench   the NC layer on the CPU
# make setup   the virtual environment only       make format  put the code in order
# make gpu     everything that waits for an NVIDIA GPU: its tests, steps and the layer, in 9 minutes, without a network
# make figures the size of the code against its limits
# make goldens BASE=COMMIT   whether the code computes the same bits as that commit
# make old-new BASE=COMMIT   what it costs against that commit

PYTHON ?= python3
VENV := .venv
LOWEST := .venv-lowest
NEWEST := .venv-newest
RUN := $(VENV)/bin/python

.PHONY: setup setup-dev demo test check suite lowest newest bench gpu figures goldens old-new format clean

setup: $(VENV)/.ready
setup-dev: $(VENV)/.ready-dev

# Python 3.11 gets a visdom that is built from source with an old setuptools: hence the constraint, which pip knows
# from 25.3 on.
$(VENV)/.ready: requirements.txt build-constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.3"
	$(RUN) -m pip install --quiet --build-constraint build-constraints.txt -r requirements.txt
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt requirements-export.txt
	$(RUN) -m pip install --quiet --build-constraint build-constraints.txt -r requirements-dev.txt
	touch $@

demo: setup
	$(RUN) -m tools.demo

test: check suite

check: setup-dev
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

suite: setup-dev
	$(RUN) -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

lowest: $(LOWEST)/.ready
	$(LOWEST)/bin/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

$(LOWEST)/.ready: requirements.txt requirements-dev.txt requirements-export.txt build-constraints.txt
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.3"
	sed -E 's/^([a-z-]+)>=([0-9.]+),<[^ ]*/\1==\2.*/' requirements.txt requirements-export.txt \
		> $(LOWEST)/oldest.txt
	$(LOWEST)/bin/python -m pip install --quiet --build-constraint build-constraints.txt \
		-r $(LOWEST)/oldest.txt -r requirements-dev.txt
	touch $@

# On PATH or kept by pyenv, whose shims answer to the name of a Python that is not there; hence `-c ""`.
NEWEST_PYTHON = $(firstword $(shell \
	for version in 3.14 3.13 3.12; do \
		for python in python$$version "$$(pyenv root 2>/dev/null)"/versions/$$version.*/bin/python; do \
			"$$python" -c "" 2>/dev/null && echo "$$python"; \
		done; \
	done))

newest: $(NEWEST)/.ready
	$(NEWEST)/bin/python -m pytest -n auto --dist worksteal tests/test_visdom*.py tests/test_page*.py \
		tests/test_viewers*.py $(PYTEST_ARGS)

$(NEWEST)/.ready: requirements.txt requirements-dev.txt requirements-export.txt build-constraints.txt
	$(or $(NEWEST_PYTHON),$(PYTHON)) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "pip>=25.3"
	$(NEWEST)/bin/python -m pip install --quiet --no-compile --build-constraint build-constraints.txt \
		-r requirements-dev.txt
	touch $@

bench: setup
	$(RUN) benchmarks/nc_layer.py

gpu:
	$(if $(wildcard $(RUN)),$(RUN),$(PYTHON)) -m benchmarks.gpu $(GPU_ARGS)

figures: setup
	$(RUN) -m benchmarks.figures

goldens: setup
	$(RUN) -m benchmarks.goldens --base $(BASE)

old-new: setup
	$(RUN) -m benchmarks.old_new --base $(BASE)

format: setup-dev
	$(RUN) -m ruff format .
	$(RUN) -m ruff check --fix .

clean:
	rm -rf $(VENV) $(LOWEST) $(NEWEST) demo results artefacts .mypy_cache .pytest_cache .ruff_cache
