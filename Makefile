# The same two commands as the README, by name.
VENV = .venv

.PHONY: demo test examples bench docs clean

demo:
	test -d $(VENV) || python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -c constraints.txt -e .
	$(VENV)/bin/lesde demo

test:
	test -d $(VENV) || python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -c constraints.txt -e '.[test]'
	$(VENV)/bin/python -m pytest -n auto

examples:
	for script in examples/*.py; do echo "$$script"; MPLBACKEND=agg $(VENV)/bin/python "$$script" || exit 1; done

bench:
	test -d $(VENV) || python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -c constraints.txt -e '.[bench]'
	$(VENV)/bin/python -m benchmarks

docs:
	$(VENV)/bin/pip install --quiet -c constraints.txt -e '.[docs]'
	$(VENV)/bin/python -m sphinx -W -b html docs docs/_build/html

clean:
	rm -rf docs/_build docs/auto_examples docs/sg_execution_times.rst .pytest_cache .ruff_cache .mypy_cache
