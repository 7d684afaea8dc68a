# pgpool_proxy: make demo | test | lint | bench | compile | clean. Everything that is made lies under build/.
#
#   make test PYTHON=python3.12          with another Python
#   make test ARGS='-k framing -x'       only some tests (pytest's arguments)
#   make test KINDS=plain                only one of the two builds
#   make bench ARGS='--only simple'      only some workloads

PYTHON ?= python3
ARGS ?=
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: all demo test lint bench compile clean check-python check-compiler help

# One test more at a time than there are cores: most of them wait for something.
JOBS ?= $(shell echo $$(($$(nproc 2>/dev/null || echo 1) + 1)))
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
OUT := build/py$(VERSION)
SOURCES := pyproject.toml setup.py $(shell find pgpool_proxy -name '*.py' 2>/dev/null)
PIP := -m pip --disable-pip-version-check --quiet
HAS_COMPILER := $(shell $(PYTHON) -c 'import os, shlex, shutil, sysconfig; \
	cc = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]; \
	print("yes" if shutil.which(cc) and os.path.exists(sysconfig.get_path("include") + "/Python.h") else "")' 2>/dev/null)
# What setup.py is told for each build. The demo takes what it can get.
PURE_compiled := 0
PURE_plain := 1
PURE_demo :=
EXTRAS_compiled := test
EXTRAS_plain := test,lint
EXTRAS_demo := demo
KINDS ?= $(if $(HAS_COMPILER),compiled )plain

help:
	@sed -n '/^#/s/^# \{0,1\}//p;/^$$/q' Makefile

# --- what is needed first --------------------------------------------------------------------------------------------

check-python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not there: install Python 3.11 or newer, or say make PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is $$($(PYTHON) -V 2>&1): pgpool_proxy needs Python 3.11 or newer. If you have one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) has no venv module (Debian: apt-get install python3-venv)" >&2; exit 1; }

check-compiler: check-python
ifeq ($(HAS_COMPILER),)
	@echo >&2
	@echo "*** There is no C compiler, or Python's header files are missing (Debian: apt-get install gcc python3-dev)." >&2
	@echo "*** Only the plain build is tested, and only it can be installed here." >&2
	@echo >&2
	@if [ "$${CI:-}" = true ]; then echo "CI tests both builds: failing." >&2; exit 1; fi
endif

# --- both builds, each in its own venv -------------------------------------------------------------------------------

# A wheel is built from a copy, so that neither old files of build/ nor modules compiled in place get into it, and by the pip
# of the venv: a Python may have none of its own (Debian's).
$(OUT)/%/wheel.stamp: $(SOURCES) | $(OUT)/%/venv.stamp
	@echo "building the $* wheel for Python $(VERSION)$(if $(filter plain,$*),, (compiling takes some minutes))"
	@rm -rf $(OUT)/$*/src $(OUT)/$*/wheel
	@mkdir -p $(OUT)/$*/src
	@tar -cf - --exclude=__pycache__ --exclude='*.so' --exclude='*.egg-info' pyproject.toml setup.py $(wildcard README.md) pgpool_proxy \
		| tar -xf - -C $(OUT)/$*/src
	@PGPOOL_PROXY_PURE=$(PURE_$*) $(OUT)/$*/venv/bin/python $(PIP) wheel --no-deps --wheel-dir $(OUT)/$*/wheel $(OUT)/$*/src
	@touch $@

$(OUT)/%/venv.stamp: pyproject.toml | check-python
	@echo "setting up the $* venv for Python $(VERSION)"
	@rm -rf $(OUT)/$*/venv $(OUT)/$*/installed.stamp
	@$(PYTHON) -m venv $(OUT)/$*/venv
	@touch $@

$(OUT)/%/installed.stamp: $(OUT)/%/wheel.stamp $(OUT)/%/venv.stamp
	@echo "installing the $* wheel and what it needs"
	@$(OUT)/$*/venv/bin/python $(PIP) install "$$(echo $(OUT)/$*/wheel/*.whl)[$(EXTRAS_$*)]"
	@$(OUT)/$*/venv/bin/python $(PIP) install --no-deps --force-reinstall $(OUT)/$*/wheel/*.whl
	@touch $@

.SECONDARY:

# --- what to run -----------------------------------------------------------------------------------------------------

# Each build runs the whole suite; the closing lines of all of them are shown even when one fails. While one core compiles,
# another sets up the plain build and checks the sources.
INSTALLED := $(sort $(KINDS:%=$(OUT)/%/installed.stamp) $(OUT)/plain/installed.stamp)
test: check-compiler
	@failed=; \
	$(MAKE) --no-print-directory -j2 -k $(INSTALLED) lint || failed="$$failed lint"; \
	$(MAKE) --no-print-directory $(INSTALLED); \
	for kind in $(KINDS); do \
		echo; echo "testing the $$kind build on Python $(VERSION)"; \
		TESTED_BUILD=$$kind $(OUT)/$$kind/venv/bin/pytest -n $(JOBS) $(ARGS) || failed="$$failed $$kind"; \
	done; \
	if [ -n "$$failed" ]; then echo "FAILED:$$failed" >&2; exit 1; fi

lint: $(OUT)/plain/installed.stamp
	@echo "mypy --strict, ruff, import-linter"
	@failed=; bin=$(OUT)/plain/venv/bin; \
	$$bin/mypy --strict --cache-dir $(OUT)/mypy_cache pgpool_proxy || failed="$$failed mypy"; \
	$$bin/ruff check --cache-dir $(OUT)/ruff_cache . || failed="$$failed ruff"; \
	$$bin/lint-imports --cache-dir $(OUT)/import_linter_cache || failed="$$failed import-linter"; \
	if [ -n "$$failed" ]; then echo "lint: $$failed" >&2; exit 1; fi

demo: check-python $(OUT)/demo/installed.stamp
	@exec $(OUT)/demo/venv/bin/pgpool-proxy demo $(ARGS)

# The bench runs on the compiled build where there is a compiler.
bench: check-compiler $(OUT)/$(firstword $(KINDS))/installed.stamp
	@$(OUT)/$(firstword $(KINDS))/venv/bin/python $(PIP) install 'matplotlib>=3.9'
	@$(OUT)/$(firstword $(KINDS))/venv/bin/python bench/compare.py $(ARGS)

# In place, for working on HOT code: the .so files stand beside the sources; `make clean` takes them away.
compile: $(OUT)/plain/installed.stamp
	@PGPOOL_PROXY_PURE=0 $(OUT)/plain/venv/bin/python setup.py --quiet build_ext --inplace --build-temp $(OUT)/inplace

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find pgpool_proxy tests bench -name __pycache__ -type d -prune -exec rm -rf {} +
	find pgpool_proxy -name '*.so' -delete
	rm -f pgpool_proxy__mypyc*.so
