"""Check closed questions: likelihoods do not depend on the batch, and the commands take rows with answer choices."""

import copy
import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from helpers.architectures import PROMPT, ROWS, SETTINGS, VOCABULARY, build, row_logits
from helpers.cards import check_card
from helpers.models import tiny_bart, tiny_llama, tiny_t5
from helpers.rows import PEOPLE, PLACES, question_rows, write_jsonl
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tokenizers import Regex
from tokenizers.normalizers import Replace
from transformers import DynamicCache

from prompt_tuning import (
    Encoder,
    PromptTuningArguments,
    PromptTuningTrainer,
    Template,
    add_soft_prompt,
    encode,
    load_metrics,
    prompt_config,
)
from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.cli.main import main
from prompt_tuning.engine.likelihood import choice_scores, log_likelihoods, target_log_likelihoods
from prompt_tuning.engine.shared_prefix import compute_prompt_once
from prompt_tuning.errors import TemplateError

SOURCES = [row[:4] for row in ROWS[:1]] + [row[:2] for row in ROWS[1:2]] + ROWS[2:]
CHOICES = [[[9], [8]], [[5, 6, 7], [5, 6, 9], [11]], [[30, 31]], [[40], [41, 42, 43, 44], [41]]]
# The source ends with a name, so that rows get different answers.
PLACE = Template(
    "{{ context }} {{ question.split()[2] }}", "{{ answers.text[0] }}", answer_choices=" ||| ".join(PLACES)
)
LONG = [5, *range(20, 40)]  # Two rows start with it, and it is read once for both.


def closed_rows(count, shift=0):
    """Make questions whose answers are yes or no."""
    rows = []
    for number in range(count):
        person, place = PEOPLE[number % 10], PLACES[(number + shift) % 10]
        asked = place if number % 2 else PLACES[(number + shift + 3) % 10]
        context = f"{person} was born in the spring and lives in {place}."
        if number % 3 == 0:
            context = f"It is a long story. {context} The garden is full of old trees and young birds."
        answer = {"text": ["yes" if asked == place else "no"]}
        rows.append({"context": context, "question": f"Does {person} live in {asked}?", "answers": answer})
    return rows


def likelihood(logits, choice):
    """Return the sum of a choice's log-probabilities by its `[len(choice), V]` logits."""
    return logits.log_softmax(-1)[torch.arange(len(choice)), choice].sum().item()


def close(scores, expected):
    assert len(scores) == len(expected)
    for row_scores, expected_scores in zip(scores, expected, strict=True):
        assert row_scores == pytest.approx(expected_scores, abs=1e-5, rel=3e-6)  # float32 rounds by 6e-8 of a logit.


def reference(base, prompt, sources=SOURCES, choices=CHOICES):
    """Return the likelihood of each choice after its source, from one run of the base model for each choice."""
    return [
        [likelihood(row_logits(base, prompt, [*source, *choice])[len(source) - 1 : -1], choice) for choice in of_row]
        for source, of_row in zip(sources, choices, strict=True)
    ]


@pytest.mark.parametrize("method", ["soft prompt", "nothing"])
@pytest.mark.parametrize("architecture", SETTINGS)
def test_a_choice_of_a_causal_model_has_the_likelihood_of_a_single_row_in_any_batch(architecture, method):
    base = build(architecture)
    prompt = base.get_input_embeddings().weight[10 : 10 + PROMPT].clone()
    expected = reference(base, prompt if method == "soft prompt" else prompt[:0])
    model = add_soft_prompt(base, prompt_config(base, PROMPT), prompt).eval() if method == "soft prompt" else base
    close(log_likelihoods(model, SOURCES, CHOICES), expected)
    alone = [log_likelihoods(model, [s], [c])[0] for s, c in zip(SOURCES, CHOICES, strict=True)]
    close(alone, expected)


def test_likelihoods_are_the_same_without_sdpa_and_in_plain_peft():
    base = build("llama")
    prompt = base.get_input_embeddings().weight[10 : 10 + PROMPT].clone()
    expected, unprompted = reference(base, prompt), reference(base, prompt[:0])
    base.set_attn_implementation("eager")
    close(log_likelihoods(base, SOURCES, CHOICES), unprompted)
    model = add_soft_prompt(base, prompt_config(base, PROMPT), prompt).eval()
    assert model.execution_path.name == "cache"
    close(log_likelihoods(model, SOURCES, CHOICES), expected)
    with model.disable_adapter():
        close(log_likelihoods(model, SOURCES, CHOICES), unprompted)
    plain = get_peft_model(build("llama"), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=PROMPT))
    plain.prompt_encoder["default"].embedding.weight.data.copy_(prompt)
    close(log_likelihoods(plain.eval(), SOURCES, CHOICES), expected)


