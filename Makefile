# Two commands for a fresh machine: `make quickstart` and `make test`. Each creates .venv first if needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
# Set this if pip cannot find torch==2.13.0+cpu: PyTorch's index of CPU wheels (see PyTorch's installation page).
TORCH_INDEX_URL ?=
PIP := $(BIN)/pip --disable-pip-version-check
TRAIN := $(BIN)/python -m openrlhf_ktae.cli.train_ppo_ray
QUICKSTART_ARGS ?=
LLM_ARGS ?=
TEST_JOBS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --durations 15

.PHONY: setup setup-gpu lock-gpu check-lock-gpu gpu-contract quickstart quickstart-llm test test-all check unit e2e slow browser images format clean

setup: $(STAMP)

$(STAMP): requirements/cpu.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --no-deps --no-compile $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) \
		-r requirements/cpu.txt || { echo "If torch==2.13.0+cpu was not found: \
	make $(MAKECMDGOALS) TORCH_INDEX_URL=<PyTorch's index of CPU wheels>"; exit 1; }
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # in parallel, unlike pip; some files need a later Python
	$(BIN)/python -c "from openrlhf_ktae.ktae import warm_up; warm_up()"
	touch $@

# A GPU machine, Python 3.11 or 3.12. Options: `python requirements/setup_gpu.py --help`.
setup-gpu:
	$(PYTHON) requirements/setup_gpu.py --venv $(VENV)

# requirements/gpu.txt holds pip's resolution on Linux for each of LOCK_PYTHONS. pip before 23.3 downloads every package.
LOCK_PYTHONS ?= $(PYTHON)
LOCK_VENV := .venv-lock
lock-gpu check-lock-gpu:
	$(PYTHON) -m venv $(LOCK_VENV)
	$(LOCK_VENV)/bin/pip install --quiet --upgrade pip
	$(LOCK_VENV)/bin/python requirements/lock_gpu.py $(if $(filter check%,$@),--check) --python $(LOCK_PYTHONS)

# On a machine without a GPU: install and test the GPU builds, 9 GB; the result goes to docs/gpu.md.
gpu-contract:
	$(PYTHON) requirements/gpu_contract.py --venv .venv-gpu

$(DEV_STAMP): $(STAMP) requirements/dev.txt requirements/report.txt
	$(PIP) install --quiet --no-deps -r requirements/dev.txt -r requirements/report.txt
	touch $@

quickstart: $(STAMP)
	$(TRAIN) --config configs/grpo_ktae/quickstart.yaml $(QUICKSTART_ARGS)

quickstart-llm: $(STAMP)
	$(PIP) install --quiet --no-deps -r requirements/llm.txt
	$(BIN)/python examples/word_problems/make_model.py
	$(BIN)/python examples/word_problems/make_task.py
	$(TRAIN) --config configs/grpo_ktae/quickstart-llm.yaml $(LLM_ARGS)

# About eight minutes on two cores; `make test-all` adds the slow ones.
test: check unit e2e

test-all: test slow

check: $(DEV_STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

unit: $(DEV_STAMP)
	$(PYTEST) -m "not slow" tests/unit tests/contract

e2e: $(DEV_STAMP)
	$(PYTEST) -m "not slow" tests/e2e

slow: $(DEV_STAMP)
	$(PYTEST) -m slow tests/unit tests/contract
	$(PYTEST) -m slow tests/e2e

# Store the figures of ten steps that every commit must reproduce: after a change that is meant to move them, or for a
# processor family without an entry. They go to tests/e2e/data/reference_trajectory.json.
.PHONY: reference
reference: $(DEV_STAMP)
	$(BIN)/python tests/e2e/reference.py

# Debian: apt install chromium chromium-driver. Screenshots go to runs/screenshots, or to KTAE_SCREENSHOTS.
browser: $(DEV_STAMP)
	$(PIP) install --quiet --no-deps -r requirements/browser.txt
	$(BIN)/python -m pytest tests/browser

# The pictures of the README, from a run of the quickstart. Needs chromium.
images: $(DEV_STAMP)
	$(TRAIN) --config configs/grpo_ktae/quickstart.yaml --run.dir runs/images/quickstart --ktae.record_rollouts 10 --eval_steps 10
	$(BIN)/python -m openrlhf_ktae.cli.report runs/images/quickstart
	for page in tokens runs; do chromium --headless=new --no-sandbox --disable-gpu --hide-scrollbars --window-size=1280,690 \
		--virtual-time-budget=4000 --screenshot=docs/images/$$page.png "file://$(CURDIR)/runs/images/quickstart/report/$$page.html"; done

format: $(DEV_STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist *.egg-info

# On a machine with a GPU, ten minutes; paste gpu-check.json into a report. `make gpu-check CHECK_ARGS=--help`.
CHECK_PYTHON ?= $(BIN)/python
CHECK_ARGS ?=
.PHONY: gpu-check
gpu-check:
	@test -x $(CHECK_PYTHON) || { echo "no $(CHECK_PYTHON): run make setup-gpu first (make setup on a CPU machine)"; exit 2; }
	$(CHECK_PYTHON) -m openrlhf_ktae.cli.gpu_check $(CHECK_ARGS)
