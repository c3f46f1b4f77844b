# make demo   the robot in simulation, driven by the embedded policy; writes out/demo
# make test   the test suite, with real ROS 2 middleware
# make check  ruff, mypy --strict
# make bench  the figures of docs/benchmarks.md
# make env    only the environment (.venv); TORCH="…" chooses another torch than the CPU build, PYTHON=… the interpreter
# make lock   resolve constraints.txt anew

VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin
export VENV TORCH PYTHON

# ROS 2 as wheels: the ament index lies in the environment, traffic stays on this machine, and each make has its own domain
# (0-100 keeps the ports below the ephemeral range).
export AMENT_PREFIX_PATH := $(VENV)
export ROS_AUTOMATIC_DISCOVERY_RANGE := LOCALHOST
export ROS_DOMAIN_ID ?= $(shell echo $$(($$$$ % 100 + 1)))
export MUJOCO_GL ?= egl
export OMP_NUM_THREADS ?= 1

.PHONY: env demo test check bench lock clean
.NOTPARALLEL:

env:
	@tools/make_env

demo: env
	$(BIN)/pi05 demo $(ARGS)

test: env
	$(BIN)/python -m pytest $(ARGS)

check: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: env
	$(BIN)/pi05 bench stack --json out/bench/stack.json

lock: env
	$(BIN)/python -m pip install --quiet uv
	tools/lock $(BIN)/uv

clean:
	rm -rf build out .mypy_cache .pytest_cache .ruff_cache
