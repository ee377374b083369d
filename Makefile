# make demo   trains plain L1 and both steps on a few photos; prints a table and draws an uncertainty map
# make study  compares losses on the same photos, over three seeds
# make bench  measures training and testing against the authors' way; 17 minutes on 2 cores
# make gpu    all measurements and tests that need a GPU; at most 8 minutes
# make soak   injects 50 faults into trainings and resumes them; 10 minutes on 2 cores
# make fuzz   mutates 2,000 ymls, and more checkpoints and images; 8 minutes on 2 cores
# make test   runs the test suite
# make lint   runs ruff and mypy
# make docs   builds the documentation site in build/docs; make docs-links checks its external links (needs a network)
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# named after the folder, so that a clone that was moved is installed again
INSTALLED := $(VENV)/installed$(subst /,-,$(CURDIR))

.PHONY: demo study bench gpu soak fuzz test lint docs docs-links clean
.DELETE_ON_ERROR:

demo: $(INSTALLED)
	$(BIN)/python scripts/demo.py

study: $(INSTALLED)
	$(BIN)/python -c "from udl_plugin.prepare.demo_data import write_demo_data; write_demo_data('datasets/demo')"
	$(BIN)/python -m udl_plugin.cli.study options/studies/demo.yml --jobs 2

bench: $(INSTALLED)
	$(BIN)/python scripts/benchmark.py

gpu: $(INSTALLED)
	$(BIN)/python scripts/gpu_check.py

soak: $(INSTALLED)
	$(BIN)/python -u tests/soak/soak.py

fuzz: $(INSTALLED)
	UDL_FUZZ=2000 $(BIN)/python -m pytest tests/fuzz -rP -q

test: $(INSTALLED)
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: $(INSTALLED)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

docs: $(INSTALLED)
	@$(BIN)/python -c 'import furo, myst_parser, sphinx_copybutton' 2>/dev/null || \
	  $(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -b html docs build/docs

docs-links: docs
	$(BIN)/python -m sphinx -b linkcheck docs build/docs-links

# opencv-python needs libGL and glib of a desktop; without them, install opencv-python-headless instead
$(INSTALLED): pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' || { \
	  echo "Python 3.9 or later is required, but $(PYTHON) is"; \
	  $(PYTHON) --version; echo "Select another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing torch, basicsr and other requirements into $(VENV): about 6 GB, some minutes the first time."
	$(BIN)/python -m pip install -e '.[dev]'
	@$(BIN)/python -c 'import cv2' 2>/dev/null || { \
	  echo "opencv-python lacks desktop libraries here; installing opencv-python-headless instead."; \
	  $(BIN)/python -m pip uninstall --quiet --yes opencv-python && \
	  $(BIN)/python -m pip install --quiet --force-reinstall --no-deps opencv-python-headless && \
	  $(BIN)/python -c 'import cv2'; }
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info
