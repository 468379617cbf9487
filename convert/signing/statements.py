"""The in-toto statements about a verified folder: SLSA provenance and `conversion-equivalence/v1`.

They follow from the manifest, the verification and the digests of the files alone, so whoever has a folder
can make them again and compare. `README.md` beside this file describes each field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec

from convert.checkpoints.manifest import MANIFEST_NAME, REPORT_NAME, VERIFICATION_NAME, Manifest
from convert.verification.results import ISOLATED, Check, StoredVerification, Verification

AUTHORITY = "https://bit-convert.invalid"
"""Begins the types that are ours. The top-level domain `invalid` is reserved (RFC 2606), so the address will never
lead anywhere, and nobody can buy it; in-toto's TypeURI "MAY be unresolvable" and needs no registration."""
STATEMENT = "https://in-toto.io/Statement/v1"
PROVENANCE = "https://slsa.dev/provenance/v1"
EQUIVALENCE = f"{AUTHORITY}/conversion-equivalence/v1"
BUILD_TYPE, BUILDER = f"{AUTHORITY}/conversion/v1", f"{AUTHORITY}/bit/v1"


class Digest(msgspec.Struct):
    """Cryptographic digests of a file or an array."""

    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Resource(msgspec.Struct):
    """A file or an array, by name."""

    name: str
    digest: Digest


class Tap(msgspec.Struct):
    """One comparison: a named activation of one input."""

    input: str
    tap: str
    error: Annotated[float, msgspec.Meta(ge=0, description="relative L2 error")]
    tolerance: Annotated[float, msgspec.Meta(ge=0, description="largest error that passes")]


class Run(msgspec.Struct):
    """The comparisons of one reference implementation, in one dtype, with the weights of one side."""

    implementation: str
    side: Annotated[str, msgspec.Meta(description="side that supplies the weights: source or converted")]
    dtype: str
    mode: Annotated[str, msgspec.Meta(description="end-to-end or isolated")]
    reference: Annotated[str, msgspec.Meta(description="what the taps were compared with")]
    versions: Annotated[dict[str, str], msgspec.Meta(description="versions, device and settings of this run")]
    taps: Annotated[list[Tap], msgspec.Meta(min_length=1)]


class Pixels(msgspec.Struct):
    """The comparison of one preprocessed image."""

    input: str
    error: Annotated[float, msgspec.Meta(ge=0, description="largest difference in 8-bit levels")]
    tolerance: Annotated[float, msgspec.Meta(ge=0)]


class Tensors(msgspec.Struct):
    """The comparison of the tensors' bytes."""

    count: int
    exact: Annotated[int, msgspec.Meta(description="tensors that convert back to the source exactly")]
    changed: Annotated[int, msgspec.Meta(description="tensors that are bit for bit what the options ask for")]
    roundings: list[str]


class Network(msgspec.Struct, rename="camel"):
    """The network that was converted."""

    name: str
    architecture: str
    classes: int
    ws_eps: Annotated[float, msgspec.Meta(description="epsilon of weight standardization")]


class Equivalence(msgspec.Struct, rename="camel"):
    """Evidence that a converted checkpoint computes the function of the source."""

    converter: str
    verifier: str
    verified_on: Annotated[str, msgspec.Meta(description="time in UTC, RFC 3339")]
    network: Network
    layout: str
    source: Annotated[list[Resource], msgspec.Meta(min_length=1)]
    verification: Annotated[Resource, msgspec.Meta(description="the report, with every detail")]
    environment: dict[str, str]
    inputs: Annotated[list[Resource], msgspec.Meta(min_length=1, description="images that every network was given")]
    recordings: Annotated[list[Resource], msgspec.Meta(description="stored outputs that taps were compared with")]
    tensors: Tensors
    runs: Annotated[list[Run], msgspec.Meta(min_length=1)]
    pixels: list[Pixels]
    not_run: Annotated[dict[str, str], msgspec.Meta(description="reason for each implementation that did not run")]


