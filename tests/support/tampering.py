"""Random changes of a signed folder, each of which a check must notice."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from support.signing import Signed, signer

from convert.checkpoints.manifest import ATTESTATION_NAME, SIGNATURE_NAME, Manifest
from convert.files.base import file_sha256
from convert.signing.bundle import write_signature
from convert.signing.statements import statements

Tamper = Callable[[Path, Signed, random.Random], str]

NEW_NAMES = (
    "pytorch_model.bin", "model-00001-of-00002.safetensors", "notes.txt", ".hidden", ".gitignore", ".github",
    "model.sig.bak", "Model.sig", "conversion.intoto.jsonl", " ", "é", "a\nb", "-rf",
)  # fmt: skip


def tampered(folders: Signed, target: Path, count: int, seed: int = 0) -> Iterator[str]:
    """Make `target` a changed copy of the signed folder `tiny`, `count` times; yield a description of each change."""
    generator = random.Random(seed)
    for number in range(count):
        tamper = TAMPERS[number % len(TAMPERS)] if number < len(TAMPERS) else generator.choice(TAMPERS)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folders.place / "tiny", target)
        yield f"{number} {tamper.__name__}: {tamper(target, folders, generator)}"


def change_a_byte(folder: Path, folders: Signed, generator: random.Random) -> str:
    path = _any(folder, generator)
    data = bytearray(path.read_bytes())
    place = generator.randrange(len(data)) if data else 0
    data[place : place + 1] = bytes([(data[place] if data else 0) ^ generator.randrange(1, 256)])
    path.write_bytes(data)
    return f"{path.name} at {place}"


def change_a_byte_of_the_signature(folder: Path, folders: Signed, generator: random.Random) -> str:
    path = folder / generator.choice((SIGNATURE_NAME, ATTESTATION_NAME))
    data = bytearray(path.read_bytes())
    place = generator.randrange(len(data))
    data[place] ^= generator.randrange(1, 256)
    path.write_bytes(data)
    return f"{path.name} at {place}"


def insert_or_delete_a_byte(folder: Path, folders: Signed, generator: random.Random) -> str:
    path = folder / generator.choice((SIGNATURE_NAME, SIGNATURE_NAME, ATTESTATION_NAME, "verification.json"))
    data = bytearray(path.read_bytes())
    place = generator.randrange(len(data))
    if generator.random() < 0.5:
        del data[place]
    else:
        data[place:place] = generator.choice((b"x", b" ", b"0", b"=", b'"', b"\n"))
    path.write_bytes(data)
    return f"{path.name} at {place}"


def name_another_key(folder: Path, folders: Signed, generator: random.Random) -> str:
    """Change a part of the signature that no signature covers."""
    path = folder / SIGNATURE_NAME
    bundle = json.loads(path.read_bytes())
    kind = generator.randrange(4)
    if kind == 0:
        bundle["dsseEnvelope"]["signatures"][0]["keyid"] = "x"
    elif kind == 1:
        bundle["dsseEnvelope"]["signatures"] *= 2
    elif kind == 2:
        bundle["verificationMaterial"]["publicKey"].pop("hint")
    else:
        bundle["more"] = None
    path.write_text(json.dumps(bundle, separators=(",", ":")))
    return str(kind)


def change_the_length(folder: Path, folders: Signed, generator: random.Random) -> str:
    path = _any(folder, generator)
    data = path.read_bytes()
    more = generator.choice((b"\n", b" ", b"\0", b"{}"))
    path.write_bytes(data[:-1] if data and generator.random() < 0.5 else data + more)
    return path.name


def add_a_file(folder: Path, folders: Signed, generator: random.Random) -> str:
    path = folder / generator.choice(NEW_NAMES)
    path.write_bytes(generator.randbytes(generator.randrange(9)))
    return repr(path.name)


def add_a_folder(folder: Path, folders: Signed, generator: random.Random) -> str:
    path = folder / generator.choice(NEW_NAMES)
    path.mkdir()
    if generator.random() < 0.5:
        (path / "model.safetensors").write_bytes(b"x")
    return repr(path.name)


def remove_a_file(folder: Path, folders: Signed, generator: random.Random) -> str:
    path = _any(folder, generator)
    path.unlink()
    return path.name


def rename_a_file(folder: Path, folders: Signed, generator: random.Random) -> str:
    path = _any(folder, generator)
    name = generator.choice((*NEW_NAMES, path.name.upper(), f"{path.name}.bak"))
    path.rename(folder / name)
    return f"{path.name} to {name!r}"


def swap_two_files(folder: Path, folders: Signed, generator: random.Random) -> str:
    first, second = generator.sample([path for path in sorted(folder.iterdir()) if path.stat().st_size], 2)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    return f"{first.name}, {second.name}"


def exchange_with_another_folder(folder: Path, folders: Signed, generator: random.Random) -> str:
    other = folders.place / generator.choice(("timm", "old", "foreign"))
    differing = [
        path for path in sorted(other.iterdir())
        if not (folder / path.name).exists() or path.read_bytes() != (folder / path.name).read_bytes()
    ]  # fmt: skip
    # All of them would be the other folder, which is signed too.
    chosen = generator.sample(differing, generator.randrange(1, len(differing)))
    for path in chosen:
        shutil.copy(path, folder)
    return f"{', '.join(path.name for path in chosen)} of {other.name}"


def replay_an_old_signature(folder: Path, folders: Signed, generator: random.Random) -> str:
    names = generator.choice(((SIGNATURE_NAME,), (SIGNATURE_NAME, ATTESTATION_NAME)))
    for name in names:
        shutil.copy(folders.place / "old" / name, folder)
    return ", ".join(names)


def replace_by_a_link(folder: Path, folders: Signed, generator: random.Random) -> str:
    path = _any(folder, generator)
    place = folder.with_name(f"{folder.name}-linked")
    place.mkdir(exist_ok=True)
    shutil.copy(path, place)
    path.unlink()
    path.symlink_to(place / path.name)
    return path.name


def replace_by_a_pipe(folder: Path, folders: Signed, generator: random.Random) -> str:
    path = _any(folder, generator)
    path.unlink()
    os.mkfifo(path)
    return path.name


def sign_with_another_key(folder: Path, folders: Signed, generator: random.Random) -> str:
    """Sign everything again with another key: only the signature, only the attestation, or both."""
    kind = generator.choice(("signature", "attestation", "both"))
    if kind != "signature":
        shutil.copy(folders.place / "foreign" / ATTESTATION_NAME, folder)
        for name in ("verification.json", "verification.html", "README.md"):  # they name the signer
            shutil.copy(folders.place / "foreign" / name, folder)
    (folder / SIGNATURE_NAME).unlink()
    write_signature(folder, signer(folders.private if kind == "attestation" else folders.foreign))
    return kind


def attest_other_digests(folder: Path, folders: Signed, generator: random.Random) -> str:
    """Let the signer attest something else than what is there, and sign that: the statements must fit the files."""
    manifest = Manifest.read(folder)
    assert manifest is not None
    paths = [path for path in sorted(folder.iterdir()) if path.name not in (SIGNATURE_NAME, ATTESTATION_NAME)]
    made = statements(manifest, (folder / "verification.json").read_bytes(), {p.name: file_sha256(p) for p in paths})
    key, statement = signer(folders.private), generator.choice(made)
    kind = generator.randrange(6)
    if kind == 0:
        generator.choice(statement["subject"])["digest"]["sha256"] = generator.randbytes(32).hex()
    elif kind == 1:
        statement["subject"].remove(generator.choice(statement["subject"]))
    elif kind == 2:
        made.remove(statement)
    elif kind == 3:
        made.append(statement)
    elif kind == 4:
        statement["predicateType"] = generator.choice(("https://in-toto.io/attestation/link/v0.3", "", 7))
    else:
        made[1]["predicate"]["runs"][0]["taps"][0]["error"] = generator.random() * 1e-12
    (folder / ATTESTATION_NAME).write_bytes(b"".join(key.sealed(json.dumps(item).encode()) + b"\n" for item in made))
    (folder / SIGNATURE_NAME).unlink()
    write_signature(folder, key)
    return str(kind)


def replace_by_garbage(folder: Path, folders: Signed, generator: random.Random) -> str:
    name = generator.choice((SIGNATURE_NAME, ATTESTATION_NAME))
    garbage = (b"", b"{}", b"[]", b"null", b"7", b'"', b"[" * 100_000, b"\xff\xfe", b"{}\n{}\n", b'{"dsseEnvelope":1}')
    (folder / name).write_bytes(data := generator.choice(garbage))
    return f"{name}: {data[:20]!r}"


TAMPERS: tuple[Tamper, ...] = (
    change_a_byte,
    change_a_byte_of_the_signature,
    insert_or_delete_a_byte,
    name_another_key,
    change_the_length,
    add_a_file,
    add_a_folder,
    remove_a_file,
    rename_a_file,
    swap_two_files,
    exchange_with_another_folder,
    replay_an_old_signature,
    replace_by_a_link,
    replace_by_a_pipe,
    sign_with_another_key,
    attest_other_digests,
    replace_by_garbage,
)


def _any(folder: Path, generator: random.Random) -> Path:
    return generator.choice(sorted(folder.iterdir()))
