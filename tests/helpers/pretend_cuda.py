"""CPU tensors that say that they are on cuda:N, so that code for GPUs runs where there is none.

The operations run on the CPU. As on a GPU, tensors of different devices raise when they meet. Waits for the device,
copies, kernels and sorts are counted in `Log`. A wait is whatever stops Python until the device has caught up: a
number or a shape that depends on values, and a copy between the CPU's pageable memory and the device.
"""

import traceback
from collections import Counter
from contextlib import contextmanager

import torch
from accelerate.state import AcceleratorState
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext, _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CPU = torch.device("cpu")
# These operations return a number, or a tensor whose shape depends on values.
WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::unique_dim", "aten::_unique2",
    "aten::unique_consecutive", "aten::equal", "aten::repeat_interleave",
}  # fmt: skip
# These operations compute nothing.
WITHOUT_KERNEL = {
    "aten::detach", "aten::alias", "aten::lift_fresh", "aten::_unsafe_view", "aten::empty", "aten::empty_like",
    "aten::empty_strided", "aten::new_empty", "aten::new_empty_strided",
}  # fmt: skip
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
LIBRARIES = ("/prompt_tuning/", "/transformers/", "/peft/", "/accelerate/", "/torch/nn/")


class Log:
    """Counts of what a device did; `places` has for each wait the line that caused it."""

    def __init__(self):
        self.waits = Counter()
        self.sorts = 0
        self.kernels = 0
        self.places = Counter()

    @property
    def num_waits(self):
        return sum(self.waits.values())

    def add_wait(self, kind):
        self.waits[kind] += 1
        for frame in reversed(traceback.extract_stack(limit=60)):
            if any(library in frame.filename for library in LIBRARIES):
                self.places[f"{kind}: {'/'.join(frame.filename.split('/')[-2:])}:{frame.lineno}"] += 1
                return


LOG = Log()


def pretended(device):
    """Return the device with its number if it is a GPU, else None."""
    device = None if device is None else torch.device(device)
    if device is None or device.type != "cuda":
        return None
    return torch.device("cuda", device.index or 0)


class PretendTensor(torch.Tensor):
    """A tensor whose numbers are those of `data` on the CPU, and whose device is `place`."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, data, place):
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls, data.shape, strides=data.stride(), storage_offset=data.storage_offset(), dtype=data.dtype
        )
        wrapper.data_on_cpu = data
        wrapper.place = torch.device(place)
        return wrapper

    device = property(lambda self: self.place)
    is_cuda = property(lambda self: True)

    def get_device(self):
        return self.place.index

    def tolist(self):
        LOG.add_wait("tolist")
        return self.data_on_cpu.tolist()

    def numpy(self):
        raise TypeError("can't convert cuda device type tensor to numpy. Use Tensor.cpu() to copy the tensor first.")

    def __array__(self, *args, **kwargs):
        return self.numpy()

    def data_ptr(self):
        return self.data_on_cpu.data_ptr()

    def untyped_storage(self):
        return self.data_on_cpu.untyped_storage()

    def cpu(self, *args, **kwargs):
        return self.to(CPU)

    def cuda(self, device=None, **kwargs):
        return self.to(pretended(device or self.place))

    def type_as(self, other):
        return self.to(other)

    def new_tensor(self, data, *, dtype=None, device=None, **kwargs):
        return torch.tensor(data, dtype=dtype or self.dtype, device=device or self.place)

    def to(self, *args, device=None, dtype=None, other=None, **kwargs):
        for argument in (*args, other):
            if isinstance(argument, torch.Tensor):
                device, dtype = argument.device, argument.dtype
            elif isinstance(argument, torch.dtype):
                dtype = argument
            elif isinstance(argument, (str, torch.device)):
                device = argument
            elif isinstance(argument, int) and not isinstance(argument, bool):
                device = torch.device("cuda", argument)
        device = self.place if device is None else pretended(device) or CPU
        moved = self if device == self.place else Move.apply(self, device)
        return moved if dtype is None or dtype == moved.dtype else torch.Tensor.to(moved, dtype)

    def __repr__(self, **kwargs):
        return f"PretendTensor({self.place}, {tuple(self.shape)}, {self.dtype})"

    def __deepcopy__(self, memo):
        return PretendTensor(self.data_on_cpu.clone(), self.place).requires_grad_(self.requires_grad)

    def __reduce_ex__(self, protocol):
        return PretendTensor, (self.data_on_cpu, str(self.place))

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})


class Move(torch.autograd.Function):
    """A copy of a pretended tensor on another device."""

    @staticmethod
    def forward(ctx, tensor, device):
        ctx.place = tensor.place
        LOG.add_wait("to the CPU") if device == CPU else LOG.waits.update({"between devices": 1})
        copy = on_cpu(tensor).clone()
        return copy if device == CPU else PretendTensor(copy, device)

    @staticmethod
    def backward(ctx, gradient):
        return PretendTensor(on_cpu(gradient), ctx.place), None


def on_cpu(value):
    """Return a pretended tensor's numbers, and anything else as it is."""
    return value.data_on_cpu if isinstance(value, PretendTensor) else value


