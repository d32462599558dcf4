# The README's two commands, `demo` and `test`, and those for contributors. Each sets up .venv first,
# with the versions that CI tested.
PYTHON ?= python3
PROMPT ?= def quicksort(xs):

.PHONY: demo test test-fast lint docs

demo: .venv/installed
	.venv/bin/specbranch generate "$(PROMPT)"

test: .venv/installed-dev
	.venv/bin/pytest --numprocesses 2 --dist worksteal

test-fast: .venv/installed-dev
	.venv/bin/pytest --numprocesses 2 --dist worksteal tests/unit

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
