"""Check that a pretended GPU raises, waits and counts as a GPU does."""

import warnings

import pytest
import torch
from helpers.real_cuda import GPU, WAIT, real_cuda


def test_tensors_of_two_devices_raise_when_they_meet(on_gpu):
    with on_gpu("cuda:1"):
        first, second = torch.ones(2, device="cuda:0"), torch.ones(2, device="cuda:1")
        assert first.device == torch.device("cuda", 0)
        for other in (second, torch.ones(2)):
            with pytest.raises(RuntimeError, match="same device"):
                first + other
        assert (first + torch.tensor(1.0)).cpu().tolist() == [2, 2]  # A number has no device.
        assert (first + second.to("cuda:0")).device == first.device
        with pytest.raises(TypeError, match="convert cuda"):
            first.numpy()


@pytest.mark.parametrize(
    ("waits", "use"),
    [
        (0, lambda gpu: (gpu * 2).sum()),
        (0, lambda gpu: gpu[torch.zeros(2, dtype=torch.long, device=gpu.device)]),
        (0, lambda gpu: torch.arange(3, device=gpu.device)),
        (1, lambda gpu: gpu[gpu > 1]),
        (1, lambda gpu: gpu.sum().item()),
        (1, lambda gpu: gpu.tolist()),
        (1, lambda gpu: gpu.cpu()),
        (1, lambda gpu: gpu.nonzero()),
        (1, lambda gpu: bool((gpu > 1).any())),
        (1, lambda gpu: torch.ones(3).to(gpu.device)),
        (1, lambda gpu: torch.tensor([1, 2], device=gpu.device)),
    ],
)
def test_what_stops_python_until_the_device_has_caught_up_is_counted(on_gpu, waits, use):
    with on_gpu() as log:
        gpu = torch.arange(3.0).to(GPU)
        log.__init__()
        use(gpu)
        assert log.num_waits == waits


def test_gradients_cross_devices_and_an_indexing_gradient_sorts(on_gpu):
    with on_gpu("cuda:1") as log:
        leaf = torch.ones(3, device="cuda:0").requires_grad_()
        places = torch.tensor([0, 0, 2], device="cuda:0")
        (leaf[places].to("cuda:1") * 2).cpu().sum().backward()
        assert leaf.grad.device == leaf.device
        assert leaf.grad.cpu().tolist() == [4, 0, 2]
        assert log.sorts == 1


def test_a_moved_module_keeps_tied_parameters_tied(on_gpu):
    with on_gpu():
        module = torch.nn.ModuleList([torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)])
        module[1].weight = module[0].weight
        module.to(GPU)
        assert module[1].weight is module[0].weight
        assert module[1].bias.device == torch.device(GPU)


def test_a_real_gpu_counts_the_waits_that_pytorch_warns_of_and_a_missing_gpu_skips(monkeypatch):
    for name, value in (("device_count", 1), ("get_sync_debug_mode", 0), ("set_sync_debug_mode", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *args, value=value: value)
    with real_cuda(monkeypatch, "cuda:0") as log:
        warnings.warn(f"{WAIT} (Triggered internally)", stacklevel=1)
        assert log.num_waits == 1
        log.__init__()
        assert log.num_waits == 0
        with pytest.raises(UserWarning, match="other"):
            warnings.warn("another warning", stacklevel=1)
    with pytest.raises(pytest.skip.Exception, match="cuda:1 is missing"), real_cuda(monkeypatch, "cuda:1"):
        pass
