# `make demo` restores sample pictures (core only, no torch); `make test` runs all that CI runs.
# Each sets itself up. PYTHON=python3.12 picks the interpreter; TORCH_INDEX=URL adds an index
# with PyTorch's CPU wheels.
SHELL := /bin/bash
PYTHON ?= python3
TORCH_INDEX ?=
VENV ?= .venv
RUN := $(VENV)/bin/python
SETUP = $(if $(filter command,$(origin RUN)),links,venv-dev)
export PYTHON TORCH_INDEX VENV

# Training: where the pictures are, how long, which preset and track.
DATA ?= ../shared/data/train
MINUTES ?= 60
SHARP_MINUTES ?= 30
SLICE ?=
PRESET ?= tiny
TRACK ?= free
RUNS ?= runs
free_DATA := --data $(DATA)/free_photos=0.6 --data $(DATA)/free_faces=0.4
research_DATA := --data $(DATA)/faces=0.9 --data $(DATA)/general=0.1

.PHONY: demo test check lint types table bench train-cpu gpu-train gpu-check gpu-bench kernels-gate kernels-ptx kernels-triton bindings bindings-fetch ablation links venv-core venv-dev clean
demo: venv-core
	@$(RUN) -m fastrestore demo --output demo
test: venv-dev
	@OMP_NUM_THREADS=1 FASTRESTORE_REQUIRE=torch,onnx $(RUN) -m pytest $(ARGS)
check: lint types test
lint: venv-dev
	@$(RUN) -m ruff check . && $(RUN) -m ruff format --check .
types: venv-dev
	@$(RUN) -m mypy
table: venv-dev
	@OMP_NUM_THREADS=1 $(RUN) benchmarks/bench_paper.py $(ARGS)
# Stage 1, then stage 2 from its weights. SLICE=9 stops after nine minutes in all; the same command
# goes on, and exits with 1 as long as something is left.
define train
@end=$$(( $$(date +%s) + 60 * $(or $(SLICE),100000) )); \
stage() { \
  $(RUN) -m fastrestore train --preset $(PRESET) --track $(TRACK) $($(TRACK)_DATA) $(1) \
    --slice $$(( (end - $$(date +%s)) / 60 + 1 )) "$$@" $(ARGS); }; \
$(RUN) -c "from fastrestore.train import perceptual as p; p.find_weights(p.VGG_FILE)" && \
stage $(3) --recipe psnr --minutes $(MINUTES) --output $(RUNS)/$(PRESET)-$(TRACK)$(2) && \
stage --recipe sharp --minutes $(SHARP_MINUTES) --from $(RUNS)/$(PRESET)-$(TRACK)$(2) \
  --output $(RUNS)/$(PRESET)-$(TRACK)-sharp$(2)
endef
train-cpu: export OMP_NUM_THREADS := 1
train-cpu: export OMP_WAIT_POLICY := PASSIVE
train-cpu: venv-dev
	$(call train,--decay 0.05,,--batch 12)
gpu-train: SLICE := $(or $(SLICE),9)
gpu-train: venv-dev
	$(call train,--device cuda --workers 8 --decay 0.05 --batch 64,-gpu,)
ablation: venv-dev
	@OMP_NUM_THREADS=1 nice -n 10 $(RUN) benchmarks/ablation.py $(ARGS)
# The README's table of speed and its plots; idle, or the report says so.
bench: venv-dev
	@$(RUN) -m fastrestore bench --model tiny --model tiny-u8 --backend ort --backend openvino \
	  --size 256x256 --size 512x512 --size 1280x720 --rival telea --rival navier-stokes --rival nlm \
	  --rival bilateral --output benchmarks/results/bench-cpu.json --csv benchmarks/results/bench-cpu.csv $(ARGS)
	@$(RUN) -m fastrestore bench --from benchmarks/results/bench-cpu.json --level engine \
	  --plot benchmarks/results/bench-cpu-engine.svg >/dev/null
	@$(RUN) -m fastrestore bench --from benchmarks/results/bench-cpu.json --level host --size 512x512 \
	  --plot benchmarks/results/bench-cpu-host.svg >/dev/null
# On a card; RUN=python takes the environment at hand, with its torch for CUDA.
# gpu-check: every test that needs one, then our kernels on small cases under compute-sanitizer.
gpu-check: $(SETUP)
	@$(RUN) -c 'import sys, torch; torch.cuda.is_available() or sys.exit("gpu-check: no CUDA device")'
	@timeout 300 $(RUN) -m pytest -m gpu --runslow $(ARGS)
	@command -v compute-sanitizer >/dev/null || \
	  { echo "gpu-check: left out memcheck, racecheck: no compute-sanitizer (CUDA toolkit) on PATH"; exit; }; \
	for tool in memcheck racecheck; do \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 120 compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(RUN) -m pytest -q -m gpu tests/kernels/test_device.py -k kernels_agree_with || exit 1; done
# Nine minutes; the same command goes on, and exits with 1 as long as something is left.
gpu-bench: $(SETUP)
	@PYTHONPATH=. $(RUN) benchmarks/bench_kernels.py --minutes 9 $(ARGS)
# What every kernel takes on every chip, a process a chip (with --update one after the other, for they
# write one file); no GPU needed.
kernels-gate: $(SETUP)
	@$(RUN) -c 'from fastrestore.kernels.assemble import ARCHS; print(*ARCHS)' | xargs -n 1 -P $(if $(findstring --update,$(ARGS)),1,$$(nproc)) \
	  $(RUN) -m fastrestore.kernels.compile gate $(ARGS) --arch
# The PTX that ships, written anew after a change.
kernels-ptx: $(SETUP)
	@$(RUN) -m fastrestore.kernels.compile ptx $(ARGS)
# The kernels' tests on another Triton, which comes into a folder of its own.
TRITON ?= 3.6.0
kernels-triton: $(SETUP)
	@[ -d .triton/$(TRITON) ] || \
	  $(RUN) -m pip install -q --no-deps --target .triton/$(TRITON) triton==$(TRITON)
	@PYTHONPATH=.triton/$(TRITON) $(RUN) -m pytest tests/kernels $(ARGS)
BINDINGS ?= .bindings
# TensorRT's names, from the Python bindings of four versions (1 MB each; no TensorRT, no GPU).
bindings: bindings-fetch
	@FASTRESTORE_BINDINGS=$(abspath $(BINDINGS)) OMP_NUM_THREADS=1 \
	  $(RUN) -m pytest tests/export/test_bindings.py $(ARGS)
bindings-fetch: $(SETUP)
	@for v in 10.3.0 10.9.0.34 10.16.1.11 11.4.0.106; do [ -d $(BINDINGS)/$$v/tensorrt_bindings ] || \
	  $(RUN) -m pip install -q --no-deps --target $(BINDINGS)/$$v tensorrt-cu12-bindings==$$v || exit 1; done
venv-core: links
	@.ci/venv core
venv-dev: links
	@.ci/venv dev
# fastrestore/{kernels,export,train} are relative links, committed. Made again here if a zip
# download or a checkout without link support lost them.
links:
	@for p in kernels export train; do \
	  [ -d fastrestore/$$p ] || { rm -f fastrestore/$$p; ln -s ../$$p fastrestore/$$p; }; done
clean:
	rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis demo
