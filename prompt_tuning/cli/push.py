"""`prompt-tuning push`: share a run or an export on the Hugging Face hub."""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from prompt_tuning.cli.parsing import Commands, Result, add_command
from prompt_tuning.errors import ModelError
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning push runs/quickstart --repo_id me/quickstart --base_model HuggingFaceTB/SmolLM2-135M-Instruct --dry-run
  prompt-tuning push runs/quickstart --repo_id me/quickstart --base_model HuggingFaceTB/SmolLM2-135M-Instruct --private
  prompt-tuning push runs/hub-model --repo_id me/squad-prompt
  prompt-tuning push runs/hub-model --repo_id me/squad-prompt --space
  prompt-tuning push exported --repo_id me/served

--base_model names the hub model that a local model folder is a copy of. A run on a hub model does not need it. One
commit uploads the adapter, its recipe, template, results and card. It holds no checkpoint, no predictions, no token
and no absolute path. Card and results quote one row of the data, unless `prompt-tuning card RUN --example ROW.json`
replaced it. Log in once with `hf auth login`, or set HF_TOKEN. Then the hub id works wherever a folder does:
  prompt-tuning predict --adapter me/squad-prompt --input rows.jsonl

Of a folder that `export` wrote, it uploads the whole model, prompts.json and the files of the tasks.
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands, "push", run, help="Share a run or an export on the Hugging Face hub.", examples=EXAMPLES
    )
    parser.add_argument("folder", metavar="RUN", type=Path, help="folder of a finished train, or of an export")
    parser.add_argument(
        "--repo_id", "--repo-id", metavar="NAME", required=True, help="NAME or USER/NAME, created if it is new"
    )
    parser.add_argument("--private", action="store_true", help="create a private repository")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to, created if it is new (default: main)")
    parser.add_argument(
        "--base_model", "--base-model", metavar="ID", help="the base model's hub id, if it was trained from a folder"
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace an adapter of another base model, or another Space",
    )
    parser.add_argument(
        "--space",
        metavar="NAME",
        nargs="?",
        const="",
        help="also push a Space that shows the page of `try` (default: with the name of --repo_id); needs "
        "prompt-tuning[try]",
    )
    parser.add_argument(
        "--dry_run", "--dry-run", action="store_true", help="list what would be uploaded, without the network"
    )


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Upload the run and print the commit's URL, or print what would be uploaded."""
    if args.space is not None and importlib.util.find_spec("gradio") is None:
        raise ModelError("--space: the page is made by the package gradio. Install prompt-tuning[try].")
    from prompt_tuning.hub.upload import check_upload, create_repository, list_upload, push_space

    check_upload(RunFolder(args.folder), args.repo_id)  # Wrong names are reported before torch is imported.
    from prompt_tuning.page.space import space_files
    from prompt_tuning.runs.push import plan_push, push_run

    if args.dry_run:
        files = plan_push(args.folder, args.repo_id, args.base_model)
        print_text(list_upload(files))
        planned = {"files": sorted(files)}
        if args.space is not None:
            files = space_files(args.repo_id)
            print_text(f"Space {args.space or args.repo_id}:\n{list_upload(files)}")
            planned["space_files"] = sorted(files)
        return Result(planned)
    url = push_run(
        args.folder,
        args.repo_id,
        private=args.private or None,
        revision=args.revision,
        base_model=args.base_model,
        overwrite=args.overwrite,
    )
    print_text(url)
    urls = {"url": url}
    if args.space is not None:
        # A name without its owner is completed by the hub.
        repo_id = args.repo_id if "/" in args.repo_id else create_repository(args.repo_id)
        files = space_files(f"{repo_id}@{args.revision}" if args.revision else repo_id)
        options = {"private": args.private or None, "overwrite": args.overwrite}
        urls["space_url"] = push_space(args.space or repo_id, files, **options)
        print_text(urls["space_url"])
    return Result(urls)
