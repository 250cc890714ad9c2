# The verbs of this project; CI runs the same ones.  `make` alone lists them.
#
# Everything happens in .venv, whatever environment is active outside.  Any verb makes .venv first
# where it is missing, and renews it where pyproject.toml, constraints.txt or this file changed.
# ARGS is handed on: make demo ARGS="--out runs/mine", make test ARGS="-k topk".  JOBS=0 runs the
# tests in one process, as a debugger needs it.

.DEFAULT_GOAL := help
.PHONY: help setup demo test fire lint bench docs constraints

BIN := .venv/bin
READY := .venv/setup-complete
JOBS ?= 2
FIRE ?= full
CANDIDATES := $(or $(PYTHON),python3 python3.13 python3.12 python3.11)

unexport VIRTUAL_ENV CONDA_PREFIX PYTHONHOME PYTHONPATH
# Without byte code beside the sources every process spends 7 s more on `import torch`.
unexport PYTHONDONTWRITEBYTECODE
export UV_PYTHON_DOWNLOADS := never
# Wheels of half a gigabyte over slow lines: uv's own 30 s and 3 tries are too few.
export UV_HTTP_TIMEOUT ?= 300
export UV_HTTP_RETRIES ?= 6

# Sets `python` to the first candidate that will do, or ends with what was found and what to do.
define choose_python
rule='import sys, ensurepip, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))'; \
found=; \
for python in $(CANDIDATES); do \
    "$$python" -c "$$rule" 2>/dev/null && break; \
    version=$$("$$python" --version 2>&1) || version="not there"; \
    found="$$found$${found:+, }$$python ($$version)"; \
    python=; \
done; \
if [ -z "$$python" ]; then \
    echo "Deconvoy needs Python 3.11, 3.12 or 3.13 with its venv module; found $$found." >&2; \
    echo "Install one (Debian, Ubuntu: apt install python3 python3-venv)" \
        "or name one: make setup PYTHON=/path/to/python3.12" >&2; \
    exit 1; \
fi
endef

help:  ## list these verbs
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1 | \2/p' Makefile | awk -F'|' '{printf "%-20s%s\n", $$1, $$2}'

setup: $(READY)  ## make .venv and install Deconvoy in it with every extra

demo: $(READY)  ## train, analyse and draw on built-in data: no GPU, no network
	@$(BIN)/deconvoy demo $(ARGS)

test: $(READY)  ## run the tests, in JOBS processes (2)
	@$(BIN)/python -m pytest -q --numprocesses=$(JOBS) --dist=loadfile $(ARGS)

# At full length one after another: figures of load are of a machine that does nothing else.
fire: $(READY)  ## run the tests under fire, for hours, or for minutes: FIRE=short
	@$(BIN)/python -m pytest -q --fire=$(FIRE) tests/fire $(ARGS) \
	    $(if $(filter short,$(FIRE)),--numprocesses=$(JOBS) --dist=loadfile)

lint: $(READY)  ## check style, types and which package may import which
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: $(READY)  ## measure speed on this machine
	@$(BIN)/python -m benchmarks $(ARGS)

docs: $(READY)  ## write the generated pages below docs/ anew, and what the service knows of models
	@$(BIN)/python -c "from deconvoy.format_page import as_markdown; print(as_markdown(), end='')" \
	    > docs/run-format.md
	@$(BIN)/python -c "from pathlib import Path; from workers.support import write; \
	    write(Path('docs/models.md'), Path('service/torchvision.json'))"
	@$(BIN)/python -c "from deconvoy.spec_page import as_markdown; print(as_markdown(), end='')" \
	    > docs/job-spec.md

constraints: $(READY)  ## write constraints.txt anew with the newest versions that pyproject.toml allows
	@sed -n '/^#/p' constraints.txt >.venv/constraints.txt
	@$(BIN)/uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
	    --upgrade --no-header --no-annotate --quiet >>.venv/constraints.txt
	@mv .venv/constraints.txt constraints.txt

# The file stands for a setup that ran to its end.  It goes first and comes back last, so where it
# is missing the last setup was cut short, and .venv, in whatever state, is made from nothing.
$(READY): pyproject.toml constraints.txt Makefile
	@if [ -f $@ ] && $(BIN)/python -c ''; then \
	    rm -f $@; \
	else \
	    $(choose_python); \
	    echo "Setting up .venv with $$("$$python" --version) ($$python). The first time this takes" \
	        "some minutes: 3 GB to fetch, 6 GB on disk, nearly all of it torch."; \
	    "$$python" -m venv --clear .venv; \
	fi
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    "$$(sed -n 's/^\(uv==[0-9.]*\).*/\1/p' constraints.txt)"
	@$(BIN)/uv pip install --python $(BIN)/python --constraints constraints.txt \
	    --build-constraints constraints.txt --group dev --editable '.[all]'
	@touch $@
