"""The statements are those of the published formats, and say what the manifest and the verification say.

The schemas are written down from in-toto's `spec/v1` (statement, resource descriptor, field types) and from
slsa.dev/spec/v1.0/provenance.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from support.json_schema import faults
from support.signing import Signed, write_key

import convert
from convert.files.base import file_sha256
from convert.network.inputs import batches
from convert.signing.statements import EQUIVALENCE, PROVENANCE, schema

SCHEMA_FILE = Path(__file__).parents[2] / "convert" / "signing" / "conversion-equivalence-v1.schema.json"

URI = {"type": "string", "format": "uri"}
DIGESTS = {"type": "object", "additionalProperties": {"type": "string", "pattern": "^[0-9a-f]+$"}}
RESOURCE = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "uri": URI,
        "digest": DIGESTS,
        "content": {"type": "string"},
        "downloadLocation": URI,
        "mediaType": {"type": "string"},
        "annotations": {"type": "object"},
    },
    "additionalProperties": False,
    "anyOf": [{"required": ["digest"]}, {"required": ["uri"]}, {"required": ["content"]}],
}
IN_TOTO_STATEMENT = {
    "type": "object",
    "required": ["_type", "subject", "predicateType", "predicate"],
    "properties": {
        "_type": {"const": "https://in-toto.io/Statement/v1"},
        "subject": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["digest"],
                "properties": {"name": {"type": "string"}, "digest": DIGESTS},
            },
        },
        "predicateType": URI,
        "predicate": {"type": "object"},
    },
    "additionalProperties": False,
}
RESOURCES = {"type": "array", "items": {"$ref": "#/$defs/resource"}}
SLSA_PROVENANCE = {
    "type": "object",
    "required": ["buildDefinition", "runDetails"],
    "properties": {
        "buildDefinition": {
            "type": "object",
            "required": ["buildType", "externalParameters"],
            "properties": {
                "buildType": URI,
                "externalParameters": {"type": "object"},
                "internalParameters": {"type": "object"},
                "resolvedDependencies": RESOURCES,
            },
            "additionalProperties": False,
        },
        "runDetails": {
            "type": "object",
            "required": ["builder"],
            "properties": {
                "builder": {
                    "type": "object",
                    "required": ["id"],
                    "properties": {
                        "id": URI,
                        "builderDependencies": RESOURCES,
                        "version": {"type": "object", "additionalProperties": {"type": "string"}},
                    },
                    "additionalProperties": False,
                },
                "metadata": {
                    "type": "object",
                    "properties": {
                        "invocationId": {"type": "string"},
                        "startedOn": {"type": "string", "format": "date-time"},
                        "finishedOn": {"type": "string", "format": "date-time"},
                    },
                    "additionalProperties": False,
                },
                "byproducts": RESOURCES,
            },
            "additionalProperties": False,
        },
    },
    "additionalProperties": False,
    "$defs": {"resource": RESOURCE},
}


@pytest.fixture
def folder(folders: Signed) -> Path:
    return folders.place / "tiny"


@pytest.fixture
def statements(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "conversion.intoto.json").read_text().splitlines()
    made = [json.loads(base64.b64decode(json.loads(line)["payload"])) for line in lines]
    return {statement["predicateType"]: statement for statement in made}


def test_both_statements_are_in_totos(statements: dict[str, dict[str, Any]]) -> None:
    assert list(statements) == [PROVENANCE, EQUIVALENCE]
    for statement in statements.values():
        assert faults(statement, IN_TOTO_STATEMENT) == []
        message = json_format.ParseDict(statement, statement_pb2.Statement())
        Statement.copy_from_pb(message).validate()


def test_the_provenance_is_slsas(statements: dict[str, dict[str, Any]]) -> None:
    predicate = statements[PROVENANCE]["predicate"]
    assert faults(predicate, SLSA_PROVENANCE) == []
    message = json_format.ParseDict(predicate, provenance_pb2.Provenance())
    assert message.build_definition.build_type.endswith("/conversion/v1")
    assert message.run_details.builder.version["converter"].startswith("bit-convert ")


def test_the_equivalence_follows_the_published_schema(statements: dict[str, dict[str, Any]]) -> None:
    published = json.loads(SCHEMA_FILE.read_text("utf-8"))
    assert published == json.loads(json.dumps(schema())), (
        "write the file again from convert.signing.statements.schema()"
    )
    assert published["$id"] == statements[EQUIVALENCE]["predicateType"]
    assert faults(statements[EQUIVALENCE]["predicate"], published) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda predicate: predicate["runs"].clear(),
        lambda predicate: predicate["runs"][0]["taps"][0].update(error=-1),
        lambda predicate: predicate["runs"][0]["taps"][0].update(error="none"),
        lambda predicate: predicate["runs"][0]["taps"][0].pop("tolerance"),
        lambda predicate: predicate["inputs"][0]["digest"].update(sha256="0"),
        lambda predicate: predicate.pop("verification"),
    ],
)
def test_the_schema_refuses_what_is_no_evidence(
    statements: dict[str, dict[str, Any]], change: Callable[[dict[str, Any]], Any]
) -> None:
    predicate = copy.deepcopy(statements[EQUIVALENCE]["predicate"])
    change(predicate)
    assert faults(predicate, json.loads(SCHEMA_FILE.read_text("utf-8")))


def test_the_statements_name_every_file(folder: Path, statements: dict[str, dict[str, Any]]) -> None:
    digests = {path.name: file_sha256(path) for path in folder.iterdir()}
    for name in ("model.sig", "conversion.intoto.json"):
        del digests[name]
    for statement in statements.values():
        assert {item["name"]: item["digest"]["sha256"] for item in statement["subject"]} == digests


def test_the_provenance_names_the_source_and_the_options(
    folder: Path, tiny_npz: Path, statements: dict[str, dict[str, Any]]
) -> None:
    definition = statements[PROVENANCE]["predicate"]["buildDefinition"]
    manifest = json.loads((folder / "conversion.json").read_text())
    assert definition["externalParameters"]["options"] == manifest["options"]
    assert definition["externalParameters"]["layout"] == "transformers"
    assert definition["resolvedDependencies"] == [{"name": "tiny.npz", "digest": {"sha256": file_sha256(tiny_npz)}}]


def test_a_downloaded_source_has_its_address(folder: Path) -> None:
    from dataclasses import replace

    from convert.checkpoints.manifest import Manifest
    from convert.signing.statements import statements as make

    manifest = Manifest.read(folder)
    assert manifest is not None
    address = "https://storage.googleapis.com/bit_models/BiT-M-R50x1.npz"
    digests = {path.name: file_sha256(path) for path in folder.iterdir()}
    fetched = replace(manifest, source=replace(manifest.source, address=address))
    provenance, _ = make(fetched, (folder / "verification.json").read_bytes(), digests)
    definition = provenance["predicate"]["buildDefinition"]
    assert definition["externalParameters"]["checkpoint"] == address
    assert [item["uri"] for item in definition["resolvedDependencies"]] == [address]
    assert faults(provenance["predicate"], SLSA_PROVENANCE) == []


def test_the_equivalence_holds_every_number_of_the_report(folder: Path, statements: dict[str, dict[str, Any]]) -> None:
    predicate = statements[EQUIVALENCE]["predicate"]
    report = json.loads((folder / "verification.json").read_text())
    taps = [
        (run["implementation"], run["side"], run["dtype"], run["mode"], *tap.values())
        for run in predicate["runs"]
        for tap in run["taps"]
    ]
    fields = ("implementation", "side", "dtype", "mode", "input", "tap", "error", "tolerance")
    assert sorted(taps) == sorted(tuple(check[name] for name in fields) for check in report["checks"])
    assert predicate["verification"]["digest"]["sha256"] == file_sha256(folder / "verification.json")
    assert all(run["versions"] for run in predicate["runs"])


def test_the_inputs_are_named_by_the_digest_of_the_very_images(statements: dict[str, dict[str, Any]]) -> None:
    stated = {item["name"]: item["digest"]["sha256"] for item in statements[EQUIVALENCE]["predicate"]["inputs"]}
    assert stated == {name: hashlib.sha256(x.astype("<f4").tobytes()).hexdigest() for name, x in batches().items()}


def test_recordings_are_named_by_the_digest_of_their_files(tiny_npz: Path, tmp_path: Path) -> None:
    private, _ = write_key(tmp_path)
    convert.convert(tiny_npz, out=tmp_path / "out", recordings=tmp_path / "recordings")
    convert.sign(tmp_path / "out", key=private, recordings=tmp_path / "recordings", reverify=True)
    _, line = (tmp_path / "out" / "conversion.intoto.json").read_text().splitlines()
    predicate = json.loads(base64.b64decode(json.loads(line)["payload"]))["predicate"]
    files = {path.name: file_sha256(path) for path in tmp_path.glob("recordings/*/*.safetensors")}
    assert files
    assert {item["name"]: item["digest"]["sha256"] for item in predicate["recordings"]} == files
    assert predicate["runs"][0]["reference"].startswith("recorded outputs of")
