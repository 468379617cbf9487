"""`bit verify`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Unpack

import click

from convert.cli.common import conclude, layout_option, reference_options, report_in, source_options, verification_lines
from convert.cli.sign import trust_options
from convert.cli.terminal import escape, print_result, print_warning, progress_bar, width
from convert.options import CheckOptions, TrustOptions


@click.command("verify")
@click.argument("folder")
@layout_option
@click.option(
    "--source",
    metavar="CHECKPOINT",
    help="The checkpoint that was converted: needed if it was moved, or if another program converted it.",
)
@reference_options(full=True)
@click.option(
    "--replay",
    is_flag=True,
    help="Convert again from the source, into a temporary folder, and compare the bytes of every file.",
)
@click.option("--gradients", is_flag=True, help="Compare loss and gradients in PyTorch and JAX; needs both.")
@trust_options
@click.option("--report", metavar="FILE", help="Write the report to FILE: a page if it ends with .html, else JSON.")
@source_options
def verify_command(folder: str, to: str, source: str | None, as_json: bool, **options: Unpack[CheckOptions]) -> None:
    """Verify a conversion of this or another program.

    The folder is compared with the source, with recordings and with reference implementations. FOLDER may be the
    name of the CHECKPOINT that was converted, with --to for the layout.

    Without a conversion.json, FOLDER is a folder or file of weights of any layout, and --source the CHECKPOINT from
    which they were made. Rounding to another dtype is accepted and stated; every other difference is explained.
    The report is written with --report only.

    FOLDER may be hf:owner/name. If bit convert wrote the repository, the source that is named there is fetched and
    converted again, and the bytes are compared.

    With --public-key, or --identity and --identity-provider, the signature, the attestation and every byte are
    checked first. Nothing is written into a signed folder.
    """
    from convert import api
    from convert.checkpoints.manifest import is_signed
    from convert.reporting.text import tap_table

    signer: TrustOptions = {
        "public_key": options.pop("public_key", None),
        "identity": options.pop("identity", None),
        "identity_provider": options.pop("identity_provider", None),
    }
    with progress_bar() as progress:
        if any(signer.values()):
            signature = api.check_signature(folder, to=to, progress=progress, **signer)
            options["signature"], found = signature, api.Conversion.signed(signature)
        else:
            signature, found = None, api.find_conversion(folder, to=to, source=source, progress=progress)
        verification = api.verify_found(found, source, progress, **options)
    compared = bool(verification.checks or verification.problems or verification.incomplete)
    lines = [f"[green]✓[/] {escape(signature.words)}"] if signature is not None else []
    if compared or signature is None:
        kept = report_in(found.path, verification) if found.holds_report else None
        report = options.get("report") or kept
        lines += [*tap_table(verification, width()), *verification_lines(verification, report)]
    value = verification.to_dict()
    if not compared and signature is not None:
        value["verdict"] = None
    if signature is not None:
        value["signature"] = {**asdict(signature), "folder": str(signature.folder), "shows": signature.words}
    print_result(as_json, value, lines)
    if signature is None and is_signed(found.path):
        print_warning(f"{found.path} is signed, but the signature was not checked: name the signer with --public-key")
    if compared or signature is None:
        conclude(verification)
    else:  # the signature holds, and there is nothing here to compare with
        for warning in verification.warnings:
            print_warning(warning)
