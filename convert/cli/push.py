"""`bit push`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from convert.cli.common import converted_folder, json_option, layout_option
from convert.cli.terminal import print_json, print_rich, progress_bar


@click.command("push")
@click.argument("folder")
@click.argument("repository")
@layout_option
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--create-pr", is_flag=True, help="Open a pull request; the branch stays as it is.")
@click.option("--revision", help="The branch to push to. [default: the main one]")
@click.option("--message", help="What the commit says.")
@click.option("--dry-run", is_flag=True, help="Say what would be sent, and send nothing.")
@json_option
def push_command(folder: str, repository: str, layout: str, dry_run: bool, as_json: bool, **options: Any) -> None:
    """Push a verified FOLDER to REPOSITORY, owner/name, on the Hugging Face Hub, in one commit.

    The CHECKPOINT that was converted may be named instead, with --to for its layout. The token is
    that of `hf auth login`, or HF_TOKEN in the environment.
    """
    from convert.publishing.publish import publish
    from convert.reporting.text import publication_lines

    with progress_bar() as progress:
        result = publish(converted_folder(folder, layout), repository, progress, dry_run=dry_run, **options)
    if as_json:
        print_json(asdict(result))
    else:
        print_rich(*publication_lines(result))
