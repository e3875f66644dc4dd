"""`prompt-tuning try`: look at what a prompt does, in a page of this machine."""

from __future__ import annotations

import argparse
import importlib.util
import socket
import sys
from pathlib import Path

from prompt_tuning.cli.parsing import Commands, add_command, add_moved_model, add_trust, number_in
from prompt_tuning.cli.processes import has_several_processes
from prompt_tuning.errors import ModelError, RecipeError
from prompt_tuning.recipe.ranges import Range
from prompt_tuning.support.run_folder import RunFolder
from prompt_tuning.support.text import print_text

EXAMPLES = """\
  prompt-tuning try runs/quickstart
  prompt-tuning try runs/quickstart --port 8000
  prompt-tuning try qa=runs/quickstart runs/fr-en
  prompt-tuning try somebody/squad-prompt

The page answers a row by the hard prompt, by the trained prompt and, if the prompt started from a text such as
demonstrations, by that text. The rows that the run evaluated can be clicked, the worst first; a row of your own can be
written. Several runs of one base model get a menu. The page needs prompt-tuning[try]. It is reached only from this
machine, asks nothing of any network, and opens no browser by itself.
"""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_parser(commands: Commands) -> None:
    """Add the command to the command line."""
    parser = add_command(commands, "try", run, help="Look at what a prompt does, in a local page.", examples=EXAMPLES)
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="folder or hub id of a trained run, also as NAME=RUN; or several"
    )
    parser.add_argument(
        "--host", metavar="ADDRESS", default="127.0.0.1", help="the address to serve on (default: this machine alone)"
    )
    parser.add_argument(
        "--port",
        metavar="N",
        type=number_in(Range(0, 65535)),
        default=7860,
        help="port to serve on; 0: any free one (default: 7860)",
    )
    add_moved_model(parser)
    add_trust(parser)


def run(args: argparse.Namespace, overrides: list[str]) -> None:
    """Serve the page until it is interrupted.

    Raises:
        RecipeError: the port is in use or the address is not of this machine.
        ModelError: gradio is not installed.
        PromptTuningError: a run cannot be loaded.
    """
    from prompt_tuning.hub.ids import check_local_adapter

    if has_several_processes():
        raise RecipeError("try: it runs in one process. Start it without accelerate launch.")
    if importlib.util.find_spec("gradio") is None:
        raise ModelError("try: the page is made by the package gradio. Install prompt-tuning[try].")
    with _bind(args.host, args.port) as listener:
        if args.host not in LOOPBACK:
            print_text(
                f"WARNING: --host {args.host}: everybody who reaches this machine can read the rows and use the "
                "model. Nobody is asked for a password.",
                file=sys.stderr,
            )
        for word in args.runs:
            path = word if Path(word).is_dir() else word.rpartition("=")[2]
            if not RunFolder(Path(path)).results.is_file():
                check_local_adapter(path, or_model=True)
        _show(args, listener)


def _show(args: argparse.Namespace, listener: socket.socket) -> None:
    """Load the runs and serve the page."""
    print_text(f"reading {', '.join(args.runs)} ...", file=sys.stderr)
    from prompt_tuning.page.blocks import build_page
    from prompt_tuning.page.server import serve
    from prompt_tuning.page.trial import Trial, run_words

    trial = Trial.load(run_words(args.runs), args.model_name_or_path, trust_remote_code=args.trust_remote_code)
    for tried in trial.runs.values():
        if tried.problem:
            print_text(f"{tried.name}: no rows to click: {tried.problem}", file=sys.stderr)
    serve(build_page(trial), listener)


def _bind(host: str, port: int) -> socket.socket:
    """Return a socket that holds the address, so that no other program takes it while the model loads."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except socket.gaierror:
        raise RecipeError(f"--host {host}: no such address. Leave --host out for this machine alone.") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen()  # Two sockets could be bound to one address, and only one can listen.
    except OSError as error:
        listener.close()
        raise RecipeError(f"--port {port}: {error.strerror} on {host}. Name another --port, or 0.") from None
    return listener
