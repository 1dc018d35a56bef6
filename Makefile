# The project's commands. Each installs what it needs: a fresh Debian has only git, make and python3.
SHELL   := /bin/bash
VENV    := .venv
PYTHON  := $(VENV)/bin/python
PIP     := $(PYTHON) -m pip --quiet --disable-pip-version-check
STAMP   := $(VENV)/.installed
# Never plain `pynet`: a managed plugin called pynet:latest hides the socket pynet.sock from the
# engine, and `-d pynet` would fail.
PLUGIN  ?= pynet/pynet:latest
SYSTEM  := libnftables1 nftables iptables iproute2 mmdebstrap conntrack procps tcpdump systemd

.PHONY: help venv system test lint test-unit test-packaging test-kernel test-engine fix demo soak bench
.PHONY: install uninstall deb plugin plugin-create plugin-push lock clean
.DEFAULT_GOAL := help
# For packaging/plugin; given on the command line or in the environment.
export BASE PLUGIN_DIR

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

# Two kinds at a time, for the engines' tests wait for Docker most of the time; what one kind says
# stands together.
test: lint system  ## Run everything there is (root)
	@$(MAKE) --jobs=2 --output-sync=target test-engine test-unit test-packaging test-kernel
	@echo 'make test: all passed'

lint: $(STAMP)  ## Check format, lint, types and import contracts
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

fix: $(STAMP)  ## Format, mend what the linter can, write the generated documents anew
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .
	$(PYTHON) -m tests.render_docs

test-unit: $(STAMP)  ## Run the tests that touch nothing; needs no root
	$(PYTHON) -m pytest tests/unit

test-packaging: $(STAMP) system  ## Run the tests of the service and its installation (root)
	$(PYTHON) -m pytest tests/packaging

test-kernel: $(STAMP) system  ## Run the tests that need a kernel (root)
	$(PYTHON) -m pytest tests/kernel

test-engine: $(STAMP) system  ## Run the tests on private Docker Engines (root)
	$(PYTHON) -m tests.engine.rootfs
	$(PYTHON) -m pytest tests/engine

soak: $(STAMP) system  ## Run the long repetitions in full (root)
	$(PYTHON) -m tests.engine.rootfs
	PYNET_SOAK=1 $(PYTHON) -m pytest tests/kernel tests/engine -m soak -s

bench: $(STAMP) system  ## Measure beside the peers; writes bench/results (root, 25 minutes; ONLY=family)
	$(PIP) install --no-build-isolation --config-settings editable_mode=compat --editable '.[bench]'
	$(PYTHON) -m tests.engine.rootfs forky peers
	@$(PYTHON) -m bench $(ONLY)

demo: $(STAMP) system  ## Show the main job on a private engine (root)
	@$(PYTHON) -m tests.engine.demo

install:  ## Install or upgrade the driver as a systemd service of this machine (root)
	@packaging/install

uninstall:  ## Remove that service; its state stays (root)
	@packaging/uninstall

deb:  ## Make a Debian package of it for this release; writes build/deb
	@packaging/deb

plugin:  ## Build the managed plugin into build/plugin, with Docker (BASE=image to build on)
	@packaging/plugin build $(BUILD_FLAGS)

plugin-create:  ## Build the managed plugin, create and enable it in the engine (PLUGIN=name)
	@packaging/plugin create '$(PLUGIN)'

plugin-push:  ## Build the managed plugin and push it to a registry (REF=registry/name:tag)
	@packaging/plugin push '$(REF)'

# Every file of each version is in it, for whatever machine; the index is not.
lock: venv  ## Choose anew, and pin, what the managed plugin is made of
	$(PIP) install uv
	$(VENV)/bin/uv pip compile --quiet --upgrade --python-version 3.15 --python-platform linux \
		--generate-hashes --only-binary :all: --custom-compile-command 'make lock' \
		--excludes packaging/plugin.excludes --output-file packaging/plugin.lock pyproject.toml

clean:  ## Remove what the other commands made in this folder
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
	rm -rf .hypothesis

system:
	@packaging/apt-get $(SYSTEM)

# setuptools first, and no build environment apart: what is installed once needs no network again.
# Compatible means a line on the path in place of a finder, which costs every start 30 ms.
venv: $(STAMP)
$(STAMP): pyproject.toml
	@packaging/apt-get --venv python3-venv
	python3 -m venv $(VENV)
	$(PIP) install 'setuptools>=68'
	$(PIP) install --no-build-isolation --config-settings editable_mode=compat --editable '.[dev]'
	@touch $@
