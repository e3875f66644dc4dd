"""accelerate reads every launch configuration, and the header of each says when to use it."""

import os
import re
import shlex
import subprocess

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from helpers.paths import ROOT

from prompt_tuning.recipe.drafts import checked_draft

CONFIGS = sorted((ROOT / "recipes" / "accelerate").glob("*.yaml"))
KINDS = {
    "cpu_2": ("MULTI_GPU", 2),
    "ddp": ("MULTI_GPU", 8),
    "ddp_multi_node": ("MULTI_GPU", 16),
    "deepspeed_zero2": ("DEEPSPEED", 8),
    "deepspeed_zero3": ("DEEPSPEED", 8),
    "fsdp2": ("FSDP", 8),
    "gpu_1": ("NO", 1),
}


def test_there_is_a_configuration_of_each_kind():
    kinds = {}
    for path in CONFIGS:
        config = load_config_from_file(str(path))
        kinds[path.stem] = (config.distributed_type.value, config.num_processes)
    assert kinds == KINDS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_a_configuration_and_its_header_has_the_launch_line(path):
    arguments = ["--config_file", str(path), "-m", "prompt_tuning", "train", "recipe.yaml"]
    args, config, _ = _validate_launch_command(launch_command_parser().parse_args(arguments))
    assert args.num_processes == config.num_processes and args.module and args.training_script == "prompt_tuning"
    assert args.use_fsdp == (path.stem == "fsdp2") and (not args.use_fsdp or int(args.fsdp_version) == 2)
    assert args.use_deepspeed == path.stem.startswith("deepspeed")
    assert not args.use_deepspeed or str(args.zero_stage) == path.stem[-1]
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    launch = f"# Launch: accelerate launch --config_file {path.relative_to(ROOT)} -m prompt_tuning train"
    assert any(line.startswith(launch) for line in header) and len(header) >= 2
    assert config.use_cpu or any("Untested" in line for line in header)


# The options of sbatch and the form of their values, from its manual.
SBATCH = {
    "job-name": r"[\w-]+", "nodes": r"\d+", "ntasks-per-node": r"\d+", "gpus-per-node": r"\d+",
    "cpus-per-task": r"\d+", "time": r"\d\d:\d\d:\d\d", "signal": r"[A-Z]+@\d+", "output": r"\S+",
}  # fmt: skip


def test_the_slurm_file_starts_one_launcher_on_each_machine_with_its_rank(tmp_path):
    file = ROOT / "recipes" / "accelerate" / "slurm_2_nodes.sbatch"
    options = re.findall(r"(?m)^#SBATCH --([\w-]+)=(\S+)$", file.read_text())
    assert [name for name, _ in options] == list(SBATCH)
    assert all(re.fullmatch(SBATCH[name], value) for name, value in options)
    commands = {
        "scontrol": '[ "$*" = "show hostnames node[7-8]" ] && printf "node7\\nnode8\\n"',
        "srun": 'for rank in 0 1; do SLURM_NODEID=$rank "$@"; done',
        "accelerate": 'printf "%q " "$@"; echo',
    }
    for name, body in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    slurm = {"SLURM_JOB_NODELIST": "node[7-8]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "123456"}
    environment = os.environ | slurm | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(file), "recipes/quickstart/qa.yaml", "runs/of slurm"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    launches = [shlex.split(line) for line in done.stdout.splitlines()]
    assert len(launches) == int(dict(options)["nodes"])
    for rank, (subcommand, *words) in enumerate(launches):
        args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
        assert subcommand == "launch" and (args.machine_rank, args.main_process_ip) == (rank, "node7")
        assert (args.num_machines, args.num_processes) == (2, 2 * int(dict(options)["gpus-per-node"]))
        assert args.main_process_port == 23456
        train, recipe, *flags = args.training_script_args
        assert train == "train" and checked_draft(str(ROOT / recipe), flags).training.output_dir == "runs/of slurm"
