# The commands of this house. `make setup` installs what they need; the others may be run in any order after it.
SHELL := /bin/bash
.DEFAULT_GOAL := help
UV ?= uv
PYTEST_ARGS ?=
CARGO_ARGS ?=

.PHONY: help setup demo test test-rust test-python lint format up soak fuzz bench conformance openapi

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

setup: ## Install what is missing: system packages, uv, the locked environment, the extension in release
	@bash packaging/setup

demo: ## The main job on real input: protect, destroy, mount the moment before, rewind, undo
	@bash packaging/setup packaging demo
	$(UV) run --locked --no-sync python -m demo.run

test: ## All tests: Rust, then Python; one summary at the end
	@bash packaging/setup
	@bash packaging/test "$(CARGO_ARGS)" "$(PYTEST_ARGS)"

lint: ## rustfmt, clippy, ruff and mypy, with warnings denied
	@for part in fmt clippy; do cargo $$part --version >/dev/null 2>&1 \
		|| { echo "make lint: cargo $$part is missing: install it with 'rustup component add rustfmt clippy'" >&2; exit 1; }; done
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	$(UV) run --locked --no-sync ruff check .
	$(UV) run --locked --no-sync ruff format --check .
	$(UV) run --locked --no-sync mypy

format: ## Let the formatters have their way
	cargo fmt --all
	$(UV) run --locked --no-sync ruff check --fix .
	$(UV) run --locked --no-sync ruff format .

up: ## An appliance that stays up, with a sample LUN, and how to attach to it
	@bash packaging/setup packaging
	$(UV) run --locked --no-sync python packaging/up.py

soak: setup ## The long runs: a million operations against the oracle, hundreds of kills
	@bash packaging/soak

fuzz: ## Fuzz PDUs, logins, sessions, commands and NBD for FUZZ_SECONDS each (default 60); wants cargo-fuzz and nightly Rust
	@bash packaging/fuzz

bench: ## Measure against tgt, qemu-storage-daemon, nbdkit and a loopback ceiling; writes docs/benchmarks.md
	@bash packaging/setup packaging bench
	$(UV) run --locked --no-sync python -m bench.run

conformance: setup ## libiscsi's suites against Playhead and tgtd; writes docs/conformance.md
	$(UV) run --locked --no-sync python -m tests.conformance.table

openapi: ## Write docs/openapi.json anew
	$(UV) run --locked --no-sync python -m playhead.api > docs/openapi.json