def test_a_prefix_lora_and_a_disabled_prompt_have_the_likelihoods_of_single_rows():
    base = build("llama")
    unprompted = reference(base, base.get_input_embeddings().weight[:0])
    model = add_soft_prompt(base, prompt_config(base, PROMPT, PromptArguments(method="prefix_tuning"))).eval()
    expected = []
    for source, of_row in zip(SOURCES, CHOICES, strict=True):
        expected.append([])
        for choice in of_row:
            logits = base(input_ids=torch.tensor([[*source, *choice]]), cache=model.get_prompt(batch_size=1)).logits[
                0, len(source) - 1 : -1
            ]
            expected[-1].append(likelihood(logits, choice))
    close(log_likelihoods(model, SOURCES, CHOICES), expected)
    assert isinstance(model.get_prompt(batch_size=1), DynamicCache) and expected != unprompted
    with model.disable_adapter():
        close(log_likelihoods(model, SOURCES, CHOICES), unprompted)

    lora = get_peft_model(build("llama"), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear")).eval()
    for name, parameter in lora.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    tuned = reference(lora.get_base_model(), base.get_input_embeddings().weight[:0])
    close(log_likelihoods(lora, SOURCES, CHOICES), tuned)
    with lora.disable_adapter():
        close(log_likelihoods(lora, SOURCES, CHOICES), unprompted)


@pytest.mark.parametrize("build", [tiny_t5, tiny_bart])
@pytest.mark.parametrize("method", ["nothing", "prompt_tuning", "prefix_tuning", "lora"])
def test_an_encoder_decoder_scores_with_its_decoder_and_reads_each_source_once(build, method, monkeypatch):
    base = model = build(VOCABULARY)
    if method == "lora":
        model = get_peft_model(base, LoraConfig(task_type="SEQ_2_SEQ_LM", target_modules=["q_proj", "v_proj", "q"]))
    elif method != "nothing":
        model = add_soft_prompt(base, prompt_config(base, PROMPT, PromptArguments(method=method)))
    model.eval()
    prompt = model.get_prompt_embedding_to_save("default") if method == "prompt_tuning" else torch.zeros(0, 32)
    expected = []
    for source, of_row in zip(SOURCES, CHOICES, strict=True):
        expected.append([])
        for choice in of_row:
            labels = torch.tensor([choice])
            if method == "prefix_tuning":
                logits = model(input_ids=torch.tensor([source]), labels=labels).logits[0]
            else:
                embeds = torch.cat([prompt, base.get_input_embeddings()(torch.tensor(source))])[None]
                logits = base(inputs_embeds=embeds, labels=labels).logits[0]
            expected[-1].append(likelihood(logits, choice))
    read = []
    base.get_encoder().register_forward_hook(lambda module, args, output: read.append(1))
    close(log_likelihoods(model, SOURCES, CHOICES), expected)
    assert len(read) == 1
    close([log_likelihoods(model, [s], [c])[0] for s, c in zip(SOURCES, CHOICES, strict=True)], expected)


def test_a_source_and_a_common_prefix_of_sources_are_read_once():
    base = build("llama")
    model = add_soft_prompt(base, prompt_config(base, PROMPT)).eval()
    sources = [[*LONG, 50, 51], [*LONG, 52], [60, 61]]
    choices = [[[9], [8], [7, 6]], [[9], [8]], [[5, 6, 7], [5, 6, 9]]]
    expected = reference(base, model.get_prompt_embedding_to_save("default"), sources, choices)
    read = []
    base.get_input_embeddings().register_forward_hook(lambda module, args, output: read.append(args[0].numel()))
    with compute_prompt_once(model, LONG[:1]):  # The last row does not start with this token.
        close(log_likelihoods(model, sources, choices), expected)
    # The model reads the passage, the rest of each source without its last token, and that token before each segment.
    assert sum(read) - len(LONG) == (1 + 0 + 1) + (1 + 2) + 1 + 3
    with compute_prompt_once(model, LONG):
        close(log_likelihoods(model, sources[:2], choices[:2]), expected[:2])


def test_each_normalisation_divides_by_what_its_name_says(tokenizer):
    base = build("llama", len(tokenizer))
    texts = [["naïve", "no"], ["yes", "perhaps so"]]
    ids = [[tokenizer(" " + text).input_ids for text in of_row] for of_row in texts]
    sums = reference(base, base.get_input_embeddings().weight[:0], SOURCES[:2], ids)
    scores = {
        name: choice_scores(base, tokenizer, SOURCES[:2], texts, ids, normalization=name)
        for name in ("none", "tokens", "characters", "bytes", "unconditional")
    }
    close(scores["none"], sums)
    close(scores["tokens"], [[s / len(i) for s, i in zip(*row, strict=True)] for row in zip(sums, ids, strict=True)])
    close(scores["characters"], [[sums[0][0] / 5, sums[0][1] / 2], [sums[1][0] / 3, sums[1][1] / 10]])
    close(scores["bytes"], [[sums[0][0] / 6, sums[0][1] / 2], [sums[1][0] / 3, sums[1][1] / 10]])
    without = reference(base, base.get_input_embeddings().weight[:0], [[tokenizer.eos_token_id]] * 2, ids)
    close(
        scores["unconditional"],
        [[s - w for s, w in zip(*row, strict=True)] for row in zip(sums, without, strict=True)],
    )


def encoded(tokenizer, rows, encoder_decoder=False):
    encoder = Encoder(PLACE, tokenizer, encoder_decoder, max_target_tokens=12)
    dataset, report = encode(Dataset.from_list(rows), encoder, training=True)
    assert not report.problems
    return dataset


@pytest.mark.parametrize("architecture", [tiny_llama, tiny_t5])
def test_target_log_likelihoods_add_up_to_the_evaluation_loss(architecture, tokenizer, tmp_path):
    base = architecture(len(tokenizer))
    torch.manual_seed(2)
    model = add_soft_prompt(base, prompt_config(base, 6)).eval()
    rows = encoded(tokenizer, question_rows(11), model.config.is_encoder_decoder)
    sums, counts = target_log_likelihoods(model, rows)
    assert counts.tolist() == [sum(label != -100 for label in labels) for labels in rows["labels"]]
    few, _ = target_log_likelihoods(model, rows, max_rows=2)
    alone = [target_log_likelihoods(model, rows.select([number]))[0].item() for number in range(11)]
    assert few.tolist() == pytest.approx(sums.tolist(), abs=1e-5) == alone
    loss = trainer(model, tokenizer, tmp_path, rows).evaluate()["eval_loss"]
    assert -sums.sum().item() / counts.sum().item() == pytest.approx(loss, abs=1e-5)


def trainer(model, tokenizer, folder, rows, normalization="none", **settings):
    return PromptTuningTrainer(
        model=model,
        args=PromptTuningArguments(output_dir=str(folder), use_cpu=True, disable_tqdm=True, max_steps=4, **settings),
        processing_class=tokenizer,
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=load_metrics(["exact_match"]),
        choice_normalization=normalization,
    )


@pytest.mark.parametrize("architecture", [tiny_llama, tiny_t5])
def test_the_trainer_chooses_the_same_in_any_batch_and_scores_it(architecture, tokenizer, tmp_path, monkeypatch):
    base = architecture(len(tokenizer))
    torch.manual_seed(2)
    model = add_soft_prompt(base, prompt_config(base, 6))
    rows = encoded(tokenizer, question_rows(11), model.config.is_encoder_decoder)
    run = trainer(model, tokenizer, tmp_path, rows, "unconditional", eval_strategy="steps", eval_steps=2)
    chosen = run.predict_texts(rows)
    assert len(set(chosen)) > 1
    for settings in ({"per_device_eval_batch_size": 3}, {"per_device_eval_batch_tokens": 1}):
        assert trainer(model, tokenizer, tmp_path, rows, "unconditional", **settings).predict_texts(rows) == chosen
    assert run.predict_texts(rows.select([8, 2])) == [chosen[8], chosen[2]]
    monkeypatch.setattr(tokenizer, "padding_side", "left")
    assert run.predict_texts(rows) == chosen
    monkeypatch.undo()
    right = sum([text] == row["answers"]["text"] for text, row in zip(chosen, question_rows(11), strict=True))
    assert run.evaluate()["eval_exact_match"] == pytest.approx(100 * right / 11)
    assert run.predict(rows).predictions.shape == (11, 1)
    run.state.log_history.clear()
    run.train()
    assert [log["step"] for log in run.state.log_history if "eval_exact_match" in log] == [2, 4]
    open_rows = rows.remove_columns(["choices", "choice_ids"])
    run.generation_kwargs["max_new_tokens"] = 3
    assert not set(run.predict_texts(open_rows)) <= set(PLACES)  # Rows without choices are generated.


@pytest.fixture
def closed_recipe(recipe_file, tmp_path):
    for split, count, shift in (("train", 24, 0), ("validation", 6, 3), ("test", 9, 5)):
        write_jsonl(tmp_path / f"{split}.jsonl", closed_rows(count, shift))

    def write(**changes):
        return recipe_file(**({"template": "question_answering/yes_no", "max_source_tokens": 128} | changes))

    return write


@pytest.mark.parametrize(
    "settings",
    [
        {"metrics": "[exact_match]"},
        {"method": "prefix_tuning", "choice_normalization": "unconditional"},
        {"method": "lora", "num_virtual_tokens": None},
        {"model": "t5", "choice_normalization": "tokens"},
        {"model": "bart", "method": "prefix_tuning"},
    ],
    ids=str,
)
def test_train_evaluate_and_predict_choose_the_same_answers(settings, closed_recipe, model_folders, tmp_path, capsys):
    changes = {key: value for key, value in settings.items() if key != "model"}
    recipe = closed_recipe(model_name_or_path=model_folders[settings.get("model", "llama")], **changes)
    assert main(["train", str(recipe), "--learning_rate", "0.3", "--eval_strategy", "steps", "--eval_steps", "2"]) == 0
    run = tmp_path / "run"
    printed = capsys.readouterr().out
    name = "lora" if settings.get("method") == "lora" else "soft_prompt"
    results = json.loads((run / "results.json").read_text())
    assert results["decoding"] == {"choice_normalization": settings.get("choice_normalization", "none")}
    rows = [json.loads(line) for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    for tuned in (name, "hard_prompt"):
        assert {row[tuned] for row in rows} <= {"yes", "no"}
        right = sum(row[tuned] == row["references"][0] for row in rows)
        assert results[tuned]["exact_match"] == pytest.approx(100 * right / 9, abs=0.01)
        taken = results["answers"]["taken"][tuned]
        assert taken == Counter(row[tuned] for row in rows) and sum(taken.values()) == 9
    expected = {text: sum(row["references"] == [text] for row in rows) for text in ("no", "yes")}
    assert results["answers"]["expected"] == expected and expected["no"] > expected["yes"] > 0
    always = results["answers"]["always"]
    assert always["answer"] == "no" and always["exact_match"] == pytest.approx(100 * expected["no"] / 9, abs=0.01)
    for line in (f"expected: no {expected['no']}, yes {expected['yes']}", "always no: "):
        assert line in printed and line in (run / "report.html").read_text()
    if name == "soft_prompt":
        by = settings.get("choice_normalization")
        sentence = "; the most likely of the row's choices" + (f", normalised by {by};" if by else ";")
        card = check_card(run / "README.md").text
        assert sentence in card and f"```text\nexpected: no {expected['no']}, yes {expected['yes']}\n" in card

    again = ["--adapter", str(run), "--output_dir", str(tmp_path / "again"), "--per_device_eval_batch_size", "2"]
    assert main(["evaluate", str(recipe), *again]) == 0
    assert json.loads((tmp_path / "again" / "results.json").read_text())[name] == results[name]
    source, output = tmp_path / "test.jsonl", tmp_path / "predicted.jsonl"
    arguments = ["--adapter", str(run), "--input", str(source), "--output", str(output), "--batch_size", "2"]
    assert main(["predict", *arguments]) == 0
    assert [json.loads(line)["prediction"] for line in output.read_text().splitlines()] == [row[name] for row in rows]
    capsys.readouterr()
    assert main(["render", str(recipe), "-n", "1"]) == 0
    assert "-- choices: 'yes' / 'no'" in capsys.readouterr().out


def test_choices_of_a_column_and_free_answers_to_closed_questions(closed_recipe, tmp_path, capsys):
    rows = [
        {
            "context": f"{PEOPLE[n]} lives in {PLACES[n]}.",
            "question": f"Where does {PEOPLE[n]} live?",
            "answers": {"text": [PLACES[n]]},
            "choices": [PLACES[n], " ".join([PLACES[n], *PLACES]), "abroad ||| at sea"],
        }
        for n in range(8)
    ]
    write_jsonl(tmp_path / "test.jsonl", rows)
    recipe = str(closed_recipe(template="question_answering/multiple_choice", method="none", max_target_tokens=24))
    chosen = {}
    for normalization in ("none", "characters"):
        folder = tmp_path / normalization
        arguments = ["--choice_normalization", normalization, "--output_dir", str(folder)]
        assert main(["evaluate", recipe, *arguments]) == 0
        lines = (folder / "predictions" / "test.jsonl").read_text().splitlines()
        chosen[normalization] = [json.loads(line)["hard_prompt"] for line in lines]
        assert "answers" not in json.loads((folder / "results.json").read_text())  # Every row has other choices.
        assert all(text in row["choices"] for text, row in zip(chosen[normalization], rows, strict=True))
    assert chosen["none"] != chosen["characters"]
    capsys.readouterr()
    assert main(["render", recipe, "--split", "test", "-n", "1"]) == 0
    assert "/ 'abroad ||| at sea'" in capsys.readouterr().out
    assert main(["evaluate", recipe, "--no_score_choices", "--output_dir", str(tmp_path / "free")]) == 0
    results = json.loads((tmp_path / "free" / "results.json").read_text())
    assert results["decoding"] == {"max_new_tokens": 24, "num_beams": 1}
    assert main(["evaluate", recipe, "--no_score_choices", "--choice_normalization", "bytes"]) == 2
    assert "choice_normalization bytes would have no effect, since score_choices is false" in capsys.readouterr().err


def test_a_closed_question_without_a_reference_has_no_answer_that_was_expected(closed_recipe, tmp_path):
    template = tmp_path / "mine.yaml"
    template.write_text(replace(Template.load("question_answering/yes_no"), references="golds").to_yaml())
    recipe = closed_recipe(template=template)
    rows = [row | {"golds": ["yes"] * (number != 1)} for number, row in enumerate(closed_rows(9, 5))]
    test = write_jsonl(tmp_path / "test.jsonl", rows)
    assert main(["evaluate", str(recipe), "--test_file", str(test), "--output_dir", str(tmp_path / "hard")]) == 0
    assert json.loads((tmp_path / "hard" / "results.json").read_text())["answers"]["expected"] == {"yes": 8}


def test_wrong_choices_are_reported_with_file_and_line(closed_recipe, tokenizer, tmp_path, capsys):
    rows = closed_rows(6)
    rows[3]["answers"] = {"text": ["maybe"]}
    write_jsonl(tmp_path / "validation.jsonl", rows)
    assert main(["check", str(closed_recipe())]) == 1
    error = capsys.readouterr().err
    assert "validation.jsonl, line 4: the target 'maybe' is not among the row's choices ('yes', 'no')" in error
    assert main(["check", str(closed_recipe(score_choices="false"))]) == 0

    assert main(["check", str(closed_recipe()), "--max_target_tokens", "2"]) == 1
    assert "tokens with its end, max_target_tokens is 2; raise it" in capsys.readouterr().err
    plain = closed_recipe(template="question_answering/plain", choice_normalization="tokens")
    assert main(["check", str(plain)]) == 2
    assert "since template question_answering/plain has no answer_choices; leave it out" in capsys.readouterr().err
    for text in ("yes", "yes ||| "):
        template = Template("{{ question }}", "yes", answer_choices=text)
        with pytest.raises(TemplateError, match=r"answer_choices gives 'yes'.*expected two or more"):
            Encoder(template, tokenizer).row(rows[0])
    unknown = copy.deepcopy(tokenizer)  # This copy has one token for all letters that it lacks.
    unknown.backend_tokenizer.normalizer = Replace(Regex("[是否]"), "?")
    template = Template("{{ question }}", "是", answer_choices="是 ||| 否")
    with pytest.raises(TemplateError, match="the choices '是' and '否' have the same tokens"):
        Encoder(template, unknown).row(rows[0])
    assert Encoder(template, tokenizer).row(rows[0])["choices"] == ["是", "否"]


def test_an_ensemble_of_closed_answers_is_refused_with_two_ways_out(closed_recipe, tmp_path, capsys):
    write_jsonl(tmp_path / "validation.jsonl", closed_rows(6))
    for seed in ("1", "2"):
        assert main(["train", str(closed_recipe(seed=seed, output_dir=tmp_path / seed, max_steps=1))]) == 0
    arguments = ["ensemble", str(closed_recipe()), "--adapters", str(tmp_path / "1"), str(tmp_path / "2")]
    assert main(arguments) == 2
    assert "Set score_choices: false, or evaluate the adapters one by one" in capsys.readouterr().err
