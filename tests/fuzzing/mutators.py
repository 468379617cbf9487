"""Changes of files that keep what a reader checks first: lengths, checksums and the form of JSON.

A mutator gets a file, a seeded random generator, and `native`, which changes bytes blindly; it returns another file.
It may raise anything for a file that it cannot take apart (see `Reader.mutate`).
"""

from __future__ import annotations

import base64
import copy
import io
import json as json_package
import pickletools
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

Native = Callable[[bytes], bytes]
Mutator = Callable[[bytes, random.Random, Native], bytes]

MOST = 200_000
"""Largest part, in bytes, that is made by repeating something."""
RAW = {
    "@raw0@": "1e400",
    "@raw1@": "-1e400",
    "@raw2@": "NaN",
    "@raw3@": "Infinity",
    "@raw4@": "1" + "0" * 400,
    "@raw5@": "-" + "9" * 5000,
    "@raw6@": "[" * 100_000 + "]" * 100_000,
    "@raw7@": '{"a":' * 30_000 + "1" + "}" * 30_000,
    "@raw8@": "[" * 800 + "]" * 800,
    "@raw9@": "-0",
}
"""JSON that Python's encoder would not write, by the text that stands for it until the end."""
NUMBERS = (0, -1, 1, 2, 0.0, 0.5, 1e-320, 1e300, 255, 30_000, 2**31, 2**53 + 1, 2**63, 2**64, -(2**63))
TEXTS = (
    "",
    "\0",
    "\x1b[2J\x1b]0;title\x07",
    "\ud800",
    "\u202e",
    "x" * 10_000,
    "../../etc/passwd",
    "/",
    ".",
    "<img src=x onerror=alert(1)>",
    "`|\n# heading",
    "{0.__class__}",
    "%s%n",
    "float16",
    "R50x1",
    "BiT-M-R50x1",
    "new:9999999",
    "0" * 64,
)
ODD: tuple[Any, ...] = (None, True, False, [], {}, [[]], [None], {"": None}, *NUMBERS, *TEXTS, *RAW)

HEADER_WORDS = "-1 0 True None () (1,) (2,3) 10**9 1e400 '<f4' '>f8' 'O' '<V2' '|i1' {} shape descr".split()
"""Values in the header of an `.npy` array."""
OPCODES = (
    *(b"(", b"t", b")", b"]", b"}", b"\x85", b"\x86", b"\x87", b"d", b"l", b"u", b"s", b"a", b"e", b"0", b"2", b"N"),
    *(b"\x88", b"R", b"b", b"Q", b"q\x00", b"h\x00", b"K\xff", b"J\xff\xff\xff\xff", b"X\x01\x00\x00\x00a"),
    b"\x8a\x09" + b"\xff" * 8 + b"\x7f",
    b"G\x7f\xf8\x00\x00\x00\x00\x00\x00",
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
    b"ctorch\nSize\n",
    b"cargparse\nNamespace\n",
    b"cposix\nsystem\n",
)
"""Parts of a pickle: containers, marks, memory, numbers and calls."""
MIX = ((0, 2, 1, 4), (1, 0, 2, 6), (2, 1, 0, 8), (0, 2, 1, 16), (1, 0, 2, 19), (2, 1, 0, 4))
LAST = ((2, 1, 14), (0, 2, 11), (1, 0, 25), (2, 1, 16), (0, 2, 4), (1, 0, 14), (2, 1, 24))
"""The two tables of `lookup3`."""


def plain(data: bytes, rng: random.Random, native: Native) -> bytes:
    return native(data)


