# What one does with a checkout. `make` alone lists it.
PYTEST_ARGS ?=
BENCH_ARGS ?=
SOAK_ARGS ?=
BIN := .venv/bin

.PHONY: help setup test-setup demo test lint unit bench soak lock clean distclean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

setup: ## prepare the machine and .venv (a moment, when all is there)
	@tools/setup.sh

demo: setup ## boot a Debian guest, clone it live and frozen, and show the times
	@$(BIN)/ramet demo

test-setup:
	@tools/setup.sh --tests
	@tools/clients.sh

test: test-setup lint ## linters, then all tests, real guests too (PYTEST_ARGS='-k name')
	$(BIN)/python -m pytest $(PYTEST_ARGS)

unit: setup ## the tests without guests
	$(BIN)/python -m pytest -m "not guest" tests/unit $(PYTEST_ARGS)

lint: setup ## ruff, mypy, and the shell scripts' syntax
	$(BIN)/ruff check .
	$(BIN)/mypy
	@git ls-files '*.sh' | xargs -r -n1 sh -n

bench: setup ## measure clones beside the same by hand (BENCH_ARGS='--quick')
	$(BIN)/ramet bench $(BENCH_ARGS)

soak: setup ## clone and remove 1000 times, then 20 minutes of all at random (SOAK_ARGS='--seed N')
	$(BIN)/python -P -m ramet.soak --quiet --cycles 1000 $(SOAK_ARGS)
	$(BIN)/python -P -m ramet.soak --quiet --minutes 20 $(SOAK_ARGS)

lock: setup ## write requirements.lock from what is installed
	@{ echo '# What the project was tested with, exactly. Made by: make lock'; \
	   $(BIN)/python -m pip freeze --all | grep -viE '^(#|-e|ramet\b|pip=|wheel=)' | sort -f; } > requirements.lock

clean: ## remove what builds and tests leave
	rm -rf build dist src/*.egg-info src/ramet/_native .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf .venv .venv-clients
