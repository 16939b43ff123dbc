.PHONY: check test test-all nightly lowest versions fuzz lint bench picture docs package

check:  ## everything that CI runs
	bash .ci/run

test:  ## the essential tests
	python -m pytest -n auto

test-all:  ## the slow ones too
	python -m pytest -n auto -m ""

nightly:  ## those too that CI has no time for
	GPUCLF_NIGHTLY=1 python -m pytest -n auto -m ""

lowest:  ## the essential tests with the lowest versions allowed, in a fresh environment
	bash .ci/versions lowest

versions:  ## the essential tests with the newest, on each Python that is here
	bash .ci/versions newest

fuzz:  ## the parsers of files from outside, on mutated files; exit code 1 and the input where one fails
	python -m tests.fuzz.fuzz
	HYPOTHESIS_PROFILE=nightly python -m pytest -q -m "" tests/fuzz

lint:
	ruff check .
	ruff format --check .
	mypy --strict gpuclf

bench:  ## record a run and write the tables and pictures from the records
	gpuclf bench --json benchmarks/results/ladder.json
	python benchmarks/performance_tables.py

picture:
	python benchmarks/performance_tables.py
	python .ci/trace_lines.py

docs:  ## the site, into docs/_build/html; a warning is an error, and no network is used
	python -m sphinx -b html -j auto -W --keep-going -q docs docs/_build/html

package:  ## sdist and wheel into dist/, checked
	rm -rf dist && python -m build && twine check --strict dist/* && check-wheel-contents dist/*.whl
