"""The command `bit`: exit statuses, signals and errors. Only this package prints, exits or reads the environment."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pkgutil import resolve_name
from typing import Any, NoReturn

import click

import convert
from convert.cli.common import FAILED, UNFINISHED
from convert.cli.terminal import print_json, print_remark, write
from convert.errors import ConvertError, IncompleteError, TrainingError, VerificationError

BAD_INPUT = 2
"""Exit status for input that cannot be used; the others are in `convert.cli.common`."""
STATUSES = {VerificationError: FAILED, IncompleteError: UNFINISHED, TrainingError: UNFINISHED}
"""Exit statuses of the errors that have one of their own."""


class Commands(click.Group):
    """Report each error as one `error:` line with an exit status, without a traceback."""

    def main(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> NoReturn:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, _terminate)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        as_json = "--json" in (sys.argv if args is None else args)
        try:
            sys.exit(super().main(args, *others, **{**options, "standalone_mode": False}) or 0)
        except click.exceptions.NoArgsIsHelpError as error:
            write(error.format_message() + "\n", sys.stdout)
            sys.exit(BAD_INPUT)
        except click.ClickException as error:
            context = error.ctx if isinstance(error, click.UsageError) else None
            page = f"; see {context.command_path} --help" if context else ""
            _refuse(error.format_message().rstrip(".") + page, as_json)
        except ConvertError as error:
            _refuse(str(error), as_json, error.problems, STATUSES.get(type(error), BAD_INPUT))
        except MemoryError as error:
            _refuse(f"memory ran out ({str(error) or 'no details'}); close other programs", as_json, (), UNFINISHED)
        except OSError as error:
            message = error.strerror or str(error)
            _refuse(f"{error.filename}: {message}" if error.filename else message, as_json)
        except (KeyboardInterrupt, click.Abort):
            write("interrupted\n", sys.stderr)
            sys.exit(128 + signal.SIGINT)


def _terminate(number: int, frame: object) -> NoReturn:
    write("ended by a signal\n", sys.stderr)
    sys.exit(128 + number)


def _refuse(message: str, as_json: bool, problems: Sequence[str] = (), status: int = BAD_INPUT) -> NoReturn:
    if as_json:
        print_json({"error": message, "problems": problems})
    print_remark("error", message)
    sys.exit(status)


SUBCOMMANDS = (
    *("list", "convert", "verify", "sign", "push", "record", "inspect", "compare", "classify", "evaluate", "finetune"),
)
"""Each is the function `NAME_command` in the module of that name."""
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


@click.group(
    cls=Commands,
    commands=[resolve_name(f"convert.cli.{name}:{name}_command") for name in SUBCOMMANDS],
    context_settings=CONTEXT,
)
@click.version_option(convert.__version__, prog_name="bit")
def main() -> None:
    """Convert BiT weights between libraries, and prove that nothing changed."""
