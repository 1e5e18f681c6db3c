# Everything that a newcomer and a contributor run. `make` lists the targets.
#
# Variables: PYTHON (python3) makes the virtual environment; ARGS goes to the quickstart, e.g. ARGS=--help.
# Environment: LIBTORCH names a libtorch to use, LN_TUNING_PYTHON a Python that has tests/python/requirements.txt.

PYTHON ?= python3
CARGO ?= cargo

# The Python that has the packages of the tests.
TEST_PYTHON = $${LN_TUNING_PYTHON:-.venv/bin/python}

# Property tests try the same inputs each time; PROPTEST_CASES=10000 PROPTEST_RNG_SEED=2 make unit looks further.
export PROPTEST_RNG_SEED ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup setup-tests quickstart test fmt fmt-check clippy unit unit-b-and-c unit-others examples doc finetune-demo bf16-vs-peft minilm sweep-vs-runs paper fashion-mnist bench distributed-bench distributed-kills fuzz gpu-bundle test-tch-0.26 clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9.-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## Find or install libtorch and tell cargo where it is
	$(PYTHON) scripts/libtorch

setup-tests: ## The same, and the Python packages of the tests, in .venv
	$(PYTHON) scripts/libtorch --test-packages

quickstart: setup ## Build and run the quickstart: real digits, a real ViT, results in target/quickstart
	$(CARGO) run --locked --release --example quickstart -- $(ARGS)

# One profile (dev) serves all of it: the C++ of torch-sys takes minutes to compile and would be compiled for each.
test: fmt-check setup-tests clippy unit examples ## All checks: format, clippy, tests, examples, PEFT, docs

fmt: ## Format the code
	$(CARGO) fmt --all

fmt-check:
	$(CARGO) fmt --all --check

clippy:
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

# Tests run beside each other: threads of libtorch that wait must not keep the processors busy.
unit: export OMP_WAIT_POLICY ?= passive
unit: # unit, integration (real PEFT among them) and documentation tests; one builds the documentation
	$(CARGO) test --locked --workspace --no-run
	$(TEST_PYTHON) tests/python/serve.py $(MAKE) --no-print-directory --jobs=2 unit-b-and-c unit-others

# Two halves beside each other, since tests wait: for Python, for a program's start, for the last of their kind.
unit-b-and-c:
	$(CARGO) test --locked --workspace --test '[bc]*'

unit-others:
	$(CARGO) test --locked --workspace --lib --bins --test '[!bc]*'
	$(CARGO) test --locked --workspace --doc

