# make demo    set up and compile a real transformer for this machine and for ARM; run both on real digits
# make test    set up and pass the tests
# More: make bench, make bench-report, make check-models, make clean. Nothing but Python 3.11 and make is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test setup setup-test setup-bench bench bench-report check-models check-bits bench-bits bench-arm bench-kernels conformance fuzz real-networks compare format docs clean

setup: $(VENV)/.ready
setup-test: $(VENV)/.ready-test
setup-bench: $(VENV)/.ready-bench

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[compiler]"
	touch $@

$(VENV)/.ready-bench: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[bench]"
	touch $@

$(VENV)/.ready-test: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[test]"
	touch $@

demo: setup
	$(BIN)/python examples/demo/demo.py

test: setup-test
	$(BIN)/python -m pytest -n $(WORKERS) tests

# Accuracy, bit-exactness and speed of all real nets in ../shared/models (minutes)
check-models: setup-test
	$(BIN)/python benchmarks/check_models.py

# Accuracy and weight bytes at 4 bits, mixed, and without calibration data, beside the goals (many minutes);
# BITS="--modes 8,4 kws_dscnn" takes some
check-bits: setup-test
	$(BIN)/python benchmarks/check_bits.py $(BITS)

# Time and bytes of whole nets at 4 bits beside 8
bench-bits: setup-bench
	$(BIN)/python benchmarks/bench_bits.py $(BITS)

# The field's networks beside ONNX Runtime and LiteRT, one thread and all, on this machine (some 20 minutes);
# a run that was cut off goes on with make bench BENCH=--resume
bench: setup-bench
	$(BIN)/python benchmarks/bench.py --json benchmarks/results/x86.json $(BENCH)

# The figures of make bench as tables and a plot, here and in the README
bench-report: setup-bench
	$(BIN)/python benchmarks/report.py

# ARM without ARM: instructions and estimated cycles beside ONNX Runtime and LiteRT (needs ../shared/armlab, minutes)
# ARM_CORES="--core cortex-a76 --core cortex-a72 --core cortex-a710" takes all three
bench-arm: setup-test
	$(BIN)/python benchmarks/bench_arm.py $(ARM_CORES) --json benchmarks/results/arm.json \
		--markdown benchmarks/results/arm.md

# Each kernel's share of the machine's ceiling; KERNELS="--target arm-a76" estimates it through the ARM lab
bench-kernels: setup-test
	$(BIN)/python benchmarks/kernels.py --json build/bench-kernels.json $(KERNELS)

# ONNX's own node tests: each compiles and agrees, or is refused by name; WORDS="conv pool" takes some (minutes)
conformance: setup-test
	$(BIN)/python benchmarks/conformance.py --markdown benchmarks/results/conformance.md --page docs/operators.md $(WORDS)

# Random graphs against every target and the reference; FUZZ="--graphs 5000 --seed 1 --resume" goes on where it was
fuzz: setup-test
	PYTHONPATH=tests $(BIN)/python -m fuzz $(FUZZ)

# Networks that people deploy, fetched from the packages that ship them: SNR, the same bits, time (minutes);
# NETS="--target arm-a76 magika" takes some (needs ../shared/realnets, pillow, matplotlib)
real-networks: setup-test
	PYTHONPATH=tests $(BIN)/python benchmarks/real_networks.py --markdown benchmarks/results/real_networks.md $(NETS)

# Whether a change changes what is compiled: a fixed set of networks for five targets by two checkouts, byte for byte
# (minutes); COMPARE="--base HEAD~3 --nets encoder --targets arm-a53" takes another base and some
compare: setup-test
	PYTHONPATH=tests $(BIN)/python benchmarks/compare_libraries.py $(COMPARE)

# What a commit is asked for: ruff's checks and its format, over everything
format: setup-test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/ops.md, from the declarations of the integer ops
docs: setup
	$(BIN)/python -m qcompile.kernels.reference docs/ops.md

clean:
	rm -rf $(VENV) build *.egg-info
