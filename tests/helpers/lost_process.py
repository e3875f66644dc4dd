"""Lose the second of two processes, and print the errors of the first: `-m helpers.lost_process RANK STORE`."""

import os
import sys

import torch
import torch.distributed as dist

from prompt_tuning.errors import ProcessError
from prompt_tuning.training.distributed import explain_lost_process

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 4))
if rank == 1:
    os._exit(0)
for step in (lambda: model(torch.ones(1, 4)).sum().backward(), lambda: dist.all_reduce(torch.ones(1))):
    try:
        with explain_lost_process():
            step()
    except ProcessError as error:
        print(error)
sys.stdout.flush()
os._exit(0)
