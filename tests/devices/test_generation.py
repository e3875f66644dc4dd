"""Count what a new token costs on a GPU: a bounded number of waits and kernels, however many rows write."""

import pytest
import torch
from helpers.architectures import VOCABULARY
from helpers.models import tiny_llama
from helpers.real_cuda import GPU

from prompt_tuning.encoding.batching import pad_left
from prompt_tuning.engine.stop_texts import StopTexts
from prompt_tuning.models.prompts import add_soft_prompt, prompt_config

OPTIONS = dict(do_sample=False, pad_token_id=0, eos_token_id=None)


@pytest.mark.parametrize("num_rows", [2, 50])
def test_the_criterion_of_stop_texts_copies_all_rows_together(num_rows, on_gpu, tokenizer):
    ids = torch.randint(5, len(tokenizer), (num_rows, 30))
    with on_gpu() as log:
        ids = ids.to(GPU)
        criterion = StopTexts(tokenizer, ["\n"])
        criterion(ids[:, :20], None)
        log.__init__()
        ended = criterion(ids[:, :21], None)
        assert ended.device == torch.device(GPU)
        assert log.num_waits <= 2  # The ids are copied to the CPU, and which rows have ended to the GPU.


def costs_of_a_token(on_gpu, tokenizer, num_rows):
    """Return how many waits and kernels a further new token takes."""
    base = tiny_llama(len(tokenizer), num_hidden_layers=2)
    model = add_soft_prompt(base, prompt_config(base, 5))
    rows = pad_left([[7, 20 + row % 50, *range(30, 31 + row % 5)] for row in range(num_rows)], 0)
    counts = []
    with on_gpu() as log:
        model.to(GPU)
        batch = {name: tensor.to(GPU) for name, tensor in rows.items()}
        for new_tokens in (4, 24):
            log.__init__()
            criteria = [StopTexts(tokenizer, ["no row writes this"])]
            model.generate(**batch, max_new_tokens=new_tokens, stopping_criteria=criteria, **OPTIONS)
            counts.append((log.num_waits, log.kernels))
    (few_waits, few_kernels), (waits, kernels) = counts
    return (waits - few_waits) / 20, (kernels - few_kernels) / 20


def test_the_waits_and_kernels_of_a_new_token_do_not_grow_with_the_rows(on_gpu, tokenizer):
    few = costs_of_a_token(on_gpu, tokenizer, 2)
    assert few == costs_of_a_token(on_gpu, tokenizer, 12)
    assert few[0] <= 5


def test_a_new_token_copies_no_cache(on_gpu):
    base = tiny_llama(VOCABULARY, num_hidden_layers=1)
    model = add_soft_prompt(base, prompt_config(base, 5))
    keys = []
    base.model.layers[0].register_forward_hook(
        lambda module, args, kwargs, output: keys.append(kwargs["cache"].layers[0].keys) if kwargs["cache"] else None,
        with_kwargs=True,
    )
    with on_gpu():
        model.to(GPU)
        batch = {name: tensor.to(GPU) for name, tensor in pad_left([[5, 6, 7], [8, 9]], 0).items()}
        model.generate(**batch, max_new_tokens=20, **OPTIONS)
        written = [tensor for tensor in keys if len(tensor) == 2]
        assert len(written) == 20
        assert len({tensor.data_ptr() for tensor in written}) == 1
