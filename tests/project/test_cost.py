"""docs/background/cost.md has the tables that its command prints, and the formulas are near the measurements."""

import sys

from helpers.paths import ROOT
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.insert(0, str(ROOT / "benchmarks"))
import cost


def test_the_document_has_every_calculated_table(capsys):
    for part in (cost.compute, cost.state, cost.movement):
        part(cost.BATCH)
    document = (ROOT / "docs" / "background" / "cost.md").read_text(encoding="utf-8")
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) > 15 and [line for line in printed if line not in document] == []


def test_parameters_are_counted_as_in_the_paper_of_llama_2_and_in_a_model():
    for name, billions in (("Llama-2-7B", 6.74), ("Llama-2-70B", 68.98)):  # Touvron et al. (2023) print them.
        assert abs(cost.LLAMA_2[name].parameters / 1e9 - billions) < 0.01
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, intermediate_size=24, tie_word_embeddings=False,
        )
    )  # fmt: skip
    norms = sum(weight.numel() for name, weight in model.named_parameters() if "norm" in name)
    assert cost.Geometry(16, 3, 4, 2, 8, 24, 50).parameters == model.num_parameters() - norms


def test_calculated_memory_is_near_the_measured():
    cases = [(name, batch, memory) for name, batch, _, memory in cost.measured() if memory]
    assert len(cases) == 2
    for name, batch, memory in cases:
        for path, shared in (("PEFT", False), ("engine", True)):
            mib = cost.activations(cost.SMOLLM2_135M, batch, shared, 4) / cost.MIB
            assert abs(mib / memory[path] - 1) < 0.2, (name, path)