def run(operation, args, kwargs):
    """Run an operation on the CPU, after the checks and counts of a GPU."""
    name = operation._schema.name
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    places = {tensor.place for tensor in tensors if isinstance(tensor, PretendTensor)}
    target = pretended(kwargs.get("device"))
    check_devices(name, tensors, places)
    count(operation, args, places, target)
    place = target or (places.pop() if places else None)
    if name == "aten::copy_":
        place = getattr(args[0], "place", None)
    if name == "aten::histc":  # On a GPU it takes whole numbers, too.
        args = (on_cpu(args[0]).float(), *args[1:])
    passed = {key: on_cpu(value) for key, value in kwargs.items()}
    if target:
        passed["device"] = CPU
    if passed.get("pin_memory"):  # Memory can be pinned only if there is a GPU.
        passed["pin_memory"] = False
    disabled = torch._C._DisableTorchDispatch()
    try:
        output = operation(*tree_map(on_cpu, args), **passed)
    finally:
        del disabled
    if name.endswith("_") and not name.endswith("__"):  # It changed its first argument.
        return args[0] if operation._schema.returns else None
    if place is None:
        return output
    # In inference mode a view of a tensor from outside is no inference tensor.
    is_inference = torch.is_inference_mode_enabled() and not (operation.is_view and not tensors[0].is_inference())
    with torch.inference_mode(is_inference):
        return tree_map(lambda leaf: PretendTensor(leaf, place) if isinstance(leaf, torch.Tensor) else leaf, output)


def check_devices(name, tensors, places):
    """Raise the error of PyTorch if tensors of several devices meet; a CPU tensor without dimensions may."""
    if not places or name in ("aten::copy_", "aten::_to_copy", "aten::set_.source_Tensor"):
        return
    indices = name in INDEXING  # Indices may be on the CPU; they are copied.
    on_the_cpu = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor) and tensor.dim() > 0]
    if len(places) > 1 or (on_the_cpu and not indices):
        found = [str(place) for place in places] + ["cpu"] * bool(on_the_cpu)
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {found} in {name}")


def count(operation, args, places, target):
    """Count what a GPU would do for an operation."""
    name = operation._schema.name
    if not places:
        if target and name == "aten::_to_copy":
            LOG.add_wait("from the CPU")
        return
    LOG.kernels += has_kernel(operation)
    LOG.sorts += sorts(operation, args)
    if name in WAITING:
        LOG.add_wait(name)
    elif name == "aten::copy_" and isinstance(args[0], PretendTensor) != isinstance(args[1], PretendTensor):
        LOG.add_wait("copy_ to or from the CPU")
    elif name in INDEXING:
        count_indices(name, args)


