# Each target is enough on a fresh clone: the environment is built first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ok
# another processor's kernels, emulated: the same seed then trains another network
OTHER := ATEN_CPU_CAPABILITY=default MKL_CBWR=COMPATIBLE ONEDNN_MAX_CPU_ISA=SSE41

.PHONY: run test test-all test-other export outputs bench lab docs readme pictures check lint types coverage hooks clean

$(READY): settings.ini setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -q hessnb  # as pip does for what it copies: new processes start in half the time
	touch $(READY)

run: $(READY)  ## train, compute and write the report on real digits
	$(BIN)/hessnb report --out report --force

test: $(READY)  ## notebooks and tests, without the slow ones
	OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -rs -n 2 --dist loadfile tests

test-all: $(READY)  ## everything
	$(BIN)/nbdev_test --n_workers 2 --flags slow
	$(BIN)/python -m pytest -q tests --runslow

test-other: $(READY)  ## tutorials and numerical tests, with the kernels of another processor
	$(OTHER) OMP_NUM_THREADS=1 bash .ci/other

export: $(READY)  ## hessnb/ from the notebooks, and the stub from the table of names
	$(BIN)/nbdev_clean
	$(BIN)/nbdev_export
	$(BIN)/python .ci/stub.py

outputs: $(READY)  ## run the notebooks NB="a.ipynb b.ipynb", store their outputs without what is not for readers, and export
	$(BIN)/python .ci/outputs.py $(NB)
	$(MAKE) export

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

pictures: $(READY)  ## the moving picture and the screenshot of README; the second needs Chromium
	$(BIN)/python .ci/moving.py
	$(BIN)/python .ci/screenshot.py

check: $(READY)  ## is the tree clean, exported, in order and up to date?
	bash .ci/check

lint: $(READY)  ## formatting, and the structure that .ci/house.py looks after
	$(BIN)/ruff check .
	$(BIN)/python .ci/house.py

types: $(READY)  ## what users see of the package, to a type checker
	$(BIN)/mypy

coverage: $(READY)  ## which lines the tests run; the page is htmlcov/index.html
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -q tests
	$(BIN)/coverage combine -q
	$(BIN)/coverage html -q
	$(BIN)/coverage report --format=total

hooks: $(READY)  ## git-friendly notebooks (clean on commit, merge by cells) and the checks of .pre-commit-config.yaml
	$(BIN)/nbdev_install_hooks

clean:
	rm -rf $(VENV) build dist _docs htmlcov .mypy_cache .ruff_cache .coverage* *.egg-info