# Every example is run. The quickstart comes first.
RUN := target/examples
ARGS_quickstart := --base-epochs 1 --epochs 1 --out $(RUN)
EXAMPLES := $(patsubst examples/%/main.rs,%,$(wildcard examples/*/main.rs)) \
	$(basename $(notdir $(wildcard examples/*.rs)))

examples:
	$(CARGO) build --locked --features distributed --examples
	rm -rf $(RUN)
	$(foreach example,$(EXAMPLES),$(call run_example,$(example)))

define run_example

	$(CARGO) run --locked --quiet --features distributed --example $(1) -- $(ARGS_$(1))
endef

doc: ## The documentation, with warnings as errors
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps

# These write what README.md, docs/recipes.md and BENCHMARKS.md show.
PROGRAM := $${CARGO_TARGET_DIR:-target}/release/ln-tuning

finetune-demo: setup-tests ## A chat adapter for the real SmolLM2, beside PEFT: ten minutes; ARGS=--all: twenty
	$(CARGO) build --locked --release --package ln-tuning-cli
	$(TEST_PYTHON) cli/comparisons/finetune_demo.py --out target/finetune-demo --binary $(PROGRAM) $(ARGS)

bf16-vs-peft: setup-tests ## bf16 language models tuned here and by PEFT, side by side
	$(CARGO) build --locked --release --package ln-tuning-cli
	$(TEST_PYTHON) cli/comparisons/bf16_vs_peft.py --out target/bf16 --binary $(PROGRAM)

MINILM := $(CARGO) run --locked --release --package ln-tuning-cli -- train cli/comparisons/minilm.yaml --set resume=never
minilm: setup-tests ## The real all-MiniLM-L6-v2 on real texts: LN tuning and head, against head only
	rm -rf target/minilm
	$(TEST_PYTHON) cli/comparisons/docstrings.py target/minilm
	ln -s "$$($(TEST_PYTHON) tests/python/minilm.py where)" target/minilm/model
	$(MINILM) --set out=target/minilm/norms
	$(MINILM) --set out=target/minilm/head --set 'adapter.target_modules=[classifier]'

sweep-vs-runs: setup-tests ## A sweep of eight rates beside eight runs, on the CPU: two minutes; ARGS='--batch-size 4'
	$(CARGO) build --locked --release --package ln-tuning-cli
	$(TEST_PYTHON) cli/comparisons/sweep.py --out target/sweep --binary $(PROGRAM) $(ARGS)

paper: setup-tests fashion-mnist ## SmolLM2 learns to see: LN tuning, LoRA and others; twenty minutes; ARGS=--quick: one
	$(CARGO) build --locked --release --package ln-tuning-cli
	$(TEST_PYTHON) cli/comparisons/paper --out target/paper --binary $(PROGRAM) --docs $(if $(findstring --quick,$(ARGS)),target/paper,docs) $(ARGS)

# Debian's package of real pictures, unpacked here where it is not installed.
FASHION := dataset-fashion-mnist
fashion-mnist:
	test -n "$$FASHION_MNIST" || test -d /usr/share/datasets/fashion-mnist || test -d target/fashion-mnist/usr || { \
		mkdir -p target/fashion-mnist && cd target/fashion-mnist && \
		apt-get download $(FASHION) && dpkg-deb -x $(FASHION)_*.deb . ; } || { \
		echo "error: $(FASHION) of Debian or Ubuntu cannot be had here; its four files are those of" \
		"https://github.com/zalandoresearch/fashion-mnist; FASHION_MNIST=DIRECTORY names them"; exit 1; }

bench: setup-tests ## The benchmarks, those beside PEFT included: about half an hour on a quiet machine
	$(CARGO) bench --locked
	$(CARGO) bench --locked --bench train_vs_peft -- --growth

distributed-bench: setup-tests ## Ranks on this machine beside PEFT under DDP: steps, all-reduce, memory: six minutes
	$(CARGO) bench --locked --features distributed --bench distributed

distributed-kills: setup-tests ## A run under torchrun whose ranks are killed at 20 instants: SEED=2 for others
	SEED=$(SEED) $(CARGO) test --locked --package ln-tuning-cli --test cli killed_at_20_instants -- --ignored

# Overflow of integers panics in this profile, and is found.
MINUTES ?= 1
SEED ?= 1
fuzz: setup ## Damaged files for every reader: MINUTES=60 SEED=2, or INPUT=target/fuzz/…/finding-… again
	$(CARGO) run --locked --quiet --package ln-tuning-fuzz -- \
		$(if $(INPUT),--input $(INPUT),--minutes $(MINUTES) --seed $(SEED))

# What is in target/gpu runs on a box that has the torch of Python and nothing of this; see CONTRIBUTING.md.
gpu-bundle: setup-tests ## target/gpu: programs, checks and wheels for a GPU box without Rust and without a network
	$(PYTHON) scripts/gpu_bundle
	LN_TUNING_BUNDLE="$(CURDIR)/target/gpu" $(CARGO) test --locked --package ln-tuning-gpu --test bundle every_step

# The newest tch that is accepted, in a copy, so that Cargo.lock and the ordinary build stay as they are.
NEWEST := target/tch-0.26
NEWEST_ENV := env -u LIBTORCH CARGO_TARGET_DIR="$(CURDIR)/$(NEWEST)/target" \
	LN_TUNING_PYTHON="$${LN_TUNING_PYTHON:-$(CURDIR)/.venv/bin/python}"

test-tch-0.26: setup-tests ## Build and test against tch 0.26 and libtorch 2.13.0
	rm -rf $(NEWEST)/src
	mkdir -p $(NEWEST)/src
	tar -cf - --exclude=./target --exclude='./.venv*' --exclude=./.git . | tar -xf - -C $(NEWEST)/src
	sed -i -E 's/^(tch|torch-sys) = .*/\1 = "=0.26.0"/' $(NEWEST)/src/Cargo.toml $(NEWEST)/src/cli/Cargo.toml
	cd $(NEWEST)/src && $(CARGO) update tch torch-sys
	cd $(NEWEST)/src && env -u LIBTORCH $(PYTHON) scripts/libtorch --venv "$(CURDIR)/.venv-torch-2.13"
	cd $(NEWEST)/src && $(NEWEST_ENV) $(CARGO) test --locked --workspace

clean: ## Remove what was built; the virtual environments stay
	$(CARGO) clean
