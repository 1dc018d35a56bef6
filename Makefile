# The project's commands. Each installs what it needs: a fresh Debian has only git, make and python3.
SHELL   := /bin/bash
VENV    := .venv
PYTHON  := $(VENV)/bin/python
STAMP   := $(VENV)/.installed
APT     := libnftables1 nftables iptables iproute2 python3-venv
TEST    := mmdebstrap conntrack tcpdump

.PHONY: help venv test test-unit test-kernel test-engine lint fix demo soak install clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

test: lint test-unit test-kernel test-engine  ## Run everything: lint, types, contracts, all tests (root)

lint: $(STAMP)  ## Check format, lint, types and import contracts
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

fix: $(STAMP)  ## Format, and mend what the linter can
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

test-unit: $(STAMP)  ## Run the tests that need no root
	$(PYTHON) -m pytest tests/unit

test-kernel: $(STAMP) system  ## Run the tests that need a kernel (root)
	$(PYTHON) -m pytest tests/kernel

test-engine: $(STAMP) system  ## Run the tests on private Docker Engines (root)
	$(PYTHON) -m tests.engine.rootfs
	$(PYTHON) -m pytest tests/engine

soak: $(STAMP) system  ## Run the long repetitions in full (root)
	$(PYTHON) -m tests.engine.rootfs
	PYNET_SOAK=1 $(PYTHON) -m pytest tests/engine -m soak -s

demo: $(STAMP) system  ## Show the main job on a private engine (root)
	$(PYTHON) -m tests.engine.rootfs forky
	$(PYTHON) -m tests.engine.demo

install:  ## Install the driver as a systemd service of this machine (root)
	packaging/install

clean:  ## Remove what the other commands made in this folder
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache

.PHONY: system
system:
	@packaging/apt-get $(APT) $(TEST)

venv: $(STAMP)
$(STAMP): pyproject.toml
	@packaging/apt-get --venv python3-venv
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
