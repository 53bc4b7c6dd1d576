.DEFAULT_GOAL := help
.PHONY: help setup run test check fix bench lock migration openapi up down clean

PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
feature ?=
args ?=

help: ## Say what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 22

setup: $(VENV)/.ready ## Virtual environment and pinned dependencies

$(VENV)/.ready: requirements-dev.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	@$(PYTHON) -m venv $(VENV)
	@echo "installing dependencies (once)"
	@$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

run: setup ## The API on http://127.0.0.1:8000 (PORT=9000 for another), with database and demo
	@PORT=$(PORT) exec $(BIN)/python -m app serve --until-parent-exits

test: setup ## The whole suite, or one feature's alone: make test feature=items
	@$(BIN)/python -m pytest -n 2 $(if $(feature),features/$(feature) --feature=$(feature)) $(args)

check: setup ## Format, lint, types, slice boundaries
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy .
	@$(BIN)/lint-imports

fix: setup ## Format, and mend what the linter can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

migration: setup ## A revision on a feature's branch: make migration feature=items message="add colour"
	@$(BIN)/python -m app migration $(feature) "$(message)"

openapi: setup ## Write tests/openapi.json anew, after a wanted change of the API
	@$(BIN)/python -m app openapi > tests/openapi.json

lock: ## Pin all dependencies anew (needs uv)
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --custom-compile-command "make lock" --extra celery pyproject.toml -o requirements.lock
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --custom-compile-command "make lock" --all-extras --group dev pyproject.toml -o requirements-dev.lock

up: ## The compose stack: API, worker, PostgreSQL, Redis
	@docker compose up --build --detach --wait

down: ## Stop it (its volumes stay)
	@docker compose down
