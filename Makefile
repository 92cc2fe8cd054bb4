# Ursa: build, demo, test, chaos, lint. `make help` lists the targets.
#
# One profile for build, demo and tests, so that nothing is built twice.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
export PATH := $(PATH):$(HOME)/.cargo/bin

CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
# Envoy: yours if ENVOY_BIN is set, otherwise the pinned one, installed into a folder of this repository.
ENVOY_DIR := .env-tools/envoy
envoy_bin = $(or $(ENVOY_BIN),$$(readlink -f $(ENVOY_DIR)/bin-envoy))

.PHONY: help prerequisites build envoy demo test chaos chaos-list chaos-kills chaos-check bench-store simulate simulate-defects renewals lint fix clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

prerequisites:
	@.ci/prerequisites

build: prerequisites ## build every program and test
	$(CARGO) build --workspace --all-targets --locked

envoy: prerequisites ## install the pinned Envoy into .env-tools
ifeq ($(ENVOY_BIN),)
	@deploy/envoy/install.sh "$(CURDIR)/$(ENVOY_DIR)"
endif

demo: envoy build ## run the demo on loopback and stay up; CHECK=1: check every step, write target/demo/report.json, exit 0 or 1
	@exec $(TARGET)/debug/demo --envoy "$(envoy_bin)" --out $(TARGET)/demo $(if $(filter-out 0,$(CHECK)),--check)

test: envoy build ## run all tests
	ENVOY_BIN="$(envoy_bin)" $(CARGO) test --workspace --locked --no-fail-fast

chaos_run = $(TARGET)/debug/chaos run --envoy "$(envoy_bin)" --out $(TARGET)/chaos $(if $(SEED),--seed $(SEED)) $(if $(SLACK),--slack $(SLACK))

chaos: envoy build ## run chaos scenarios, a quarter of an hour: SCENARIO=name, ROUNDS=n, SEED=n; PROFILE=soak DURATION=2h; page in target/chaos
ifeq ($(PROFILE),soak)
	@exec $(chaos_run) soak --duration $(or $(DURATION),1h)
else
	@exec $(chaos_run) $(SCENARIO) $(if $(ROUNDS),--rounds $(ROUNDS))
endif

chaos-list: build ## list the chaos scenarios
	@$(TARGET)/debug/chaos list

chaos-kills: envoy build ## kill the leader N times (20) under writes and traffic
	@$(chaos_run) leader-kill --rounds $(or $(N),20)

# ADDRESSES="https://a https://b" CA_FILE=ca.crt TOKEN_FILE=token DURATION=60s MESH=name LONGEST_PAUSE=10s YES=1
chaos-check: prerequisites ## check a running installation from outside while you break it: ADDRESSES=, CA_FILE=, TOKEN_FILE=; YES=1 to do it
	@$(CARGO) build --locked -p ursa-chaos-tests --bin chaos
	@exec $(TARGET)/debug/chaos check $(foreach address,$(ADDRESSES),--address $(address)) --token-file "$(TOKEN_FILE)" \
	  $(if $(CA_FILE),--ca-file "$(CA_FILE)") $(if $(DURATION),--duration $(DURATION)) $(if $(MESH),--mesh $(MESH)) \
	  $(if $(LONGEST_PAUSE),--longest-pause $(LONGEST_PAUSE)) $(if $(filter-out 0,$(YES)),--yes) --out $(TARGET)/chaos-check

# CLIENTS=1,64 SECONDS_EACH=3 ROUNDS=5 KILLS=100 RESOURCES=100000 PARTS=syncs,writes,reads,failover,restart
bench-store: build ## measure the store beside the bare disk and etcd (if installed): writes, reads, fail-over (KILLS=10), memory, restart; report in target/bench
	@status=0; $(TARGET)/debug/bench store --out $(TARGET)/bench $(if $(CLIENTS),--clients $(CLIENTS)) $(if $(SECONDS_EACH),--seconds $(SECONDS_EACH)) \
	  $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(KILLS),--kills $(KILLS)) $(if $(RESOURCES),--resources $(RESOURCES)) $(if $(PARTS),--parts $(PARTS)) || status=$$?; \
	TMPDIR="$(abspath $(TARGET)/bench)" $(CARGO) test --locked -p ursa-store --lib -- --ignored --nocapture --test-threads=1 tests::bench::writes_of_a_group \
	  | tee $(TARGET)/bench/store-internal.txt; exit $$status

simulate: prerequisites ## the real store on simulated time, network and disks: SEEDS=n (200), FROM=n, or SEED=n alone with its trace
	@$(CARGO) build --locked -p ursa-simulation
	@$(TARGET)/debug/simulate $(if $(SEED),one --seed $(SEED),seeds --seeds $(or $(SEEDS),200) --from $(or $(FROM),1))

simulate-defects: prerequisites ## seeded defects in the store, until the simulation notices each: which oracle, at which seed; DEFECT=name for one
	@$(CARGO) build --locked -p ursa-simulation --features defects
	@$(TARGET)/debug/simulate defects $(DEFECT)

renewals: envoy build ## certificates of 30 s under traffic for five minutes: no failed handshake
	ENVOY_BIN="$(envoy_bin)" $(CARGO) test --locked -p ursa-zone-cp --test envoy_life -- --ignored --nocapture

# Two passes of clippy: the bans of clippy.toml, and the one on unwrap, hold for libraries and programs, not for their tests.
lint: prerequisites ## format, clippy and the fences of the code, without writing anything
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --locked -- -D warnings
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings -A clippy::disallowed_methods -A clippy::disallowed_types -A clippy::unwrap_used
	$(CARGO) test --workspace --locked --test fences

fix: prerequisites ## format, and let clippy repair what it can
	$(CARGO) fmt --all
	$(CARGO) clippy --workspace --all-targets --locked --fix --allow-dirty --allow-staged -- -A clippy::disallowed_methods -A clippy::disallowed_types -A clippy::unwrap_used
	$(CARGO) fmt --all

clean: ## remove everything that was built or installed here
	$(CARGO) clean
	rm -rf .env-tools
