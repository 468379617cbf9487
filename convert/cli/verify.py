"""`bit verify`."""

from __future__ import annotations

from typing import Unpack

import click

from convert.cli.common import conclude, json_option, layout_option, reference_options, verification_lines
from convert.cli.terminal import print_result, progress_bar, width
from convert.options import VerifyOptions


@click.command("verify")
@click.argument("folder")
@layout_option
@click.option("--source", metavar="PATH", help="The checkpoint that was converted, if it was moved.")
@reference_options(full=True)
@json_option
def verify_command(folder: str, to: str, source: str | None, as_json: bool, **options: Unpack[VerifyOptions]) -> None:
    """Verify a converted folder.

    The folder is compared with the source, with recordings and with reference implementations.
    FOLDER may be the name of the CHECKPOINT that was converted, with --to for the layout.
    """
    from convert import api
    from convert.reporting.text import tap_table

    path = api.converted_folder(folder, to)
    with progress_bar() as progress:
        verification = api.verify(path, source=source, progress=progress, **options)
    lines = [*tap_table(verification, width()), *verification_lines(verification, path)]
    print_result(as_json, verification.to_dict(), lines)
    conclude(verification)
