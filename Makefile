# Every command sets up .venv by itself on first use. `make help` lists them; `python -m pipeline --help` has more.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules

# ONNX Runtime would otherwise report its use.
export ORT_DISABLE_TELEMETRY := 1

# What a person may set. The values reach the commands through the environment, never as text of a shell line, so
# that blanks, quotes and dollar signs in them stay what they are. TORCH_INDEX: where to find the CPU build of torch
# if pip is configured with no place that has it, for example https://download.pytorch.org/whl/cpu (the default).
VALUES := MODEL ALPHA RHO DATASET CALIBRATION LABELS WEIGHTS SOURCE OUT FILE SEED EPOCHS DEVICE BENCHMARK_MODEL TORCH_INDEX ONLY
MODEL ?= v3_small
$(foreach name,$(VALUES),$(eval override $(name) := $$(value $(name))))
export $(VALUES)
option = $${$1:+"--$2=$$$1"}
VARIANT = "$$MODEL" $(call option,ALPHA,alpha) $(call option,RHO,rho) $(call option,DATASET,dataset)

# The first Python that the project supports; a name that is there but does not run is passed over.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3.14 python3,\
	$(if $(shell $(name) -I pipeline/environment.py --check >/dev/null 2>&1 && echo yes),$(name))))
READY := .venv/ready
BIN := .venv/bin/
RUN = $(BIN)python -m pipeline

help:  ## list the commands
	@awk -F ':.*##' '/^[a-z-]+:.*##/ { printf "make %-14s%s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'variables: $(VALUES), as in: make export MODEL=v3_small ALPHA=0.75 RHO=0.857'

$(READY): requirements.lock requirements-torch.lock pyproject.toml
	@$(or $(PYTHON),$(error no Python from 3.11 to 3.14 found; install one (Debian: sudo apt-get install python3.11-venv) \
		or name it: make PYTHON=/path/to/python3)) -I pipeline/environment.py

setup: $(READY)  ## make .venv from the lock files; the commands below do so by themselves

export: $(READY)  ## trained network to verified .tflite files: MODEL ALPHA RHO DATASET CALIBRATION LABELS WEIGHTS SOURCE OUT
	@$(RUN) export $(VARIANT) $(call option,CALIBRATION,calibration) $(call option,LABELS,labels) \
		$(call option,WEIGHTS,weights) $(call option,SOURCE,source) $(call option,OUT,out)

train: $(READY)  ## train a network: MODEL ALPHA RHO DATASET EPOCHS SEED OUT
	@$(RUN) train $(VARIANT) $(call option,EPOCHS,epochs) $(call option,SEED,seed) $(call option,OUT,out)

data: $(READY)  ## fetch the whole of Fashion-MNIST (Debian's package, no root): OUT
	@$(BIN)python -m pipeline.data $(call option,OUT,out)

evaluate: $(READY)  ## accuracy of a file on the test images: FILE DATASET
	@$(RUN) evaluate "$$FILE" $(call option,DATASET,dataset)

inspect: $(READY)  ## what is in a file: FILE
	@$(RUN) inspect "$$FILE"

bench: $(READY)  ## what an inference costs on a device: MODEL ALPHA RHO DEVICE
	@$(RUN) bench "$$MODEL" $(call option,ALPHA,alpha) $(call option,RHO,rho) $(call option,DEVICE,device)

curves: $(READY)  ## the grid of alpha and rho on a device, checked against the law: MODEL DEVICE
	@$(RUN) curves "$$MODEL" $(call option,DEVICE,device)

report: $(READY)  ## one HTML page of all results, with the plots
	@$(RUN) report

quality: $(READY)  ## int8 against float on ImageNet photographs (v2) or Fashion-MNIST: MODEL
	@$(BIN)python -m pipeline.quality "$$MODEL"

quality-docs: $(READY)  ## measure all that docs/quantization.md says, and write it: WEIGHTS
	@$(BIN)python -m pipeline.quality_page $(call option,WEIGHTS,weights)

quality-arm: $(READY)  ## float16 and int8 of v2 by ARM kernels (emulated), on photographs
	@$(BIN)python -m pipeline.quality_arm

families: $(READY)  ## what float16 and int8 cost every network with weights, on all test images: WEIGHTS
	@$(RUN) families $(call option,WEIGHTS,weights)

diagnose: $(READY)  ## where int8 loses accuracy, layer by layer, and what helps: MODEL
	@$(RUN) diagnose "$$MODEL"

tables: $(READY)  ## the papers' cost tables beside our counts: docs/tables.md
	@$(RUN) tables

mediapipe: $(READY)  ## our ImageNet files in MediaPipe Tasks, in an environment of its own, on real photographs
	@$(BIN)python -m pipeline.peers.mediapipe_tasks

runtimes: $(READY)  ## every exported file on every TFLite runtime: docs/runtimes.md (3 GB of environments)
	@$(RUN) runtimes

compare: $(READY)  ## this project beside its peers: docs/compare.md (8 GB of environments, a night): ONLY (ours, conversion, ...)
	@$(RUN) compare $(call option,ONLY,only)

emulator: $(READY)  ## fetch and build what emulated ARM cores need, without root
	@$(RUN) emulator

gate: $(READY)  ## hold accuracy and instruction counts of the shipped networks to baselines/
	@$(RUN) gate

baseline: $(READY)  ## write baselines/ anew and print what changes
	@$(RUN) gate --update

doctor: $(READY)  ## what this machine can and cannot do, and what to install
	@$(RUN) doctor

check: $(READY)  ## what CI runs: format, lint, types, tests, and the gate
	$(BIN)ruff format --check
	$(BIN)ruff check
	$(BIN)mypy
	$(BIN)pytest
	$(RUN) gate

test: $(READY)  ## the whole test suite
	$(BIN)pytest

bench-export: $(READY)  ## time the export against its targets
	@$(BIN)python -m pipeline.bench_export

lock:  ## resolve the dependencies of pyproject.toml anew into requirements.lock (needs uv)
	uv pip compile pyproject.toml --upgrade --output-file requirements.lock

clean:  ## remove what was built, and the caches; .venv stays
	rm -rf build .mypy_cache .pytest_cache .ruff_cache .hypothesis

.PHONY: help setup export train data evaluate inspect bench curves report quality quality-docs quality-arm families diagnose tables mediapipe runtimes compare emulator gate baseline doctor check test bench-export lock clean
