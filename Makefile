# `make` alone lists what there is. Only a C compiler, libpq and Rust are needed to run; scripts/bootstrap brings them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
export PATH := $(PATH):$(HOME)/.cargo/bin

.PHONY: help run test timing bench bench-services instructions fmt lint footprint

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

run: ## install what is missing, build, and serve with everything embedded (v1 on 8001, v2 on 8002)
	scripts/bootstrap --run
	cargo run --release -- serve

test: ## everything a change has to pass: format, lints, all tests, memory of the release build
	scripts/bootstrap
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo test --no-run
	# The release build takes what the tests, which wait a lot, leave of the processors.
	@set -m; nice -n 19 cargo build --release --quiet & build=$$!; set +m; \
	trap 'kill -- "-$$build" 2>/dev/null' EXIT; \
	cargo test && echo 'the release build, which went on meanwhile' && wait "$$build"
	scripts/footprint

timing: ## whether answers can be told apart by time: the abuse list's timing cases on a release build
	scripts/bootstrap
	cargo test --release --test abuse -- --ignored --nocapture --test-threads=1 timing

bench: ## both engines under load, side by side, with a report; ARGS="--quick", "--full", "--help" …
	scripts/bootstrap --bench
	cargo bench --bench engines -- $(ARGS)

bench-services: ## what the services cost by themselves
	scripts/bootstrap --bench
	cargo bench --bench services

instructions: ## instructions of a request (callgrind), which no other load changes
	scripts/bootstrap --bench
	cargo build --release
	scripts/instructions

fmt: ## format the source
	cargo fmt

lint: ## format and lints without the tests
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings

footprint: ## memory at rest and time from start to ready of the release build
	scripts/bootstrap --run
	cargo build --release
	scripts/footprint
