"""Check that NCCL, which takes only tensors on a GPU, is handed no other one."""

import pytest
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from helpers.trainers import soft, trainer

from prompt_tuning.training.callbacks import stopping_on_signals


class NotParallel:
    """Stand for DDP, whose C++ code takes no pretended tensor."""

    def __new__(cls, model, **kwargs):
        return model


@pytest.fixture
def nccl(monkeypatch):
    """Let this process be the first of two, whose other one sends the same; return a list of what was sent."""
    sent = []

    def send(tensor):
        assert tensor.is_cuda, f"a tensor on {tensor.device}, {tuple(tensor.shape)}"
        sent.append(tensor)

    def all_gather(outputs, tensor, **kwargs):
        send(tensor)
        for output in outputs:
            output.copy_(tensor)

    def all_gather_into_tensor(output, tensor, **kwargs):
        all_gather(output.view(2, *tensor.shape), tensor)

    def all_reduce(tensor, *args, **kwargs):
        send(tensor)
        tensor.mul_(2)

    def all_gather_object(output, value, **kwargs):
        output[:] = [value] * 2

    for name, replacement in (
        ("all_gather", all_gather),
        ("all_gather_into_tensor", all_gather_into_tensor),
        ("all_reduce", all_reduce),
        ("broadcast", lambda tensor, *args, **kwargs: send(tensor)),
        ("all_gather_object", all_gather_object),
        ("broadcast_object_list", lambda values, **kwargs: None),
        ("get_world_size", lambda *args: 2),
        ("barrier", lambda *args, **kwargs: None),
    ):
        monkeypatch.setattr(torch.distributed, name, replacement)
    start = PartialState.__init__

    def start_as_one_of_two(self, *args, **kwargs):
        start(self, *args, **kwargs)
        self.distributed_type = DistributedType.MULTI_GPU
        self.num_processes = 2
        self.backend = "nccl"

    monkeypatch.setattr(PartialState, "__init__", start_as_one_of_two)
    monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", NotParallel)
    return sent


def test_nccl_is_handed_no_tensor_on_the_cpu(on_gpu, nccl, tokenizer, tmp_path):
    with on_gpu("cuda:0"):
        run = trainer(soft("llama", tokenizer), tokenizer, tmp_path, train=8, evaluation=3, use_cpu=False, max_steps=2)
        with stopping_on_signals(run.accelerator) as callback:
            run.add_callback(callback)
            run.train()
        assert "eval_loss" in run.evaluate()
        assert len(run.predict_texts(run.eval_dataset)) == 3
        closed = run.eval_dataset.add_column("choices", [["yes", "no"]] * 3)
        closed = closed.add_column("choice_ids", [[[5], [6, 7]]] * 3)
        assert set(run.predict_texts(closed)) <= {"yes", "no"}
        assert len(nccl) > 5
