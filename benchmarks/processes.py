"""Compare the weights trained by one process, by two over gloo (DDP), and by two that split the model (FSDP2).

    python benchmarks/processes.py

A tiny random model takes 7 steps of 8 rows, and an epoch ends with 4 rows. Each method has its own learning rate. The
runs are in tests/helpers/two_processes.py. tests/training/test_distributed.py tests the bounds. FSDP2 runs on CPUs.
"""

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

from common import ROOT, describe_machine, print_table
from safetensors.torch import load_file

sys.path.insert(0, str(ROOT / "tests"))
from helpers.models import tiny_llama, tiny_t5, tiny_tokenizer
from helpers.rows import question_rows, write_jsonl
from helpers.two_processes import METHODS, RECIPE, fit_all


def saved_adapter(folder: Path, kind: str, method: str) -> dict:
    """Load the adapter that a kind of run trained with a method."""
    return load_file(folder / f"{kind} {method}" / "adapter" / "adapter_model.safetensors")


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer = tiny_tokenizer()
        for model, build in (("tiny-llama", tiny_llama), ("tiny-t5", tiny_t5)):
            build(len(tokenizer)).save_pretrained(folder / model)
            tokenizer.save_pretrained(folder / model)
        for split in ("train", "validation", "test"):
            write_jsonl(folder / f"{split}.jsonl", question_rows(20))
        (folder / "recipe.yaml").write_text(RECIPE.format(folder=folder))
        with contextlib.redirect_stdout(None):
            fit_all(folder, "one")
        for kind in ("ddp", "fsdp2"):
            torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
            command = [*torchrun, "-m", "helpers.two_processes", kind, str(folder)]
            subprocess.run(command, cwd=ROOT / "tests", check=True, capture_output=True)
        rows = [("method", "largest number", "two processes less one", "FSDP2 less one")]
        for method in METHODS:
            one = saved_adapter(folder, "one", method)
            largest = max(float(tensor.abs().max()) for tensor in one.values())
            apart = []
            for kind in ("ddp", "fsdp2"):
                adapter = saved_adapter(folder, kind, method)
                apart.append(max(float((one[name] - tensor).abs().max()) for name, tensor in adapter.items()))
            rows.append((method, f"{largest:.2f}", *(f"{difference:.1e}" for difference in apart)))
    print(f"{describe_machine()}\n")
    print_table(*rows)


if __name__ == "__main__":
    main()
