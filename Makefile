# Each target is enough on a fresh clone: the environment is built first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ok

.PHONY: run test test-all bench lab docs readme check hooks clean

$(READY): settings.ini setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(READY)

run: $(READY)  ## train, compute and write the report on real digits
	$(BIN)/hessnb report --out report --force

test: $(READY)  ## notebooks and tests, without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -n 2 --dist loadfile tests

test-all: $(READY)  ## everything
	$(BIN)/nbdev_test --n_workers 2 --flags slow
	$(BIN)/python -m pytest -q tests --runslow

bench: $(READY)  ## the same eigenpairs from the peers, which go into an environment of their own
	$(PYTHON) -m venv --clear .bench/venv
	$(BIN)/python -c 'import os, sysconfig; print(sysconfig.get_paths()["purelib"]); print(os.getcwd())' > "$$(echo .bench/venv/lib/python*/site-packages)/hessnb.pth"
	.bench/venv/bin/pip install --quiet --no-deps -r benchmarks/requirements-peers.txt
	.bench/venv/bin/python benchmarks/peers.py

lab: $(READY)  ## open the workbook
	$(BIN)/jupyter lab nbs/start.ipynb

docs: $(READY)  ## the documentation site, in _docs; needs no network
	$(BIN)/python .ci/docs/build.py

readme: $(READY)  ## README.md from nbs/index.ipynb
	$(BIN)/python .ci/render_readme.py

check: $(READY)  ## is the tree clean, exported and up to date?
	bash .ci/check

hooks: $(READY)  ## git-friendly notebooks: clean on commit, merge by cells
	$(BIN)/nbdev_install_hooks

clean:
	rm -rf $(VENV) build dist _docs *.egg-info