def count_indices(name, args):
    """Count what a GPU would do for the indices of an operation."""
    for index in args[1]:
        if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8):
            LOG.add_wait(f"a mask as index of {name}")
        elif isinstance(index, torch.Tensor) and not isinstance(index, PretendTensor):
            LOG.add_wait(f"an index on the CPU of {name}")


def has_kernel(operation):
    """Return whether an operation computes something."""
    return not operation.is_view and operation._schema.name not in WITHOUT_KERNEL


def sorts(operation, args):
    """Return whether an operation adds values at indices, for which a GPU sorts them."""
    return operation._schema.name in INDEXING - {"aten::index"} and len(args) > 3 and bool(args[3])


class PretendMode(TorchDispatchMode):
    """A mode in which new tensors may be made on a GPU."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # PyTorch does not start CUDA under this key.

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        return run(operation, args, kwargs or {})


_tensor = torch.tensor
_pad_sequence = torch._C._nn.pad_sequence


def tensor(data, *, dtype=None, device=None, **kwargs):
    """Return `torch.tensor(...)`, which copies from the CPU if the device is a GPU.

    PyTorch gives its own function the device of `with torch.device(...)`, such as the one in which weights are loaded.
    """
    contexts = [mode for mode in _get_current_function_mode_stack() if isinstance(mode, DeviceContext)]
    if device is None and contexts:
        device = contexts[-1].device
    place = pretended(device)
    if place is None:
        return _tensor(data, dtype=dtype, device=device, **kwargs)
    if not isinstance(data, list) or data:
        LOG.add_wait("torch.tensor")
    return PretendTensor(_tensor(on_cpu(data), dtype=dtype), place)


def pad_sequence(rows, *args, **kwargs):
    """Return PyTorch's padded rows, whose C++ code reads devices that pretended tensors do not have."""
    padded = _pad_sequence([on_cpu(row) for row in rows], *args, **kwargs)
    check_devices("pad_sequence", rows, {row.place for row in rows if isinstance(row, PretendTensor)})
    return PretendTensor(padded, rows[0].place) if isinstance(rows[0], PretendTensor) else padded


_module_to = torch.nn.Module.to


def module_to(module, *args, **kwargs):
    """Return `module.to(...)`; PyTorch would make two parameters of a tied one, since these tensors differ in type."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    if pretended(device) is None:
        return _module_to(module, *args, **kwargs)
    put(module, pretended(device))
    return module if dtype is None else _module_to(module, dtype)


def put(module, device):
    """Move the parameters and buffers of a module to a pretended device, and keep those that are tied tied."""
    moved = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is None or parameter.device == device:
                continue
            if id(parameter) not in moved:
                data = PretendTensor(on_cpu(parameter.data), device)
                moved[id(parameter)] = torch.nn.Parameter(data, requires_grad=parameter.requires_grad)
            part._parameters[name] = moved[id(parameter)]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = PretendTensor(on_cpu(buffer), device)


@contextmanager
def pretended_cuda(monkeypatch, device):
    """Let this process run on cuda:N within the context, where tensors may also be on others; return the counts."""
    LOG.__init__()
    with monkeypatch.context() as patch:
        for owner, name, replacement in (
            (torch, "tensor", tensor),
            (torch._C._nn, "pad_sequence", pad_sequence),
            (torch.nn.Module, "to", module_to),
            (torch.cuda, "set_device", lambda device: None),
            (torch.cuda, "get_device_name", lambda device: f"pretended GPU {device}"),
            (torch.cuda, "get_device_capability", lambda device: (7, 0)),
            (torch.cuda, "mem_get_info", lambda device: (0, 0)),
        ):
            patch.setattr(owner, name, replacement)
        patch.setenv("ACCELERATE_TORCH_DEVICE", device)
        AcceleratorState._reset_state(reset_partial_state=True)
        _device_constructors.cache_clear()  # It may hold PyTorch's own `torch.tensor`, or later the one of here.
        try:
            with PretendMode():
                yield LOG
        finally:
            _device_constructors.cache_clear()
            AcceleratorState._reset_state(reset_partial_state=True)
