"""Save checkpoints from two machines: -m helpers.shared_disk DISK DISK, as torchrun starts them.

Each process writes a file to each checkpoint on its machine's disk, which may be that of the other one. The first one
is slow to remove what is left of a saving.
"""

import shutil
import sys
import time
from pathlib import Path

from accelerate import PartialState

from prompt_tuning.training.checkpoints import atomic_checkpoint

state = PartialState(cpu=True)
disk = Path(sys.argv[1:][state.process_index])
remove = shutil.rmtree


def slow_remove(*args, **kwargs):
    time.sleep(0.05 * state.is_main_process)
    remove(*args, **kwargs)


shutil.rmtree = slow_remove
for number in range(4):
    with atomic_checkpoint(disk / f"checkpoint-{number}") as partial:
        (partial / f"checkpoint-{number}").mkdir(parents=True, exist_ok=True)
        (partial / f"checkpoint-{number}" / f"{state.process_index}.txt").touch()
state.wait_for_everyone()
