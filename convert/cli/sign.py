"""`bit sign`, and the options of signatures that other subcommands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar, Unpack

import click

import convert
from convert.cli.common import json_option, layout_option, recordings_option, source_ws_eps_option
from convert.cli.terminal import escape, print_result, progress_bar
from convert.options import SignOptions, StrPath

PASSWORD = "BIT_KEY_PASSWORD"
"""Environment variable with the password of an encrypted key; a password is never an argument, which others can see."""
Command = TypeVar("Command", bound=Callable[..., Any])

sigstore_option = click.option(
    "--sigstore", is_flag=True, help="Sign without a key: sigstore asks who you are, over the network."
)


def trust_options(command: Command) -> Command:
    """Add `--public-key`, `--identity` and `--identity-provider`."""
    key = click.option("--public-key", metavar="PUB", help="Check the signature with this public key, in PEM format.")
    identity = click.option("--identity", metavar="WHO", help="Check that WHO signed, with sigstore, over the network.")
    provider = click.option("--identity-provider", metavar="URL", help="The identity provider that vouches for WHO.")
    return key(identity(provider(command)))


def password_for(key: StrPath | None) -> str | None:
    """Return the password of a key file: from the environment, or typed; None if the file is not encrypted."""
    from convert.signing.keys import is_encrypted
    from convert.sources.resolve import user_path

    if key is None or not is_encrypted(user_path(key)):
        return None
    given = os.environ.get(PASSWORD)
    if given is None and sys.stdin is not None and sys.stdin.isatty():
        given = str(click.prompt(f"password of {key}", hide_input=True, err=True))
    return given


@click.command("sign")
@click.argument("folder")
@layout_option
@click.option("--key", metavar="KEY", help="Private key on an elliptic curve, in PEM format.")
@sigstore_option
@click.option(
    "--repository",
    metavar="REPO",
    help="First write the model card for this repository, owner/name, unless the folder holds a card.",
)
@click.option("--reverify", is_flag=True, help="Repeat the quick verification first, as bit push does.")
@click.option("--source", metavar="PATH", help="The checkpoint that was converted, if it was moved.")
@source_ws_eps_option
@recordings_option
@json_option
def sign_command(folder: str, to: str, repository: str | None, as_json: bool, **options: Unpack[SignOptions]) -> None:
    """Sign a verified folder.

    Writes model.sig, a signature of OpenSSF Model Signing over every file, and conversion.intoto.json,
    which attests what was converted from what and how it was compared. The password of an encrypted KEY
    is read from the environment variable BIT_KEY_PASSWORD, or asked for. FOLDER may be the name of the
    CHECKPOINT that was converted, with --to for the layout.
    """
    options["password"] = password_for(options.get("key"))
    with progress_bar() as progress:
        signature = convert.sign(folder, to=to, repository=repository, progress=progress, **options)
    value = {**asdict(signature), "folder": str(signature.folder)}
    print_result(as_json, value, [f"[green]✓[/] {escape(signature.folder)}: {escape(signature.words)}"])
