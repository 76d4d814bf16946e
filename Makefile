# Everything a developer or a newcomer runs. Each target does its own set-up.

# Containers often set this: each start of a process would compile the whole package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-long check bench chaos constraints clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

demo: $(STAMP)
	$(BIN)/python examples/water_surface/run.py

test: $(STAMP) check
	scripts/system-packages
	$(BIN)/python -m pytest -m "not long" -n 3 --no-loadscope-reorder

test-long: $(STAMP)
	scripts/system-packages
	$(BIN)/python -m pytest -n 3 --no-loadscope-reorder

check: $(STAMP)
	$(BIN)/ruff format --check balsam_celery tests config examples benchmarks scripts setup.py
	$(BIN)/ruff check balsam_celery tests config examples benchmarks scripts setup.py
	$(BIN)/mypy
	$(BIN)/python scripts/audit.py

bench: $(STAMP)
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/planning.py
	$(BIN)/python benchmarks/planning.py --million
	$(BIN)/python benchmarks/packing.py
	$(BIN)/python benchmarks/placement.py

# Faults on purpose, for hours; again: goes on where it stopped. docs/reliability.md has the figures.
chaos: $(STAMP)
	scripts/system-packages
	$(BIN)/python -m tests.chaos --seed 1 --runs 8 --minutes 10 --tasks 2000
	$(BIN)/python -m tests.chaos --seed 1 --runs 4 --minutes 10 --tasks 2000 --database postgres
	$(BIN)/python -m tests.chaos --seed 1 --runs 4 --minutes 10 --tasks 1000 --site slurm --database postgres

$(STAMP): setup.py constraints.txt scripts/make-venv
	scripts/make-venv $(VENV)
	touch $@

# Take the versions now in the virtual environment as the ones to install from here on.
constraints: $(STAMP)
	scripts/write-constraints $(BIN)/pip > constraints.txt.new
	mv constraints.txt.new constraints.txt

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
