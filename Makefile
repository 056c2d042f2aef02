# Everything a newcomer needs; each target does its own set-up in .venv. `make help` lists them.

# `make crash-course SHELL=1` asks for a prompt, and not for another shell.
override SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Where this is set, every process of the tests would compile all sources and tests again: 5 s of CPU each.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
DURATION ?= 30
ARGS ?=
NODES ?= 2
CONTROL_PLANE ?= simulated

# How many tests run at once. Many of them wait most of the time, so three keep two CPUs busy.
WORKERS ?= 3
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup
UNIT := not slow and not control_plane and not go and not helm and not image

# The tool that resolves the locked requirements; needed by `make lock` only.
UV_VERSION := 0.13.9

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --custom-compile-command "make lock"

# The optional TLS engine of native/ is built where Rust 1.88 or newer is installed; elsewhere its tests are skipped.
NATIVE := $(shell command -v cargo >/dev/null && rustc --version 2>/dev/null | awk '{split($$2, v, "."); if (v[1] > 1 || v[2] >= 88) print "native"}')

# The container engine, or another one that is installed; all take the same arguments.
ENGINE ?= $(shell for engine in docker podman buildah; do if command -v $$engine; then break; fi; done)
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
SOURCE ?= unknown

.PHONY: help packages venv lock native lint format check test fuzz hook demo control-plane acceptance bench clean
.PHONY: image sbom audit wheels

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-15s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(STAMP): requirements/dev.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"{sys.executable} is Python {sys.version.split()[0]}: 3.11 or newer is needed (make PYTHON=...)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

packages:  ## install what some tests use from Debian, as root; without them those tests are skipped
	packages=$$(sed '/^#/d' tools/debian-packages.txt); \
	dpkg --status $$packages >/dev/null 2>&1 || { apt-get update --quiet=2 && \
		DEBIAN_FRONTEND=noninteractive apt-get install --quiet=2 --yes --no-install-recommends $$packages >/dev/null; }

venv: $(STAMP)  ## the project and what it needs, from locked versions and hashes

lock: $(STAMP)  ## resolve the dependencies again (UPGRADE=--upgrade takes newer versions)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(COMPILE) $(UPGRADE) pyproject.toml --output-file requirements/runtime.txt
	$(COMPILE) $(UPGRADE) pyproject.toml --extra otel --constraint requirements/runtime.txt --output-file requirements/otel.txt
	$(COMPILE) $(UPGRADE) --group build --output-file requirements/build.txt
	$(COMPILE) $(UPGRADE) --group audit --output-file requirements/audit.txt
	$(COMPILE) $(UPGRADE) --group go --output-file requirements/go.txt
	$(COMPILE) $(UPGRADE) --group native --output-file requirements/native.txt
	$(COMPILE) $(UPGRADE) pyproject.toml --extra dev --group build --constraint requirements/runtime.txt --output-file requirements/dev.txt

native: $(STAMP)  ## build typha_rustls from native/, once, and install it (needs Rust and a C compiler)
	wheel=$$(native/build.sh) && { cmp --silent "$$wheel" $(VENV)/.native.whl || { \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --force-reinstall "$$wheel" && cp "$$wheel" $(VENV)/.native.whl; }; }

lint: $(STAMP)  ## format, lint, types, import layers; clippy where it is installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports
	@if [ -n "$(NATIVE)" ] && cargo clippy --version >/dev/null 2>&1; then echo native/build.sh lint; native/build.sh lint; fi

format: $(STAMP)  ## rewrite the sources in the project's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: WORKERS = 4
# Some unit tests wait for timers, so four processes take less time than two on two CPUs.
check: lint  ## what a commit needs, in a minute or two: lint and the unit tests
	$(PYTEST) -m "$(UNIT)" $(ARGS)

test: lint $(NATIVE)  ## lint and every test; builds a control plane the first time, beside the tests that need none
	$(PYTEST) $(ARGS)

fuzz: $(STAMP)  ## changed inputs for every decoder; ARGS="--inputs 10000000 --targets gob,watch" or "--worst-hello 60"
	$(BIN)/python -m tests.fuzz $(ARGS)

hook:  ## let git run `make check` before every commit
	git config core.hooksPath .githooks

demo: $(STAMP)  ## simulated API server, service and 1,000 agents; DURATION=30, KUBECONFIG= for your own cluster (read only)
	$(BIN)/python -m loadtest demo --duration $(DURATION) $(ARGS)

