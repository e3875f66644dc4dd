"""Check the order of training rows: it depends on the seed and the epoch, or on an order that 0.1.0 saved."""

import torch
from torch.utils.data import DataLoader
from transformers.trainer_pt_utils import LengthGroupedSampler

from prompt_tuning.training.sampling import ORDER, EpochSampler, interrupted_order

LENGTHS = [7 * number % 31 for number in range(40)]


def test_an_epoch_has_its_own_order_that_does_not_depend_on_torchs_generator():
    sampler = EpochSampler(4, LENGTHS, seed=3)
    first = list(sampler)
    torch.rand(5)
    assert list(sampler) == first and sorted(first) == list(range(40))
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first
    again = EpochSampler(4, LENGTHS, seed=3)
    again.set_epoch(1)
    assert list(again) == second


def test_the_first_epoch_has_the_order_of_version_0_1_0():
    torch.manual_seed(42)
    loader = DataLoader(range(40), batch_size=4, sampler=LengthGroupedSampler(4, lengths=LENGTHS))
    assert torch.cat(list(loader)).tolist() == list(EpochSampler(4, LENGTHS, seed=42))


def test_a_saved_order_is_used_for_the_interrupted_epoch_only(tmp_path):
    assert interrupted_order(None) is interrupted_order(tmp_path) is None
    torch.save(torch.random.get_rng_state(), tmp_path / ORDER)
    interrupted = list(LengthGroupedSampler(4, lengths=LENGTHS))
    sampler = EpochSampler(4, LENGTHS, seed=3, interrupted_order=interrupted_order(tmp_path))
    assert list(sampler) == interrupted
    assert list(sampler) == list(EpochSampler(4, LENGTHS, seed=3))
