"""The command `bit`: it and its subcommands alone exit or read the environment and, through `terminal`, print."""

from __future__ import annotations

import signal
import sys
from typing import Any, NoReturn

import click

import convert
from convert.cli.classify import classify_command
from convert.cli.common import FAILED
from convert.cli.compare import compare_command
from convert.cli.convert import convert_command
from convert.cli.inspect import inspect_command
from convert.cli.list import list_command
from convert.cli.push import push_command
from convert.cli.record import record_command
from convert.cli.terminal import print_json, write
from convert.cli.verify import verify_command
from convert.errors import CheckpointError, VerificationError

BAD_INPUT = 2
"""The exit status for input that cannot be used; see `commands.common.FAILED` for the other."""


class Commands(click.Group):
    """Turns what can go wrong with input into one `error:` line and exit status 2."""

    def main(self, *arguments: Any, **options: Any) -> NoReturn:
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup sets it
                signal.signal(number, _terminate)
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            sys.exit(super().main(*arguments, **{**options, "standalone_mode": False}) or 0)
        except click.exceptions.NoArgsIsHelpError as error:
            write(error.format_message() + "\n", sys.stdout)
            sys.exit(BAD_INPUT)
        except click.ClickException as error:
            hint = "; see bit --help" if isinstance(error, click.UsageError) else ""
            _refuse(error.format_message().rstrip(".") + hint)
        except CheckpointError as error:
            _refuse(str(error), error.problems, FAILED if isinstance(error, VerificationError) else BAD_INPUT)
        except OSError as error:
            message = error.strerror or str(error)
            _refuse(f"{error.filename}: {message}" if error.filename else message)
        except (KeyboardInterrupt, click.Abort):
            write("interrupted\n", sys.stderr)
            sys.exit(128 + signal.SIGINT)


def _terminate(number: int, frame: object) -> NoReturn:
    write("ended by a signal\n", sys.stderr)
    sys.exit(128 + number)


def _refuse(message: str, problems: tuple[str, ...] = (), status: int = BAD_INPUT) -> NoReturn:
    if "--json" in sys.argv:
        print_json({"error": message, "problems": problems})
    write("error: " + " ".join(message.split()) + "\n", sys.stderr)
    sys.exit(status)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(convert.__version__, prog_name="bit")
def main() -> None:
    """Convert BiT weights between libraries, and prove that nothing changed."""


for command in (
    list_command,
    convert_command,
    verify_command,
    push_command,
    record_command,
    inspect_command,
    compare_command,
    classify_command,
):
    main.add_command(command)
