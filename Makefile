# Every target sets up .venv first if it is missing or older than what it is made from.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# On a terminal, pip says what it downloads; in a log, only what goes wrong.
PIP := $(BIN)/python -m pip install $(if $(MAKE_TERMOUT),,--quiet) --disable-pip-version-check
# make TORCH=cpu: the build of PyTorch for machines without a GPU. Of one version, pip takes that with a suffix (+cpu).
TORCH_INDEX := $(if $(filter cpu,$(TORCH)),--extra-index-url https://download.pytorch.org/whl/cpu)
PEERS := $(VENV)/.peers
OPTIONAL := $(VENV)/.optional
SITE := $(VENV)/.site

.PHONY: demo test test-quick fuzz test-gpu test-slurm bench bench-tables docs lint format setup clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml requirements.lock requirements-hashed.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' \
		|| { echo "megavoxel needs Python 3.11, 3.12 or 3.13; call make PYTHON=/path/to/python3.11"; exit 1; }
	@echo "setting up $(VENV) (about 2 GB with the CPU build of PyTorch, more with CUDA), with $$($(PYTHON) --version)"
	@# One that works is brought up to date in place: jobs on a cluster may be using it.
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "1 of 3: the packages of requirements-hashed.lock"
	$(PIP) --no-deps --require-hashes --requirement requirements-hashed.lock
	@# Only PyTorch is left: each machine takes the build that its package index has.
	@echo "2 of 3: PyTorch$(if $(TORCH_INDEX), for CPUs)"
	$(PIP) $(TORCH_INDEX) --requirement requirements.lock
	@echo "3 of 3: megavoxel itself, from this folder"
	$(PIP) --no-deps --editable .
	@touch $@

demo: $(INSTALLED) ## the default study, from phantoms to its report
	$(BIN)/snakemake

# Several tests train at once: a thread that waits for another one must not keep a processor busy meanwhile.
test test-quick test-gpu test-slurm: export OMP_WAIT_POLICY := passive

# Tests of a file stay in one process, and share what it has made; tests/conftest.py says which files come first.
PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

$(OPTIONAL): requirements-optional.lock $(INSTALLED)
	$(PIP) --no-deps --requirement requirements-optional.lock
	@touch $@

test: $(OPTIONAL) ## all of them
	$(BIN)/python -m pytest $(PARALLEL)

test-quick: $(OPTIONAL) ## those that take no longer than a second or two each, which reach every module
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

fuzz: FILES ?= 10000
fuzz: $(INSTALLED) ## broken files of all kinds, others each time
	MEGAVOXEL_FUZZ=$(FILES) $(BIN)/python -m pytest tests/test_fuzz.py -s

test-gpu: $(INSTALLED) ## on a GPU; skipped with PyTorch's reason where it sees none
	$(BIN)/python -m pytest tests/gpu --ignore tests/gpu/rehearsal -s

test-slurm: $(INSTALLED) ## on a Slurm of its own; skipped with a reason where none can be started
	$(BIN)/python -m pytest tests/cluster

$(PEERS): requirements-peers.lock $(INSTALLED)
	$(PIP) --no-deps --requirement requirements-peers.lock
	@touch $@

bench: $(PEERS) $(OPTIONAL) ## all, or those of PROGRAMS; installs first what they compare with, which no other target needs
	$(BIN)/python -m benchmarks $(PROGRAMS)

bench-tables: $(INSTALLED) ## the tables of docs/performance.md and docs/results.md, from benchmarks/results
	$(BIN)/python -m benchmarks.tables

$(SITE): requirements-docs.lock $(INSTALLED)
	$(PIP) --no-deps --requirement requirements-docs.lock
	@touch $@

docs: $(SITE) ## the pages as a site in site/, which can be opened from there
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow/Snakefile workflow/rules
	$(BIN)/python -m megavoxel.config config
	$(BIN)/python -m megavoxel.config.reference --check
	$(BIN)/python envs/update.py --check
	$(BIN)/python -m benchmarks.tables --check
	$(BIN)/snakemake --lint

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/snakefmt Snakefile workflow/Snakefile workflow/rules

clean: ## results, states and logs; data/ and .venv stay
	rm -rf results state logs benchmarks/jobs .snakemake
