# Every task of the project. A fresh machine needs only make, Python 3.11 or newer and a C compiler:
# each target makes what it stands on, first of all a virtual environment.
#
#   make bench [ARGS="pingpong --quick"]     make test [ARGS="-k timers"] [PYTHON=python3.12]
#
# Without PYTHON the environment is .venv; each version asked for by PYTHON has one of its own, as
# the compiled modules have, so versions can take turns without rebuilding.

.PHONY: help bench microbench test test-all recipes soak build lint format debug asan tiny tiny-asan fuzz \
        coverage wheels docs clean distclean
.NOTPARALLEL:
# Hundreds of tests start an interpreter: without bytecode each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE
.DEFAULT_GOAL := help

ifneq ($(strip $(PYTHON)),)
VENV := .venv-$(shell exe=$$(tools/find_python $(PYTHON)) && "$$exe" -c \
          'import sys; print("%d.%d" % sys.version_info[:2])')
ifeq ($(VENV),.venv-)
$(error PYTHON=$(PYTHON) cannot be used)
endif
else
VENV := .venv
endif
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check install --quiet
LINTED := src tests tools examples bench docs setup.py

help:
	@echo "make bench     build, then measure this machine: rabble bench"
	@echo "make test      build, then run the tests"
	@echo "make test-all  the tests on every supported Python found, and on newer ones of Debian"
	@echo "make recipes   the programs of examples/recipes with the real servers, in an environment of their own"
	@echo "make soak      the tests that take minutes"
	@echo "make microbench  the benchmarks of single layers, under bench/"
	@echo "make build     compile what changed, in place"
	@echo "make lint      ruff, mypy, pyright, stubtest, cython-lint"
	@echo "make format    let ruff lay the Python files out"
	@echo "make debug     the tests against a build with checks, asserts and counters"
	@echo "make asan      the tests against a build with address and undefined-behaviour sanitizers"
	@echo "make tiny      the tests against a build whose every capacity is its smallest"
	@echo "make tiny-asan  that build with the sanitizers: ARGS=tests/stress"
	@echo "make fuzz      what strangers may say, on that build: ARGS=\"session --runs 1000000\""
	@echo "make coverage  the tests against a line-trace build; fails under 95 %"
	@echo "make wheels    dist/: the sdist, and a manylinux wheel for each supported Python"
	@echo "make docs      build/site: the documentation as a static site, with the API's reference"
	@echo "make clean     remove what was built; make distclean: the environments too"

$(RUN):
	@exe=$$(tools/find_python $(PYTHON)) && echo "$(VENV): $$exe" && "$$exe" -m venv $(VENV)

# One stamp for each set of extras (`.has-test-lint` holds test and lint). The package itself is
# only registered here; compiling is the work of `build`.
comma := ,
$(VENV)/.has-%: pyproject.toml setup.py | $(RUN)
	@echo "$(VENV): installing what $(subst -, and ,$*) needs"
	@$(PIP) "setuptools>=77"
	@RABBLE_NO_EXTENSIONS=1 $(PIP) --no-build-isolation --editable ".[$(subst -,$(comma),$*)]"
	@touch $@

# Always asks: the build itself knows which sources are newer than what was made of them.
build: $(VENV)/.has-build
	@$(RUN) setup.py --quiet build_ext --inplace

bench: $(VENV)/.has-build-cli build
	$(VENV)/bin/rabble bench $(ARGS)

microbench: $(VENV)/.has-build-test build
	$(RUN) -m pytest bench $(ARGS)

# All tests by two workers, which takes half the time; a selection in one process, as with -s.
test: $(VENV)/.has-build-test build
	$(RUN) -m pytest $(if $(ARGS),$(ARGS),-n 2 --dist worksteal)

# Of the Pythons that the machine's Debian does not have, what depends on the version; where they
# cannot be had that is said, and no failure.
NEWEST := tests/core tests/unit tests/cluster tests/isolated tests/packaging
test-all:
	@set -e; for exe in $$(tools/find_python --all); do \
	    echo "== $$exe"; $(MAKE) --no-print-directory test PYTHON="$$exe"; \
	done; \
	status=0; tools/debian_pythons make || status=$$?; \
	[ $$status -ne 3 ] || exit 0; [ $$status -eq 0 ] || exit $$status; \
	for name in $$(tools/debian_pythons versions); do \
	    echo "== $$name"; tools/debian_pythons run $(MAKE) --no-print-directory test \
	        PYTHON="$$name" ARGS="$(NEWEST)"; \
	done

# These are among all tests, too; there they are skipped where the packages cannot be had.
recipes: $(VENV)/.has-build-test build
	RABBLE_RECIPES=required $(RUN) -m pytest tests/recipes $(ARGS)

soak: $(VENV)/.has-build-test build
	$(RUN) -m pytest -m soak --timeout=3600 -o faulthandler_timeout=0 $(ARGS)

lint: $(VENV)/.has-build-test-lint build
	$(RUN) -m ruff check $(wildcard $(LINTED))
	$(RUN) -m ruff format --check $(wildcard $(LINTED))
	PATH="$(CURDIR)/$(VENV)/bin:$$PATH" cython-lint src
	$(RUN) -m mypy
	$(RUN) tools/check_stubs.py
	$(RUN) tools/check_types.py

format: $(VENV)/.has-build-test-lint
	$(RUN) -m ruff check --fix-only --quiet $(wildcard $(LINTED))
	$(RUN) -m ruff format $(wildcard $(LINTED))

# Each variant lives in a copy of the tree under build/, so none replaces the release build.
debug asan tiny tiny-asan: $(VENV)/.has-build-test
	$(RUN) tools/variant.py $@ $(ARGS)

fuzz: $(VENV)/.has-build-test
	$(RUN) tools/variant.py $@ $(if $(ARGS),$(ARGS),session)

coverage: $(VENV)/.has-build-test-coverage
	$(RUN) tools/variant.py $@ $(ARGS)

wheels: $(VENV)/.has-build-wheels
	$(RUN) tools/build_wheels.py $(ARGS)

# The core is built first: the reference shows its docstrings. Each time from nothing, as Sphinx says
# a warning once and calls the next build of the same pages a success.
docs: $(VENV)/.has-build-docs build
	@rm -rf build/site
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going --fresh-env \
	    --doctree-dir build/doctrees --conf-dir docs . build/site
	@echo "build/site/index.html"

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .benchmarks .coverage*
	find src -name '*.so' -delete -o -name '*.c' -delete
	find src tests tools examples bench -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	rm -rf .venv .venv-* .hypothesis src/*.egg-info
