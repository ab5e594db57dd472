# The two commands that matter: `make demo` and `make test`. Each first makes the virtual environment.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.PHONY: demo test lab notebooks figures bench lint clean help

help:            ## list the targets
	@grep -E '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

demo: $(READY)   ## align a language model, from base model to RLHF, in about two minutes
	$(BIN)/python -m rlhf_minimal demo

test: $(READY)   ## all tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

lab: $(READY)    ## open the lessons in JupyterLab
	$(BIN)/jupyter lab lessons

notebooks: $(READY) ## build lessons/ and solutions/ from their sources, solutions executed
	$(BIN)/python -m autograder build

figures: $(READY) ## draw every figure from its recorded numbers
	@for script in figures/*.py; do echo "$$script"; $(BIN)/python $$script || exit 1; done

bench: .venv-bench/.ready .venv-bench-ppo/.ready ## speed and memory beside the peers, about 45 minutes
	.venv-bench/bin/python benchmarks/run.py $(BENCH)

# The peers stay out of the course's environment; TRL's PPO is found in an older TRL only.
.venv-bench/.ready: benchmarks/requirements.txt requirements.txt constraints.txt
.venv-bench-ppo/.ready: benchmarks/requirements-ppo.txt requirements.txt constraints.txt
.venv-bench/.ready .venv-bench-ppo/.ready:
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r $<
	touch $@

lint: $(READY)   ## style
	$(BIN)/ruff check .

$(READY): requirements.txt constraints.txt pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
	    -c constraints.txt -r requirements.txt -e ".[dev]"
	touch $(READY)

clean:           ## remove the virtual environment and caches
	rm -rf $(VENV) .venv-bench .venv-bench-ppo .pytest_cache .ruff_cache .hypothesis out
