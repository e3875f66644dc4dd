"""The command line `prompt-tuning`: its commands, its messages and its exit codes.

A command imports what it needs when it runs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import shlex
import signal
import sys
import warnings
from pathlib import Path

from prompt_tuning import __version__
from prompt_tuning.cli import (
    card,
    check,
    compare,
    completion,
    ensemble,
    env,
    evaluate,
    export,
    import_gguf,
    init,
    inspect,
    predict,
    push,
    rank,
    recipes,
    render,
    report,
    requests,
    schema,
    show,
    sweep,
    templates,
    train,
    try_run,
)
from prompt_tuning.cli.parsing import CommandParser, Result, usage_errors
from prompt_tuning.cli.processes import (
    announce_imports,
    explain_lost_process,
    explain_panic,
    has_several_processes,
    is_first_process,
    raise_signals,
    set_up_messages,
)
from prompt_tuning.errors import PromptTuningError, Stopped, Terminated, signal_exit_code
from prompt_tuning.support.text import bounded, did_you_mean, print_text, printable_json

# The order of `prompt-tuning --help`.
COMMANDS = (
    init, recipes, train, try_run, evaluate, predict, templates, render, check, rank, compare, sweep, ensemble,
    inspect, show, report, card, push, export, requests, import_gguf, schema, completion, env,
)  # fmt: skip

# Errors of a disk or of a path that the user named.
DISK_ERRORS = (
    errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST,
    errno.ENAMETOOLONG, errno.EFBIG, errno.EIO, errno.ENOENT, errno.EPERM, errno.ESTALE, errno.ELOOP, errno.EMFILE,
    errno.ENFILE, errno.ENXIO,
)  # fmt: skip

NOT_WRITABLE = (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOENT, errno.ENOTDIR)
"""The errors of a folder that cannot be made."""


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    The codes are 0 done, 1 failed, 2 bad usage or recipe, 129 hung up, 130 interrupted, 141 nobody reads the output,
    143 terminated.

    Args:
        argv: the words after `prompt-tuning`. Default: those of this process.

    Raises:
        SystemExit: with 2 for a wrong command line, with 0 after --help and --version.
        OSError: an error that is not about a disk or a path.
    """
    if not _open_streams():
        return 1
    try:
        code = _run(argv)
    except SystemExit as ended:
        code = _flush_output(2 if ended.code else 0)
        raise SystemExit(code) from None
    return _flush_output(code)


def _run(argv: list[str] | None) -> int:
    """Run a command, and return the exit code of its error if it has one."""
    parser = _parser()
    words = sys.argv[1:] if argv is None else argv
    if not words:
        parser.print_help(sys.stderr)
        _say("\nerror: no command was named. Begin with `prompt-tuning init DATA`, or name one of these.")
        return 2
    _check_command(parser, words[0])
    if not words[0].startswith("-"):
        parser.get_default("commands").choices[words[0]].words = words[1:]
    args, rest = parser.parse_known_args(words)
    errors = usage_errors(args, rest)
    if errors:
        args.parser.error("\n".join(errors))
    set_up_messages()
    # peft 0.21 asks transformers for a name that transformers has renamed; a user cannot change that.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    # accelerate 1.15 gathers by a name that torch 2.13 has renamed.
    warnings.filterwarnings("ignore", "`torch.distributed.all_gather_into_tensor` is deprecated", FutureWarning)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # rows are of any language, whatever the terminal's is
    try:
        os.getcwd()  # Libraries ask for it when they are imported.
        with raise_signals(), announce_imports(), explain_lost_process(), explain_panic():
            return _run_handler(args, rest)
    except PromptTuningError as error:
        for line in bounded(str(error)).splitlines():
            _say(f"error: {line}")
        return error.exit_code
    except KeyboardInterrupt as error:
        return _report_interrupt(args, argv, error)
    except OSError as error:
        return _report_disk_error(error)


