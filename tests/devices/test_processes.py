"""Run two processes, each on a pretended GPU of its own: the steps of one process, and what NCCL takes."""

import json
import os
import traceback

import pytest
import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import DistributedType
from helpers.pretend_cuda import on_cpu, pretended_cuda
from helpers.trainers import soft, trainer
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from prompt_tuning.arguments.prompt_args import PromptArguments
from prompt_tuning.cli.main import main
from prompt_tuning.models.prompts import add_adapter, add_soft_prompt, prompt_config
from prompt_tuning.training.callbacks import stopping_on_signals

COLLECTIVES = (
    "all_gather", "all_gather_into_tensor", "all_reduce", "all_to_all", "all_to_all_single", "broadcast", "gather",
    "reduce", "reduce_scatter", "reduce_scatter_tensor", "scatter", "send", "recv", "isend", "irecv",
)  # fmt: skip
METHODS = ("prompt_tuning", "p_tuning", "prefix_tuning", "lora")


class Averaged(torch.nn.Module):
    """Average gradients over processes in Python; DDP's C++ code takes no pretended tensor."""

    def __init__(self, module, **kwargs):
        super().__init__()
        self.module = module
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self.average)

    @staticmethod
    def average(parameter):
        dist.all_reduce(parameter.grad)
        parameter.grad /= 2

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def as_nccl(monkeypatch, device):
    """Let each collective refuse what NCCL does not take, tensors that are not on this GPU, and go over gloo."""
    sent = []

    def replaced(name, collective):
        def call(*args, **kwargs):
            tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            for tensor in tensors:
                assert tensor.device == device, f"{name} of {tuple(tensor.shape)} on {tensor.device}"
            sent.append(name)
            with _disable_current_modes():
                return collective(*tree_map(on_cpu, args), **tree_map(on_cpu, kwargs))

        return call

    def all_gather_into_tensor(output, tensor, **kwargs):  # gloo takes one shape of the output, and NCCL any.
        return all_gather(list(output.view(2, *tensor.shape)), tensor, **kwargs)

    def of_objects(function):
        def call(*args, **kwargs):  # Its tensors are on the device that torch chooses for the backend.
            with _disable_current_modes():
                return function(*args, **kwargs)

        return call

    all_gather = dist.all_gather
    monkeypatch.setattr(dist, "all_gather_into_tensor", all_gather_into_tensor)
    for name in COLLECTIVES:
        monkeypatch.setattr(dist, name, replaced(name, getattr(dist, name)))
    for name in ("all_gather_object", "barrier", "broadcast_object_list", "gather_object"):
        monkeypatch.setattr(dist, name, of_objects(getattr(dist, name)))
    return sent


def be_one_of_two(rank, folder, work):
    """Run a function on the GPU of this rank, and write what it returns; there is no way back from here."""
    monkeypatch = pytest.MonkeyPatch()
    start = PartialState.__init__

    def start_as_one_of_two(self, *args, **kwargs):
        start(self, *args, **kwargs)
        numbers = dict(num_processes=2, process_index=rank, local_process_index=rank)
        self.__dict__ |= numbers | dict(distributed_type=DistributedType.MULTI_GPU, backend="nccl")

    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
        sent = as_nccl(monkeypatch, torch.device("cuda", rank))
        monkeypatch.setattr(PartialState, "__init__", start_as_one_of_two)
        monkeypatch.setattr(torch.nn.parallel, "DistributedDataParallel", Averaged)
        with pretended_cuda(monkeypatch, f"cuda:{rank}"):
            result = work()
        (folder / f"{rank}.json").write_text(json.dumps({"result": result, "sent": sent}))
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
    finally:
        os._exit(0)


def on_two_gpus(folder, work):
    """Return what two processes return, which are forks of this one, and the collectives that they called."""
    folder.mkdir()
    children = []
    for rank in (0, 1):
        child = os.fork()
        if child == 0:
            be_one_of_two(rank, folder, work)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    errors = "\n".join(path.read_text() for path in sorted(folder.glob("*.error")))
    assert not errors, errors
    outcomes = [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]
    return [outcome["result"] for outcome in outcomes], outcomes[0]["sent"]


def results(method, tokenizer, folder, rows, **settings):
    """Return the losses, trained weights, texts and choices of a short run with a global batch of 4 rows."""
    model = soft("llama", tokenizer)
    if method != "prompt_tuning":
        base = model.unload()
        torch.manual_seed(2)
        config = prompt_config(base, 6, PromptArguments(method=method, encoder_hidden_size=16))
        model = add_adapter(base, config) if method == "lora" else add_soft_prompt(base, config)
    settings |= dict(max_steps=3, save_steps=2, learning_rate=1e-3, per_device_train_batch_size=rows)
    run = trainer(model, tokenizer, folder, train=10, evaluation=3, report_to="none", **settings)
    with stopping_on_signals(run.accelerator) as callback:
        run.add_callback(callback)
        run.train()
    losses = [entry["loss"] for entry in run.state.log_history if "loss" in entry] + [run.evaluate()["eval_loss"]]
    weights = [weight.detach().cpu().flatten() for weight in model.parameters() if weight.requires_grad]
    closed = run.eval_dataset.add_column("choices", [["yes", "no"]] * 3)
    closed = closed.add_column("choice_ids", [[[5], [6, 7]]] * 3)
    texts = [*run.predict_texts(run.eval_dataset), *run.predict_texts(closed)]
    return losses, torch.cat(weights).tolist(), texts


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_on_a_gpu_each_take_the_steps_of_one_and_hand_nccl_only_tensors_of_their_gpu(
    method, tokenizer, tmp_path
):
    losses, weights, texts = results(method, tokenizer, tmp_path / "one", 4)
    outcomes, sent = on_two_gpus(
        tmp_path / "two", lambda: results(method, tokenizer, tmp_path / "two", 2, use_cpu=False)
    )
    for of_process in outcomes:
        assert of_process[0] == pytest.approx(losses, rel=1e-4)
        assert of_process[1] == pytest.approx(weights, abs=1e-4)
        assert of_process[2] == texts
    assert len(sent) > 5


def test_train_and_evaluate_hand_nccl_only_tensors_of_their_gpu(recipe_file, tmp_path):
    def commands():
        recipe = recipe_file(max_steps=2, save_steps=1, eval_strategy="steps", eval_steps=1, use_cpu="false")
        again = ["evaluate", str(recipe), "--adapter", str(tmp_path / "run")]
        return [main(["train", str(recipe)]), main(again)]

    outcomes, sent = on_two_gpus(tmp_path / "two", commands)
    assert outcomes == [[0, 0], [0, 0]]
    assert {"all_reduce", "all_gather_into_tensor"} <= set(sent)
