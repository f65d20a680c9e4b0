# make demo    set up and compile a real transformer for this machine and for ARM; run both on real digits
# make test    set up and pass the tests
# More: make bench, make check-models, make clean. Nothing but Python 3.11 and make is needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2

.PHONY: demo test setup setup-test bench check-models bench-arm clean

setup: $(VENV)/.ready
setup-test: $(VENV)/.ready-test

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e .
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

# Latency beside ONNX Runtime, one thread, all real nets in ../shared/models
bench: setup-test
	$(BIN)/python benchmarks/bench_models.py

# ARM without ARM: instructions and estimated cycles beside ONNX Runtime and LiteRT (needs ../shared/armlab, minutes)
bench-arm: setup-test
	$(BIN)/python benchmarks/bench_arm.py --json build/bench-arm.json --markdown build/bench-arm.md

clean:
	rm -rf $(VENV) build *.egg-info
