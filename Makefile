# make setup   virtual environment .venv, pinned dependencies, C++ extension built in place
# make demo    setup, then teacher → student → report on the built-in digits, into runs/demo
# make test    setup, then the whole test suite (slow sweeps left out)
# make lint    ruff and mypy
# make bench   setup with the peers, then the benchmarks into bench/results/cpu and the tables of the documents
# make aot     compile every Triton kernel for every architecture, no GPU needed, and look at the machine code
# make cuda    compile the CUDA sources with nvcc, no GPU needed, and report on the machine code
# make compat  compile all of that for the oldest PyTorch and Triton that are allowed for: downloads 1.5 GB of their wheels
# make oracles compare the distillation losses with torchdistill's: setup with that package, which nothing else needs
# make wheel   the source distribution, and from it the wheel with the kernels of this machine's kind, into dist
# make docs    setup with pdoc, then the pages of the public modules into build/docs
# Each does only what is out of date.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find icckd csrc configs -name '*.py' -o -name '*.cpp' -o -name '*.h' -o -name '*.yaml')
# Whose names, and no others, others may rely on; icckd.functional is found through icckd.
DOCUMENTED := icckd icckd.reference icckd.models icckd.data icckd.settings icckd.methods icckd.exchange

.PHONY: setup demo test lint oracles bench aot cuda compat wheel docs clean
setup: $(VENV)/extension.stamp

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch first and by its exact version, so that no other package draws in another build of it.
$(VENV)/dependencies.stamp: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -q --constraint constraints.txt torch setuptools wheel ninja
	$(PIP) install -q --constraint constraints.txt --no-build-isolation --editable '.[test,lint]'
	@touch $@

$(VENV)/extension.stamp: $(VENV)/dependencies.stamp setup.py $(shell find csrc -type f)
	$(BIN)/python setup.py -q build_ext --inplace
	@touch $@

demo: runs/demo/report.html
	@cat runs/demo/report.md
	@echo "Open runs/demo/report.html in a browser."

runs/demo/report.html: $(VENV)/extension.stamp $(SOURCES)
	$(BIN)/icckd run --config configs/digits.yaml --output runs/demo --overwrite

# Threads that wait for work should not keep the other worker's from theirs.
test: setup
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m 'not slow' -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

oracles: setup
	$(PIP) install -q --no-deps torchdistill==1.1.5
	$(BIN)/python -m pytest tests/oracles

bench: setup
	$(PIP) install -q --constraint constraints.txt --no-build-isolation --editable '.[bench]'
	$(BIN)/python -m bench.intra_class --json bench/results/cpu/intra_class.json \
		--csv bench/results/cpu/intra_class.csv --plot docs/images/intra_class.png
	$(BIN)/python -m bench.cross_entropy --json bench/results/cpu/cross_entropy.json
	$(BIN)/python -m bench.crd --json bench/results/cpu/crd.json
	$(BIN)/python -m bench.neighbours --json bench/results/cpu/neighbours.json
	$(BIN)/icckd bench --device cpu --threads 2 --against none --json bench/results/cpu/functions.json
	$(BIN)/python -m bench.recorded
	$(BIN)/python -m bench.train --json bench/results/cpu/train.json
	$(BIN)/python -m bench.distributed --json bench/results/cpu/distributed.json
	$(BIN)/python -m bench.distributed.picture docs/images/exchange.svg
	for page in README.md docs/benchmarks.md docs/distributed.md docs/neighbours.md; do $(BIN)/python -m bench.table $$page bench/results/cpu/*.json; done

aot: setup
	$(BIN)/python -m bench.aot

cuda: $(VENV)/dependencies.stamp
	ICCKD_CUDA=1 $(BIN)/python setup.py -q build_ext --inplace
	$(BIN)/python -m bench.cuda_report

compat: setup
	$(BIN)/python -m bench.compat

# Of the source distribution rather than of the tree, so that one that lacks a file is noticed.
wheel: $(VENV)/dependencies.stamp
	rm -f dist/icckd-*
	$(BIN)/python setup.py -q sdist --dist-dir dist
	$(PIP) wheel -q --no-deps --no-build-isolation --wheel-dir dist dist/icckd-*.tar.gz
	@ls dist/icckd-*

# pdoc does not see where a class that is made from registered methods has its members from, nor what is imported for types
# alone; every other warning is an error. The files of functions that are called like them are no pages.
docs: setup
	$(PIP) install -q --constraint constraints.txt pdoc
	rm -rf build/docs
	$(BIN)/python -W error -W "ignore:Cannot determine where icckd.settings" \
		-W "ignore:Error parsing type annotation ForwardRef('Ranks" \
		-m pdoc --docformat google --no-show-source --template-directory docs/api --output-directory build/docs \
		$(DOCUMENTED) '!icckd[.](functional|reference)[.]'
	@echo "Open build/docs/index.html in a browser."

clean:
	rm -rf build dist runs/demo icckd/_C*.so icckd/_cuda.so $(VENV)
