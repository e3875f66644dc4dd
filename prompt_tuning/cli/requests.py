"""`prompt-tuning requests`: write rows of an exported task as requests for a server, or send them."""

from __future__ import annotations

import argparse

from prompt_tuning.cli.parsing import (
    SAME_COMMAND_RESUMES,
    Commands,
    Result,
    add_command,
    add_trust,
    check_json_output,
    number_in,
)
from prompt_tuning.errors import RecipeError
from prompt_tuning.recipe.ranges import COUNT
from prompt_tuning.runs.saved_tasks import read_saved_task
from prompt_tuning.support.data_files import checked_path

EXAMPLES = """\
  prompt-tuning requests exported --task qa --input rows.jsonl > requests.jsonl
  prompt-tuning requests exported --task qa --input rows.jsonl --url http://localhost:8000/v1 --output out.jsonl
  prompt-tuning requests exported --task qa --input rows.jsonl --prompt_embeds --model base > requests.jsonl
  prompt-tuning evaluate recipes/quickstart/qa.yaml --predictions out.jsonl

A request is the body of OpenAI's completions API, with the prompt as token ids. --url sends the requests and writes
the rows with their predictions, as `predict` does; it needs prompt-tuning[serve], and takes a key only from the
environment variable OPENAI_API_KEY. The same command resumes after a break. --prompt_embeds writes or sends the
embeddings of the ids instead, for a vLLM that serves the base model and not the export.
"""


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(
        commands, "requests", run, help="Write rows of an exported task as requests, or send them.", examples=EXAMPLES
    )
    parser.add_argument("folder", metavar="OUT", help="a folder that `prompt-tuning export` wrote")
    parser.add_argument("--task", metavar="NAME", required=True, help="a task of the folder's prompts.json")
    parser.add_argument("--input", metavar="FILE", default="-", help="rows, as for predict (default: standard input)")
    parser.add_argument(
        "--output",
        metavar="FILE",
        default="-",
        help="the file to write (default: standard output; --url needs a file)",
    )
    parser.add_argument("--model", metavar="NAME", help="the server's name for the model (default: OUT)")
    prompts = parser.add_mutually_exclusive_group()
    prompts.add_argument("--text", action="store_true", help="text instead of token ids, for servers that take none")
    prompts.add_argument(
        "--prompt_embeds",
        "--prompt-embeds",
        action="store_true",
        help="embeddings instead of token ids, for vLLM with the base model and --enable-prompt-embeds",
    )
    parser.add_argument("--url", metavar="URL", help="send to the server here, such as http://localhost:8000/v1")
    parser.add_argument(
        "--concurrency", metavar="N", type=number_in(COUNT), default=8, help="requests at once (default: 8)"
    )
    add_trust(parser)
    parser.set_defaults(when_interrupted=SAME_COMMAND_RESUMES)


def run(args: argparse.Namespace, overrides: list[str]) -> Result:
    """Write the requests, or send them and write the rows with their predictions."""
    check_json_output("requests", args)
    checked_path(args.input, args.output)
    if args.url and args.output == "-":
        raise RecipeError("--output: sent requests need a file, so that they can resume. Name one.")
    read_saved_task(args.folder, args.task)  # A wrong folder or task is reported before torch is imported.
    from prompt_tuning.runs.api_client import openai_client
    from prompt_tuning.runs.exported import ExportedTask
    from prompt_tuning.runs.requests import Requests, load_embeddings

    send = openai_client(args.url) if args.url else None
    task = ExportedTask.load(args.folder, args.task, trust_remote_code=args.trust_remote_code)
    embeddings = load_embeddings(args.folder, trust_remote_code=args.trust_remote_code) if args.prompt_embeds else None
    requests = Requests(task, args.model or args.folder, as_text=args.text, embeddings=embeddings)
    if send is None:
        requests.write(args.input, args.output)
    else:
        requests.send(args.input, args.output, send, concurrency=args.concurrency)
    return Result({"output": args.output, "sent": send is not None})