.PHONY: crash-course
crash-course: $(STAMP) $(if $(filter real,$(CONTROL_PLANE)),control-plane)  ## BIRD, policies, IPAM and this service as a network on this machine, as root; NODES=3, SHELL=1 (a prompt), CONTROL_PLANE=real
	mkdir -p build
	$(BIN)/python -m loadtest.crash_course --nodes $(NODES) --report build/crash-course.html \
		--control-plane $(CONTROL_PLANE) \
		$(if $(filter SHELL=1,$(MAKEOVERRIDES)),--shell,$$([[ "$$SHELL" != 1 ]] || echo --shell)) $(ARGS)

.PHONY: crash-course-faults crash-course-latency
crash-course-faults: $(STAMP) $(if $(filter real,$(CONTROL_PLANE)),control-plane)  ## each fault while a stream runs between pods, as root: what is lost, and what heals
	$(BIN)/python -m loadtest.crash_course.faults --control-plane $(CONTROL_PLANE) $(ARGS)

crash-course-latency: $(STAMP) $(if $(filter real,$(CONTROL_PLANE)),control-plane)  ## how soon packets obey a policy, a new pod answers, a route follows its pool; as root
	$(BIN)/python -m loadtest.crash_course.latency --control-plane $(CONTROL_PLANE) $(ARGS)

acceptance: $(STAMP) control-plane  ## the full-size acceptance runs
	$(BIN)/python -m loadtest acceptance $(ARGS)

bench: $(STAMP) $(NATIVE)  ## each number to reach beside a bare loop; ARGS=--quick (5 minutes), --rows a,b, --record (docs/performance.md)
	PYTHONPATH=. $(BIN)/python tools/measure_calico.py
	$(BIN)/python -m loadtest bench $(ARGS)

.PHONY: docs
docs: $(STAMP)  ## the documentation as a site in build/docs; a broken link or an unlisted page fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # not --quiet: it would hide the warnings that strict mode counts
	@echo "build/docs/index.html"

.PHONY: manifests
manifests: $(STAMP)  ## the chart's permissions from the service's kinds, and deploy/manifests from the chart; builds helm the first time
	PYTHONPATH=. $(BIN)/python tools/make_manifests.py "$$(tools/helm/build.sh)/helm"

control-plane: $(STAMP)  ## build kube-apiserver and etcd, once, into ~/.cache/typha-control-plane
	tools/control-plane/build.sh

image:  ## the image typha:VERSION, by docker, podman or buildah (ENGINE=, SOURCE=address of the sources); see tools/image too
	$(if $(ENGINE),,$(error docker, podman or buildah is needed))
	$(ENGINE) build --tag typha:$(VERSION) --build-arg VERSION=$(VERSION) --build-arg SOURCE=$(SOURCE) \
		--build-arg GIT_COMMIT=$$(git rev-parse HEAD) --build-arg BUILD_DATE=$$(git log -1 --format=%cI) \
		--build-arg SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) .

sbom: $(STAMP) $(NATIVE)  ## what the image is made of, as CycloneDX, in build/sbom: Python packages, and crates where Rust is installed
	mkdir -p build/sbom
	$(BIN)/cyclonedx-py requirements --output-reproducible --pyproject pyproject.toml --output-file build/sbom/typha.cdx.json requirements/runtime.txt
	$(if $(NATIVE),$(BIN)/python -c 'import importlib.metadata as m; print([f for f in m.files("typha-rustls") if f.name.endswith(".cyclonedx.json")][0].read_text())' >build/sbom/typha-rustls.cdx.json)

audit: $(STAMP)  ## known vulnerabilities of what is locked, from PyPI's database, and RustSec's if cargo-audit is installed
	test -x build/audit/bin/pip-audit || { $(PYTHON) -m venv build/audit && \
		build/audit/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/audit.txt; }
	build/audit/bin/pip-audit --strict --disable-pip --require-hashes --requirement requirements/runtime.txt
	if command -v cargo-audit >/dev/null; then lock=$$(mktemp) && native/lock.sh restore >$$lock && cargo audit --file $$lock; \
		else echo "cargo-audit is not installed: the crates of native/ have not been looked up"; fi

wheels: $(STAMP)  ## asks PyPI whether each locked dependency has a wheel for each architecture of the image
	$(BIN)/python -P tools/check_wheels.py

clean:  ## remove what was built in this folder (not the control plane's cache)
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
