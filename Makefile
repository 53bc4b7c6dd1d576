.DEFAULT_GOAL := help
.PHONY: help setup run dev shell psql reset test verify faults check fix bench lock feature remove migration definitions openapi up deploy down clean

PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/bin
feature ?=
args ?=
# The tests that look at whatever features there are
ACROSS := tests/architecture tests/contract tests/test_readme.py
unexport PYTHONDONTWRITEBYTECODE  # every start would compile everything

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

dev: setup ## The same, started anew when a file is saved; APP_LOG_SQL=true make dev shows the SQL
	@PORT=$(PORT) exec $(BIN)/python -m app serve --reload --until-parent-exits

shell: setup ## Python with await at the prompt, the database, a session and the handlers
	@$(BIN)/python -m app shell

psql: setup ## psql on the database of development: make psql args='-c "TABLE users"'
	@$(BIN)/python -m app psql $(args)

reset: setup ## Start the embedded database of development anew: migrated, with the demo
	@$(BIN)/python -m app reset

test: setup ## Every quick test; feature=items for one feature's alone, changed=origin/main for what a branch affects
ifdef changed
	@affected=$$($(BIN)/python -m app affected $(changed)) || exit; \
	echo "affected by the change since $(changed): $${affected:-nothing}"; \
	if [ "$$affected" = all ]; then exec $(BIN)/python -m pytest -n 2 $(args); fi; \
	for feature in $$affected; do \
	  $(BIN)/python -m pytest -n 2 features/$$feature --feature=$$feature $(args) || exit; \
	done; \
	exec $(BIN)/python -m pytest -n 2 $(ACROSS) $(args)
else
	@$(BIN)/python -m pytest -n 2 $(if $(feature),features/$(feature) --feature=$(feature)) $(args)
endif

verify: setup ## What takes long: features alone, deletion, merge, scaffold, faults, containers; args=long for longer
	@VERIFY=$(filter long,$(args)) exec $(BIN)/python -m pytest -n 2 --verify $(filter-out long,$(args))

faults: setup ## Attacks and faults against running processes, part of verify: clients, proxies, kills, fail-overs
	@$(BIN)/python -m pytest -n0 --verify tests/resilience $(args)

check: setup ## Format, lint, types, slice boundaries, migrations, workflows
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy .
	@$(BIN)/lint-imports --no-logo
	@$(BIN)/python -m app lint-migrations
	@$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*
	@$(BIN)/zizmor --offline --quiet .github

fix: setup ## Format, and mend what the linter can
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: setup ## The benchmarks, as ratios against baselines run side by side
	@$(BIN)/python -m tests.benchmarks $(args)

feature: setup ## A new feature with its tests and first migration: make feature name=orders
	@$(BIN)/python -m app new-feature $(name) $(if $(singular),--singular $(singular))

remove: setup ## Remove a feature, its tables in the development database included: make remove feature=orders
	@$(BIN)/python -m app remove-feature $(feature)

migration: setup ## A revision on a feature's branch: make migration feature=items message="add colour"; amend=yes writes the last anew, empty=yes one to fill by hand
	@$(BIN)/python -m app migration $(feature) $(if $(message),"$(message)") $(if $(amend),--amend) $(if $(empty),--empty)

definitions: setup ## Write each migrations/*/definitions.sql anew, after a revision by hand or a merge
	@$(BIN)/python -m app keep-definitions

openapi: setup ## Write the tests/openapi.json of all anew, after a wanted change of the API
	@$(BIN)/python -m app keep-openapi

lock: ## Pin all dependencies anew (needs uv)
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --custom-compile-command "make lock" --extra celery pyproject.toml -o requirements.lock
	@uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --custom-compile-command "make lock" --group dev pyproject.toml -o requirements-dev.lock

up: ## The compose stack on http://127.0.0.1:8000: make up args="--scale api=3 --scale worker=2"
	@umask 077; for name in APP_SECRET_KEY POSTGRES_PASSWORD POSTGRES_OWNER_PASSWORD POSTGRES_SERVICE_PASSWORD REDIS_PASSWORD; do \
	  printenv $$name >/dev/null || grep -qs "^$$name=" .env || { \
	  $(PYTHON) -c "import secrets; print('\n# Made by make up\n$$name=' + secrets.token_urlsafe(48))" >> .env; \
	  chmod 600 .env; }; \
	done
	@docker compose up --build --detach --quiet-pull --wait $(args) || { docker compose logs --tail 10 roles migrate api worker; exit 1; }
	@echo "Tessera answers at http://127.0.0.1:$$(docker compose port proxy 8000 | sed 's/.*://')"

deploy: ## Build and migrate, then replace the containers of the API and the workers one by one
	@docker compose build --quiet
	@docker compose run --rm migrate
	@set -e; for service in api worker celery; do \
	  old=$$(docker compose --profile celery ps --quiet $$service); \
	  for container in $$old; do \
	    docker stop $$container >/dev/null; docker rm $$container >/dev/null; \
	    docker compose --profile celery up --detach --no-deps --no-recreate --wait --scale $$service=$$(echo $$old | wc -w) $$service; \
	  done; \
	done

down: ## Stop it (its volumes stay)
	@docker compose down
