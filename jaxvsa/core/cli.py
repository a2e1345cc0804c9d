"""What every door shares: its parser, its exit codes, the split of `--config` from the rest."""

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from jaxvsa.core import distributed, memory
from jaxvsa.core.errors import UserError, nearest


def run_door(
    main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None
) -> NoReturn:
    """Runs a door and leaves the process.

    Exit codes: what `main` returns (None = 0); 2 and one line on stderr for a `UserError`; 130 for
    Ctrl-C; 141 without a word if the reader of our output went away (`| head`). Any other
    exception is a mistake of ours and keeps its traceback. Of several processes, one that fails
    leaves at once, so that the others do not wait for it; 1 if it lost another one.

    Args:
        main: takes the arguments after the program's name.
        argv: these arguments; None = those of the process.
    """
    memory.keep_freed()
    try:
        code = main(sys.argv[1:] if argv is None else argv) or 0
        sys.stdout.flush()
    except UserError as error:
        code = _say(2, f"error: {error}")
    except KeyboardInterrupt:
        code = _say(130, "interrupted")
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 141
    except Exception as error:
        if not distributed.several():
            raise
        if distributed.lost_peer(error):
            code = _say(1, "error: another process of this run has ended, so this one ends too")
        else:
            traceback.print_exc()
            code = 1
    distributed.leave(code)


def door_parser(name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """Parser of `python -m jaxvsa.<name>`.

    Flags cannot be abbreviated; a mistake is one line with the nearest flag and exit code 2.

    Args:
        name: the door.
        summary: one sentence for `--help`.
        example: one command line for `--help`.
    """
    return _DoorParser(
        prog=f"python -m jaxvsa.{name}",
        description=summary,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def split_config_flags(argv: Sequence[str]) -> tuple[list[str], str | None, list[str]]:
    """Takes `--config` and `--config.<key>` out of a command line.

    Args:
        argv: arguments; a value follows after `=` or as the next argument (a value that itself
            begins with `--` needs the `=`).

    Returns:
        the other arguments; the spec, None if there is none; the overrides as `--config.a.b=1`,
        where a key without a value stays bare (`--config.a.b`, true).

    Raises:
        UserError: `--config` twice, or without a value.
    """
    rest: list[str] = []
    specs: list[str] = []
    overrides: list[str] = []
    at = 0
    while at < len(argv):
        name, equals, value = argv[at].partition("=")
        at += 1
        if name != "--config" and not name.startswith("--config."):
            rest.append(argv[at - 1])
            continue
        if not equals and at < len(argv) and not argv[at].startswith("--"):
            equals, value = "=", argv[at]
            at += 1
        if name != "--config":
            overrides.append(name + equals + value)
        elif value:
            specs.append(value)
        else:
            raise UserError("--config needs a value, for example --config vccsa:paper")
    if len(specs) > 1:
        raise UserError(f"--config is given {len(specs)} times: {', '.join(specs)}")
    return rest, specs[0] if specs else None, overrides


class _DoorParser(argparse.ArgumentParser):
    """Says a mistake in one line, an unknown flag before anything else."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        args = list(sys.argv[1:] if args is None else args)
        if self._subparsers is None:  # with subcommands, each of them knows its own flags
            self._refuse_unknown_flags(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        sys.exit(_say(2, f"error: {message}"))

    def _refuse_unknown_flags(self, args: Sequence[str]) -> None:
        known = self._option_string_actions
        before = args[: args.index("--")] if "--" in args else args
        for argument in before:
            flag = argument.partition("=")[0]
            # argparse, too, takes an argument with a space in it for a value.
            if flag.startswith("--") and " " not in argument and flag not in known:
                self.error(f"unknown flag {flag}{nearest(flag, known)}; see {self.prog} --help")


def _say(code: int, message: str) -> int:
    """Prints one line on stderr and hands back the exit code."""
    distributed.say_error(message)
    return code
