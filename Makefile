# Two commands for a fresh machine: `make quickstart` and `make test`.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --quiet --disable-pip-version-check
OUT := output/quickstart
CONFIG := segformer/segformer_toy

.PHONY: help install quickstart test lint soak clean

help:
	@echo "make quickstart  install into $(VENV), make toy data, train, evaluate, film the result"
	@echo "make test        install, lint, run all tests"
	@echo "make lint        ruff and mypy alone"
	@echo "make soak        the long tests"
	@echo "make clean       remove outputs and caches (not $(VENV), not data)"

install: $(VENV)/.installed

$(VENV)/.installed: requirements-lock.txt setup.py
	$(PYTHON) -m venv $(VENV)
	@if $(PY) -c "import sys; sys.exit(sys.version_info < (3, 11))"; then \
	    echo "installing requirements-lock.txt and vss2 into $(VENV)"; \
	    $(PIP) install -r requirements-lock.txt && \
	    $(PIP) install --no-deps --no-build-isolation -e .; \
	else \
	    echo "Python 3.10: installing vss2 by its lower bounds into $(VENV)"; \
	    $(PIP) install -e ".[dev]"; \
	fi
	@touch $@

# A second call goes on where an interrupted one stopped.
quickstart: install
	$(PY) tools/prepare_data.py toy --preview $(OUT)/toy_world.png
	$(PY) tools/train_net.py --config-file $(CONFIG) --resume train.output_dir=$(OUT)
	$(PY) tools/train_net.py --config-file $(CONFIG) --eval-only \
	    train.output_dir=$(OUT)/evaluation train.init_checkpoint=$(OUT)/model_final.pth
	$(PY) tools/predict.py --config-file $(CONFIG) --weights $(OUT)/model_final.pth \
	    --input "$$($(PY) -c 'from vss2.data.datasets.toy import make_toy_world as world; print(world())')/data/val_0000/origin" \
	    --output $(OUT)/prediction --overwrite
	@echo
	@echo "Trained model:   $(OUT)/model_final.pth"
	@echo "Scores:          $(OUT)/evaluation/inference/results.json"
	@echo "Overlay video:   $(OUT)/prediction/overlay.mp4"
	@echo "Contact sheet:   $(OUT)/prediction/contact_sheet.png"

# One thread each: two workers with all threads would wait for one another.
test: install lint
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadfile

lint: install
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy vss2

soak: install
	$(PY) -m pytest -m soak

clean:
	rm -rf output build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
