"""The command line `prompt-tuning`: its commands, its messages and its exit codes.

A command imports what it needs when it runs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import errno
import io
import shlex
import sys
import warnings

from prompt_tuning import __version__
from prompt_tuning.cli import (
    card,
    check,
    compare,
    ensemble,
    evaluate,
    import_gguf,
    inspect,
    predict,
    push,
    rank,
    render,
    report,
    show,
    sweep,
    templates,
    train,
)
from prompt_tuning.cli.parsing import usage_errors
from prompt_tuning.cli.processes import (
    explain_lost_process,
    has_several_processes,
    is_first_process,
    set_up_messages,
)
from prompt_tuning.errors import PromptTuningError, Stopped
from prompt_tuning.support.text import print_text

# The order of `prompt-tuning --help`.
COMMANDS = (
    train, evaluate, predict, templates, render, check, rank, compare, sweep, ensemble, inspect, show, report, card,
    push, import_gguf,
)  # fmt: skip

# Errors of a disk or of a path that the user named.
DISK_ERRORS = (
    errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EDQUOT, errno.EISDIR, errno.ENOTDIR, errno.EEXIST,
    errno.ENAMETOOLONG,
)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code.

    The codes are 0 done, 1 failed, 2 bad usage or recipe, 130 interrupted, 143 terminated.

    Args:
        argv: the words after `prompt-tuning`. Default: those of this process.

    Raises:
        SystemExit: with 2 for a wrong command line, with 0 after --help and --version.
        OSError: an error that is not about a disk or a path.
    """
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    errors = usage_errors(args, rest)
    if errors:
        args.parser.error("\n".join(errors))
    set_up_messages()
    # peft 0.21 asks transformers for a name that transformers has renamed; a user cannot change that.
    warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")  # rows are of any language, whatever the terminal's is
    try:
        with explain_lost_process():
            return args.run(args, rest) or 0
    except PromptTuningError as error:
        for line in str(error).splitlines():
            print_text(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except Stopped as stopped:
        if is_first_process():
            print_text(f"\n{stopped}; {_how_to_resume(args, argv, stopped)}", file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print_text(f"\ninterrupted{args.when_interrupted}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # otherwise Python complains again when it flushes standard output
        return 1
    except OSError as error:
        return _report_disk_error(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="prompt-tuning",
        description="Adapt a frozen language model to a task by its prompt alone.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def _report_disk_error(error: OSError) -> int:
    """Print an error of a disk or a path, and return the exit code; raise any other error again."""
    if error.errno not in DISK_ERRORS:
        raise error
    print_text(f"error: {error.filename or 'writing'}: {error.strerror}; no partial file was left", file=sys.stderr)
    return 1


def _how_to_resume(args: argparse.Namespace, argv: list[str] | None, stopped: Stopped) -> str:
    """Name the command that continues a run whose checkpoint was saved."""
    words = ["prompt-tuning", *(sys.argv[1:] if argv is None else argv)]
    command = shlex.join(args.resuming_command(words, stopped.checkpoint))
    # A single process would take fewer rows a step than several did.
    launch = ", with the same launcher" if has_several_processes() else ""
    return f"to resume{launch}: {command}"
