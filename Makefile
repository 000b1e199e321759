# Each target makes .venv and installs what it needs on its own; when that is done already it costs nothing.
.PHONY: demo test check clean
PYTHON ?=
export PYTHON

demo: .venv/.installed
	.venv/bin/python -m glassformer train

test: .venv/.installed-dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

check: .venv/.installed-dev
	tools/check

clean:
	rm -rf .venv

.venv/.installed: pyproject.toml constraints.txt tools/setup
	tools/setup
	touch $@

.venv/.installed-dev: pyproject.toml constraints.txt tools/setup
	tools/setup dev
	touch $@ .venv/.installed
