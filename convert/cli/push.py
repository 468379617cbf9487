"""`bit push`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Unpack

import click

import convert
from convert.cli.common import json_option, layout_option, recordings_option, source_ws_eps_option
from convert.cli.sign import password_for, sigstore_option, trust_options
from convert.cli.terminal import escape, print_result, print_warning, progress_bar
from convert.options import PushOptions


@click.command("push")
@click.argument("folder")
@click.argument("repository")
@layout_option
@click.option("--private", is_flag=True, help="Make a new repository private.")
@click.option("--create-pr", is_flag=True, help="Open a pull request; the branch stays as it is.")
@click.option("--revision", metavar="BRANCH", help="Branch to push to. [default: the main branch]")
@click.option("--message", metavar="TEXT", help="Message of the commit.")
@click.option("--dry-run", is_flag=True, help="List the files and show the model card; send nothing.")
@click.option("--sign", metavar="KEY", help="First sign the folder and the card, with this private key in PEM format.")
@sigstore_option
@click.option("--require-signature", is_flag=True, help="Refuse a folder not signed by --public-key or --identity.")
@trust_options
@click.option("--no-reverify", "reverify", is_flag=True, flag_value=False, default=True, help="Do not verify again.")
@click.option("--source", metavar="PATH", help="The checkpoint that was converted, if it was moved.")
@source_ws_eps_option
@recordings_option
@json_option
def push_command(
    folder: str, repository: str, to: str, dry_run: bool, as_json: bool, **options: Unpack[PushOptions]
) -> None:
    """Push a verified folder to the Hugging Face Hub.

    First the quick verification is repeated, which takes seconds and needs the checkpoint that was
    converted. REPOSITORY is owner/name, or the name of one of your own; it gets one commit with exactly these
    files. FOLDER may be the name of the CHECKPOINT that was converted, with --to for the layout. The token is
    that of hf auth login, or HF_TOKEN in the environment. --dry-run needs neither token nor network.
    """
    options["password"] = password_for(options.get("sign"))
    with progress_bar() as progress:
        publication = convert.publish(folder, repository, to=to, dry_run=dry_run, progress=progress, **options)
    print_result(as_json, asdict(publication), _lines(publication))
    if not publication.reverified:
        print_warning("the verification was not repeated before (--no-reverify): the figures are those of the report")
    if publication.not_asked:
        print_warning(f"the Hub was not asked: {publication.not_asked}")


def _lines(publication: convert.Publication) -> Iterator[str]:
    from convert.publishing.publish import IDENTICAL, PLANNED

    if publication.reverified:
        yield "[green]✓[/] the quick verification was repeated, and passed"
    where, commit = escape(publication.pull_request or publication.url), (publication.commit or "")[:12]
    if publication.state == IDENTICAL:
        yield f"{where} holds exactly these files already, at commit {commit}; nothing was sent"
        return
    kind = "private" if publication.private else "public"
    if publication.state == PLANNED:
        if publication.card:
            yield from ("README.md:", "", *map(escape, publication.card.splitlines()))
        if publication.creates:
            yield f"{escape(publication.repository)} would be created, {kind}"
    for name in publication.files if publication.not_asked else publication.sent:
        yield f"  send    {publication.files[name].sha256}  {escape(name)}"
    for name in publication.deleted:
        yield f"  delete  {escape(name)}"
    held = f"{len(publication.files)} files, {sum(file.bytes for file in publication.files.values()) / 1e6:.1f} MB"
    if publication.state == PLANNED:
        yield f"{where} would hold {held}; nothing was sent"
    else:
        yield f"[green]✓[/] {held}: the Hub's SHA-256 of every file is the same"
        yield f"{where}: {kind}, commit {commit}"
