"""accelerate reads every launch configuration, and the header of each says when to use it."""

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from helpers.paths import ROOT

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