def statements(manifest: Manifest, report: bytes, digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return both statements about a folder, as JSON has them.

    `report` is the content of `verification.json`, `digests` the SHA-256 of every file but those of the
    signature, by name. Raises `VerificationError` for a report that cannot be read.
    """
    verification, verifier = read_report(report)
    predicates: dict[str, Any] = {
        PROVENANCE: _provenance(manifest, verification, verifier, digests),
        EQUIVALENCE: _equivalence(manifest, verification, verifier, digests),
    }
    made = [
        {
            "_type": STATEMENT,
            "subject": named(digests),
            "predicateType": kind,
            "predicate": predicate,
        }
        for kind, predicate in predicates.items()
    ]
    return list(msgspec.json.decode(msgspec.json.encode(made)))


def named(digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return files as a statement names them, sorted by name."""
    return [{"name": name, "digest": {"sha256": sha256}} for name, sha256 in sorted(digests.items())]


def schema() -> dict[str, Any]:
    """Return the JSON schema of the predicate `conversion-equivalence/v1`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": EQUIVALENCE} | msgspec.json.schema(
        Equivalence
    )


def read_report(report: bytes) -> tuple[Verification, str]:
    """Return the verification in the content of `verification.json`, and the program that made it.

    Raises `VerificationError` if it cannot be read.
    """
    stored = StoredVerification.decode(report)
    return stored.verification, stored.verifier


def _provenance(
    manifest: Manifest, verification: Verification, verifier: str, digests: Mapping[str, str]
) -> dict[str, Any]:
    """Return the predicate of SLSA's provenance, version 1 (slsa.dev/spec/v1.0/provenance)."""
    source, origin = manifest.source, manifest.origin
    address = {} if source.address is None else {"uri": source.address}
    versions = {"converter": manifest.converter, "verifier": verifier}
    versions |= {name: verification.environment[name] for name in ("python", "numpy", "machine")}
    return {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "checkpoint": source.address or manifest.name,
                "layout": manifest.layout,
                "options": manifest.options,
            },
            "internalParameters": {
                "sourceLayout": source.layout,
                "sourceContainer": source.container,
                "origin": origin,
            },
            "resolvedDependencies": [
                {"name": name, **address, "digest": {"sha256": file.sha256}} for name, file in source.files.items()
            ],
        },
        "runDetails": {
            "builder": {"id": BUILDER, "version": versions},
            "byproducts": [
                {"name": name, "digest": {"sha256": digests[name]}}
                for name in (MANIFEST_NAME, VERIFICATION_NAME, REPORT_NAME)
            ],
        },
    }


def _equivalence(
    manifest: Manifest, verification: Verification, verifier: str, digests: Mapping[str, str]
) -> Equivalence:
    network = verification.network
    return Equivalence(
        converter=manifest.converter,
        verifier=verifier,
        verified_on=verification.environment["date"].replace("+00:00", "Z"),
        network=Network(manifest.name, manifest.architecture, manifest.classes, manifest.ws_eps),
        layout=manifest.layout,
        source=_resources({name: file.sha256 for name, file in manifest.source.files.items()}),
        verification=Resource(VERIFICATION_NAME, Digest(digests[VERIFICATION_NAME])),
        environment={name: value for name, value in verification.environment.items() if name != "date"},
        inputs=_resources(network.inputs),
        recordings=_resources(network.recordings),
        tensors=Tensors(
            len(manifest.tensors),
            verification.tensors_exact,
            verification.tensors_changed,
            list(verification.roundings),
        ),
        runs=_runs(verification),
        pixels=[Pixels(check.input, check.error, check.tolerance) for check in verification.pixels],
        not_run=dict(network.not_run),
    )


def _resources(digests: Mapping[str, str]) -> list[Resource]:
    return [Resource(name, Digest(sha256)) for name, sha256 in digests.items()]


def _runs(verification: Verification) -> list[Run]:
    """Return the comparisons run by run; the isolated ones were made in the same run as those end-to-end."""
    groups: dict[str, list[Check]] = {}
    for check in verification.checks:
        groups.setdefault(check.run, []).append(check)
    environments = verification.network.environments
    return [
        Run(
            implementation=checks[0].implementation,
            side=checks[0].side,
            dtype=checks[0].dtype,
            mode=checks[0].mode,
            reference=checks[0].reference,
            versions=dict(environments.get(run) or environments.get(run.removesuffix(f", {ISOLATED}")) or {}),
            taps=[Tap(check.input, check.tap, check.error, check.tolerance) for check in checks],
        )
        for run, checks in groups.items()
    ]