def _run_handler(args: argparse.Namespace, rest: list[str]) -> int:
    """Run the handler of a command and return its exit code; with --json print what it found out as one object."""
    output = sys.stdout
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        result = args.run(args, rest) or Result({})
    if args.json and is_first_process():
        print_text(printable_json(json.dumps(result.facts, ensure_ascii=False, default=str)), file=output)
    return result.exit_code


def _open_streams() -> bool:
    """Open what the shell has closed of standard input and standard error, so that no file gets their numbers.

    Returns:
        False if standard output is closed: nobody would see what is written there.
    """
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.FileIO(os.devnull))
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.FileIO(os.devnull, "w"))
    if sys.stdout is None:
        _say("error: standard output: it is closed. Send it to a file or to /dev/null.")
        return False
    return True


def _flush_output(code: int) -> int:
    """Write what is still to be written, and return the exit code; a lost output changes only the code 0."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError as error:
            # Python flushes once more at its end, and would complain and end with 120.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            code = code or _report_disk_error(error)
    return code


def _say(text: str) -> None:
    """Print a message for a person; the terminal may be gone."""
    with contextlib.suppress(OSError):
        print_text(text, file=sys.stderr)
        sys.stderr.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prompt-tuning",
        description="Adapt a frozen language model to a task by its prompt alone.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=CommandParser)
    for command in COMMANDS:
        command.add_parser(commands)
    parser.set_defaults(root=parser, commands=commands)
    return parser


def _check_command(parser: argparse.ArgumentParser, word: str) -> None:
    """Leave the process with an error that names the nearest command, unless the first word is a command or a flag."""
    names = parser.get_default("commands").choices
    if word.startswith("-") or word in names:
        return
    hint = did_you_mean(word, names) or "`prompt-tuning --help` lists all."
    parser.error(f"{word}: no such command. {hint}")


def _report_disk_error(error: OSError) -> int:
    """Print an error of a disk, a path or the output, and return the exit code; raise any other error again."""
    if isinstance(error, BrokenPipeError):
        return signal_exit_code(signal.SIGPIPE)
    if isinstance(error, FileNotFoundError) and error.errno is None:
        error = _reason_of_safetensors(error)
    if error.errno not in DISK_ERRORS:
        raise error
    name = error.filename or ("the working directory" if error.errno == errno.ENOENT else "writing")
    advice = ". Set HF_HOME to a folder that can be written." if _is_of_cache(name, error) else ""
    _say(f"error: {name}: {error.strerror}; no partial file was left{advice}")
    return 1


def _is_of_cache(name: str, error: OSError) -> bool:
    """Return whether the cache of Hugging Face's libraries cannot be written: a path in it, or one above it."""
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    cache = Path(os.path.expanduser(os.environ.get("HF_HOME") or f"{home}/huggingface"))
    return error.errno in NOT_WRITABLE and (Path(name).is_relative_to(cache) or cache.is_relative_to(name))


def _report_interrupt(args: argparse.Namespace, argv: list[str] | None, error: KeyboardInterrupt) -> int:
    """Print that a signal ended a command and how to resume it, and return the exit code."""
    if isinstance(error, Stopped):
        if is_first_process():
            _say(f"\n{error}; {_how_to_resume(args, argv, error)}")
        return error.exit_code
    if isinstance(error, Terminated):
        _say(f"\n{error}{args.when_interrupted}")
        return error.exit_code
    _say(f"\ninterrupted{args.when_interrupted}")
    return signal_exit_code(signal.SIGINT)


def _reason_of_safetensors(error: FileNotFoundError) -> OSError:
    """Return why a file cannot be opened; safetensors says for every reason that there is no such file."""
    try:
        open(str(error).partition(": ")[2], "rb").close()
    except OSError as reason:
        return reason
    return error


def _how_to_resume(args: argparse.Namespace, argv: list[str] | None, stopped: Stopped) -> str:
    """Name the command that continues a run whose checkpoint was saved."""
    words = ["prompt-tuning", *(sys.argv[1:] if argv is None else argv)]
    command = shlex.join(args.resuming_command(words, stopped.checkpoint))
    # A single process would take fewer rows a step than several did.
    launch = ", with the same launcher" if has_several_processes() else ""
    return f"to resume{launch}: {command}"