def json(data: bytes, rng: random.Random, native: Native) -> bytes:
    """Change some nodes of the tree."""
    tree = json_package.loads(data)
    if rng.random() < 0.1:
        return native(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        tree = _changed(tree, rng, native)
    text = json_package.dumps(tree)
    for mark, raw in RAW.items():
        text = text.replace(f'"{mark}"', raw)
    return text.encode("utf-8", "surrogatepass")


def lines(data: bytes, rng: random.Random, native: Native) -> bytes:
    """Change one line of JSON, or the JSON in base 64 that it holds as the payload of a signature."""
    found = data.split(b"\n")
    index = rng.randrange(len(found))
    payload = re.search(rb'"payload": ?"([A-Za-z0-9+/=]+)"', found[index])
    if payload is None or rng.random() < 0.5:
        found[index] = json(found[index], rng, native)
    else:
        changed = base64.b64encode(json(base64.b64decode(payload[1]), rng, native))
        found[index] = found[index].replace(payload[1], changed)
    return b"\n".join(found)


def npz(data: bytes, rng: random.Random, native: Native) -> bytes:
    return _archive(data, rng, native, _changed_array, _zip)


def keras(data: bytes, rng: random.Random, native: Native) -> bytes:
    return _archive(data, rng, native, _changed_part, _zip)


def pytorch(data: bytes, rng: random.Random, native: Native) -> bytes:
    return _archive(data, rng, native, _changed_member, _torch_zip)


def pickle(data: bytes, rng: random.Random, native: Native) -> bytes:
    """Delete, repeat, exchange or insert operations of one of the pickles that follow each other in `data`."""
    parts = list(_operations(data))
    if len(parts) < 3 or rng.random() < 0.1:
        return native(data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        first, second = rng.randrange(len(parts)), rng.randrange(len(parts))
        match rng.randrange(7):
            case 0:
                del parts[first]
            case 1:
                parts.insert(second, parts[first])
            case 6:  # what takes long for many operations
                some = parts[first : first + rng.randint(1, 8)]
                parts[first:first] = some * min(rng.choice((2, 100, 10_000)), MOST // len(b"".join(some)))
            case 2:
                parts[first], parts[second] = parts[second], parts[first]
            case 3:
                parts.insert(first, rng.choice(OPCODES) * rng.choice((1, 1, 1, 2, 50)))
            case 4:
                parts[first] = native(parts[first])
            case _:
                parts[first] = rng.choice(OPCODES)
        if len(parts) < 3:
            break
    return b"".join(parts)


def safetensors(data: bytes, rng: random.Random, native: Native) -> bytes:
    """Change the header, and put the length before it right."""
    size = int.from_bytes(data[:8], "little")
    if rng.random() < 0.2 or size > len(data):
        return native(data)
    header, rest = json(data[8 : 8 + size], rng, native), data[8 + size :]
    if rng.random() < 0.1:
        rest = rest[: rng.randrange(len(rest) + 1)]
    return len(header).to_bytes(8, "little") + header + rest


def h5(data: bytes, rng: random.Random, native: Native) -> bytes:
    """Change bytes, and put the checksums of the superblock and of the object headers right."""
    changed = bytearray(native(data))
    for start, length in _checked_blocks(bytes(changed)):
        if 0 < length <= len(changed) - start - 4:
            struct.pack_into("<I", changed, start + length, lookup3(bytes(changed[start : start + length])))
    return bytes(changed)


def onnx(data: bytes, rng: random.Random, native: Native) -> bytes:
    """Change fields of the model."""
    import onnx as package

    model = package.load_from_string(data)
    if not model.graph.initializer or rng.random() < 0.3:
        return native(data)
    for _ in range(rng.choice((1, 1, 2))):
        item = rng.choice(model.graph.initializer)
        other = rng.choice(model.graph.initializer)
        match rng.randrange(8):
            case 0:
                item.name = rng.choice(
                    (other.name, "", *TEXTS[1:3], native(item.name.encode()).decode("utf-8", "replace"))
                )
            case 1:
                item.dims[:] = rng.choice(([], [-1], [0], [2**62, 4], [2**63 - 1], [*other.dims], [1] * 100))
            case 2:
                item.data_type = rng.choice((0, 1, 2, 10, 11, 16, 99, -1))
            case 3:
                item.raw_data = item.raw_data[: rng.randrange(len(item.raw_data) + 1)]
            case 4:
                item.data_location = rng.choice((0, 1))
                entry = item.external_data.add()
                entry.key = rng.choice(("location", "offset", "length", "checksum", "odd"))
                entry.value = rng.choice(
                    ("input.onnx.data", "/dev/zero", "..", "", "-1", "4", "1" + "0" * 400, "1e3", "９")
                )
            case 5:
                model.graph.initializer.append(copy.deepcopy(other))
            case 6:
                entry = model.metadata_props.add(key="labels")
                entry.value = json(b'["cat", "dog"]', rng, native).decode("utf-8", "replace")
            case _:
                model.graph.initializer.remove(item)
        if not model.graph.initializer:
            break
    return bytes(model.SerializeToString())


def lookup3(data: bytes) -> int:
    """Return the checksum of HDF5's metadata (Bob Jenkins, `lookup3.c`, `hashlittle`)."""

    def rotated(value: int, by: int) -> int:
        return (value << by | value >> (32 - by)) & 0xFFFFFFFF

    state = [(0xDEADBEEF + len(data)) & 0xFFFFFFFF] * 3
    for start in range(0, len(data), 12):
        words = struct.unpack("<3I", data[start : start + 12].ljust(12, b"\0"))
        state = [(value + word) & 0xFFFFFFFF for value, word in zip(state, words, strict=True)]
        if start + 12 < len(data):
            for first, second, third, by in MIX:
                state[first] = (state[first] - state[second]) & 0xFFFFFFFF ^ rotated(state[second], by)
                state[second] = (state[second] + state[third]) & 0xFFFFFFFF
    for first, second, by in LAST if data else ():
        state[first] = ((state[first] ^ state[second]) - rotated(state[second], by)) & 0xFFFFFFFF
    return state[2]


def _checked_blocks(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield start and length of the blocks that a checksum follows (HDF5 file format, II.A and IV.A.1.b)."""
    if data[8:9] in (b"\2", b"\3"):
        yield 0, 44
    for match in re.finditer(rb"OHDR\x02(.)", data, re.DOTALL):
        flags, start = match[1][0], match.start()
        sizes = start + 6 + (16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0)
        messages = sizes + (1 << (flags & 3))
        yield start, messages - start + int.from_bytes(data[sizes:messages], "little")


def _changed(tree: Any, rng: random.Random, native: Native) -> Any:
    """Return the tree with one node changed."""
    places = list(_places(tree))
    if not places or rng.random() < 0.03:
        return rng.choice(ODD)
    node, key = rng.choice(places)
    match rng.randrange(8):
        case 0 | 1 | 2:
            node[key] = rng.choice(ODD)
        case 3:
            other, name = rng.choice(places)
            node[key] = copy.deepcopy(other[name])
        case 4:
            del node[key]
        case 5 if isinstance(node, dict):
            node[rng.choice([*TEXTS, *node])] = node.pop(key)
        case 6 if isinstance(node, list):
            node[key:key] = [node[key]] * rng.choice((1, 2, 1000))
        case 6 if rng.random() < 0.3:
            node |= {f"{key}{number}": node[key] for number in range(rng.choice((2, 1000)))}
        case _ if isinstance(node[key], str):
            node[key] = native(node[key].encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
        case _ if type(node[key]) in (int, float):
            node[key] = rng.choice((-node[key], node[key] + 1, float(node[key]), str(node[key]), [node[key]]))
        case _:
            node[key] = rng.choice(([], {}))
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every node but the root, as the container and the key in it."""
    pending = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, dict | list):
            for key in node if isinstance(node, dict) else range(len(node)):
                yield node, key
                pending.append(node[key])


Member = tuple[str, bytes, int]
"""Name, content and method of compression."""


def _archive(
    data: bytes,
    rng: random.Random,
    native: Native,
    change: Callable[[str, bytes, random.Random, Native], bytes],
    pack: Callable[[list[Member]], bytes],
) -> bytes:
    """Change a member or the list of members, and pack them again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info), info.compress_type) for info in archive.infolist()]
    if not members or rng.random() < 0.2:
        return native(data)
    for _ in range(rng.choice((1, 1, 2))):
        index = rng.randrange(len(members))
        name, content, method = members[index]
        match rng.randrange(10):
            case 0:
                members[index] = rng.choice((*TEXTS, *(other for other, *_ in members))) or "x", content, method
            case 1:
                members[index] = f"{name}{rng.choice(TEXTS)}", content, method
            case 2 if rng.random() < 0.3:
                count = min(500, MOST // (len(content) + 200))
                members += [(f"{number}{name}", content, method) for number in range(count)]
            case 2:
                members.insert(rng.randrange(len(members)), members[index])
            case 3 if len(members) > 1:
                del members[index]
            case 4:
                members[index] = name, content, zipfile.ZIP_DEFLATED if method == zipfile.ZIP_STORED else 0
            case _:
                members[index] = name, change(name, content, rng, native), method
    return pack(members)


def _zip(members: list[Member]) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "w") as archive:
        for name, content, method in members:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def _torch_zip(members: list[Member]) -> bytes:
    """Pack an archive as `torch.save` does, with aligned members."""
    import torch

    buffer = io.BytesIO()
    writer = torch._C.PyTorchFileWriter(buffer)
    for name, content, _ in members:
        inner = name.partition("/")[2] or name
        if inner not in ("version", "byteorder", ".data/serialization_id"):
            writer.write_record(inner, content, len(content))
    writer.write_end_of_file()
    return buffer.getvalue()


def _changed_array(name: str, content: bytes, rng: random.Random, native: Native) -> bytes:
    """Change the header of an `.npy` array, and put the length in it right."""
    size = 10 + int.from_bytes(content[8:10], "little")
    if content[:6] != b"\x93NUMPY" or rng.random() < 0.3:
        return native(content[:size]) + content[size:]
    words = re.findall(r"'[^']*'|\w+|\s+|.", content[10:size].decode("latin-1"))
    index = rng.randrange(len(words))
    words[index] = rng.choice(("", words[index] * rng.choice((2, 3, 500)), rng.choice(HEADER_WORDS), rng.choice(words)))
    header = "".join(words).encode("latin-1")
    return content[:8] + min(len(header), 65535).to_bytes(2, "little") + header + content[size:]


def _changed_part(name: str, content: bytes, rng: random.Random, native: Native) -> bytes:
    """Change the description or the weights of a `.keras` file."""
    try:
        return json(content, rng, native) if name.endswith(".json") else native(content)
    except ValueError:  # another change took the name or the content away
        return native(content)


def _changed_member(name: str, content: bytes, rng: random.Random, native: Native) -> bytes:
    return pickle(content, rng, native) if name.endswith("data.pkl") else native(content)


def _operations(data: bytes) -> Iterator[bytes]:
    """Yield the operations of the pickles that follow each other in `data`, then what is no pickle."""
    start = 0
    while start < len(data):
        try:
            positions = [position for *_, position in pickletools.genops(data[start:])]
        except Exception:  # not a pickle
            break
        ends = [*positions[1:], positions[-1] + 1]
        yield from (data[start + begin : start + end] for begin, end in zip(positions, ends, strict=True))
        start += ends[-1]
    if start < len(data):
        yield data[start:]
