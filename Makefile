# The README's two commands. Both set up .venv first, with the versions that CI tested.
PYTHON ?= python3
PROMPT ?= def quicksort(xs):

.PHONY: demo test lint

demo: .venv/installed
	.venv/bin/specbranch generate "$(PROMPT)"

test: .venv/installed-dev
	.venv/bin/pytest --numprocesses 2 --dist worksteal

lint: .venv/installed-dev
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-dev: .venv/installed
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
