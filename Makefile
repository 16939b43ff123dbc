.PHONY: check test test-all lint bench picture

check:  ## everything that CI runs
	bash .ci/run

test:  ## the essential tests
	python -m pytest -n auto

test-all:  ## the slow ones too
	python -m pytest -n auto -m ""

lint:
	ruff check .
	ruff format --check .
	mypy --strict gpuclf

bench:  ## record a run and write the tables and pictures from the records
	gpuclf bench --json benchmarks/results/ladder.json
	python benchmarks/performance_tables.py

picture:
	python benchmarks/performance_tables.py
