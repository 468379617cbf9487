"""Fetching over real HTTP, from a server on loopback that can misbehave."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support.bucket import GOOGLE, Bucket, Fault, archive, serving
from support.command import assert_refused, bit, run_here
from support.tls import certificate

from convert.errors import CheckpointError, DownloadError
from convert.files.base import file_sha256
from convert.progress import silent
from convert.sources import download as policy
from convert.sources.download import download
from convert.sources.remote import info_path
from convert.sources.resolve import locate

SIZE = len(archive(1))
OFFSETS = {"before the first byte": 0, "after it": 1, "middle": SIZE // 2, "last byte": SIZE - 1}
ENDLESS = 1000


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "BACKOFF", 0.01)
    monkeypatch.setattr(policy, "LONGEST_BACKOFF", 0.02)
    monkeypatch.setattr(policy, "TIMEOUT", 10.0)
    monkeypatch.setattr(policy, "PATIENCE", 10.0)
    monkeypatch.setattr(policy, "UNREACHED_PATIENCE", 0.05)


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    with serving(Bucket()) as bucket:
        yield bucket


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


KINDS: dict[str, Callable[[int, int], list[Fault]]] = {
    "the connection is cut": lambda at, times: [Fault(cut=at)] * times,
    "the connection stalls": lambda at, times: [Fault(stall=at)] * times,
    "a byte is changed": lambda at, times: [Fault(corrupt=at)] * times,
    "the file changes": lambda at, times: [Fault(cut=at, changes=True)] * times,
    "ranges are ignored": lambda at, times: [Fault(cut=at), *[Fault(cut=at, ignores_range=True)] * times],
    "the service fails": lambda at, times: [Fault(cut=at), *[Fault(status=503)] * times],
}


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_download_survives_a_temporary_fault(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, offset: str
) -> None:
    if kind == "the connection stalls":
        monkeypatch.setattr(policy, "TIMEOUT", 0.2)
    bucket.faults = KINDS[kind](OFFSETS[offset], 1)
    download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
    assert (tmp_path / "a.npz").read_bytes() == bucket.content
    assert names(tmp_path) == {"a.npz", "a.npz.download.json"}
    assert bucket.faults == [], "the fault must have happened"


@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_lasting_fault_leaves_a_resumable_part_or_nothing(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, offset: str
) -> None:
    monkeypatch.setattr(policy, "TIMEOUT", 0.2)
    monkeypatch.setattr(policy, "PATIENCE", 0.3)
    bucket.faults = KINDS[kind](OFFSETS[offset], ENDLESS)
    with pytest.raises(DownloadError, match="fetch it by hand and put it at"):
        download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
    kept = names(tmp_path)
    assert kept in (set(), {"a.npz.part", "a.npz.download.json"})
    size = (tmp_path / "a.npz.part").stat().st_size if kept else 0
    assert size in (0, OFFSETS[offset])
    monkeypatch.undo()
    bucket.faults, before = [], len(bucket.requests)
    download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
    assert (tmp_path / "a.npz").read_bytes() == bucket.content
    assert bucket.ranges[before] == (f"bytes={size}-" if size else None)


def test_a_cut_download_resumes_where_it_was_cut(bucket: Bucket, tmp_path: Path) -> None:
    bucket.faults = [Fault(cut=1000), Fault(cut=70_000), Fault(cut=SIZE - 1)]
    steps: list[tuple[str, int, int]] = []
    download(f"{bucket.address}/a.npz", tmp_path / "a.npz", lambda *step: steps.append(step))
    assert bucket.ranges == [None, "bytes=1000-", "bytes=70000-", f"bytes={SIZE - 1}-"]
    assert all(request.path == "/a.npz?generation=1" for request in bucket.requests[1:])
    assert all(request.headers["Accept-Encoding"] == "identity" for request in bucket.requests)
    done = [step[1] for step in steps if step[0] == "downloading"]
    assert done == sorted(done)
    assert steps[-1] == ("downloading", SIZE, SIZE)


def test_a_redirect_is_followed(bucket: Bucket, tmp_path: Path) -> None:
    elsewhere = Fault(status=302, headers={"Location": "/elsewhere.npz"})
    bucket.faults = [elsewhere, Fault(cut=1000), elsewhere]
    download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
    assert (tmp_path / "a.npz").read_bytes() == bucket.content
    assert bucket.ranges == [None, None, "bytes=1000-", "bytes=1000-"]


MIRRORS = {
    "Google": (GOOGLE, True),
    "a composite object": (("length", "generation", "crc32c"), True),
    "ETag": (("length", "etag"), True),
    "time of the last change": (("length", "last-modified"), True),
    "weak ETag and time": (("length", "weak etag", "last-modified"), True),
    "ETag, and no length": (("etag",), True),
    "weak ETag": (("length", "weak etag"), False),
    "length": (("length",), False),
    "nothing": ((), False),
}
"""Headers that a server sends, and whether a part from it can be resumed."""


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize("mirror", MIRRORS)
def test_a_part_is_resumed_only_if_the_server_identifies_the_version(
    tmp_path: Path, mirror: str, changes: bool
) -> None:
    states, resumable = MIRRORS[mirror]
    with serving(Bucket(states)) as bucket:
        bucket.faults = [Fault(cut=1000, changes=changes)]
        download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
        assert (tmp_path / "a.npz").read_bytes() == bucket.content
        whole = "length" in states  # else the cut looks like the end
        assert bucket.ranges[1] == ("bytes=1000-" if resumable and whole else None)


def test_a_part_that_cannot_be_resumed_is_removed(tmp_path: Path) -> None:
    with serving(Bucket(["length"])) as bucket:
        bucket.faults = [Fault(cut=1000), Fault(cut=1000), Fault(status=403)]
        with pytest.raises(DownloadError, match="403 Forbidden; fetch it by hand"):
            download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    "lie",
    [
        {"Content-Range": f"bytes 999-{SIZE - 1}/{SIZE}"},
        {"Content-Range": f"bytes 1000-{SIZE - 1}/{SIZE + 1}"},
        {"Content-Range": "none"},
        {"x-goog-generation": "2"},
    ],
)
def test_a_rest_of_another_version_is_not_used(bucket: Bucket, tmp_path: Path, lie: dict[str, str]) -> None:
    bucket.faults = [Fault(cut=1000), Fault(headers=lie)]
    download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
    assert bucket.ranges == [None, "bytes=1000-", None]
    assert (tmp_path / "a.npz").read_bytes() == bucket.content


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 304])
def test_a_refusal_ends_the_download_at_once_and_leaves_nothing(bucket: Bucket, tmp_path: Path, status: int) -> None:
    bucket.faults = [Fault(status=status)]
    with pytest.raises(DownloadError, match=f"answers {status}") as raised:
        download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
    assert f"{bucket.address}/a.npz" in str(raised.value)
    assert f"put it at {tmp_path / 'a.npz'}" in str(raised.value)
    assert len(bucket.requests) == 1
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault(corrupt=SIZE // 2), "sent bytes with another CRC-32C than stated"),
        (Fault(headers={"X-Goog-Hash": "md5=AAAAAAAAAAAAAAAAAAAAAA=="}), "sent bytes with another MD5 than stated"),
    ],
)
def test_a_file_with_a_wrong_checksum_is_fetched_once_more(
    bucket: Bucket, tmp_path: Path, fault: Fault, message: str
) -> None:
    bucket.faults = [fault] * 2
    with pytest.raises(DownloadError, match=message):
        download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
    assert bucket.ranges == [None, None]
    assert names(tmp_path) == set()


def test_anything_but_an_archive_is_refused(tmp_path: Path) -> None:
    wanted = pytest.raises(DownloadError, match="sent something other than an npz file")
    with serving(Bucket(content=b"No such bucket, dear.")) as bucket, wanted:
        download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
    assert names(tmp_path) == set()


def test_a_web_page_does_not_replace_the_downloaded_part(bucket: Bucket, tmp_path: Path) -> None:
    page = Fault(ignores_range=True, headers={"Content-Type": "text/html; charset=utf-8"})
    bucket.faults = [Fault(cut=1000), page]
    with pytest.raises(DownloadError, match=r"web page.*resumes at byte 1000;"):
        download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
    assert (tmp_path / "a.npz.part").read_bytes() == bucket.content[:1000]


def test_a_busy_server_gets_the_time_that_it_asks_for(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.faults = [Fault(status=429, headers={"Retry-After": "7"})]
    slept: list[float] = []
    monkeypatch.setattr(policy, "sleep", slept.append)
    download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
    assert slept == [7]


@pytest.mark.parametrize("wait", ["3600", "Thu, 01 Jan 2026 13:00:00 GMT"], ids=["seconds", "date"])
def test_a_download_ends_if_the_server_asks_for_too_much_time(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wait: str
) -> None:
    monkeypatch.setattr(policy, "time", datetime(2026, 1, 1, 12, tzinfo=UTC).timestamp)
    bucket.faults = [Fault(status=503, headers={"Retry-After": wait})]
    with pytest.raises(DownloadError, match="answers 503 Service Unavailable and asks to wait 3600 seconds"):
        download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
    assert len(bucket.requests) == 1


def test_a_file_larger_than_the_disk_is_not_begun(bucket: Bucket, tmp_path: Path) -> None:
    bucket.faults = [Fault(headers={"Content-Length": str(10**18)})]
    with pytest.raises(DownloadError, match=r"needs 1000000000\.00 GB on the disk"):
        download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:9/a.npz", "http://nowhere.invalid/a.npz", "ftp://127.0.0.1/a.npz", "http://[/a.npz"]
)
def test_an_unreachable_address_fails_soon(tmp_path: Path, address: str) -> None:
    with pytest.raises(DownloadError, match="cannot be reached") as raised:
        download(address, tmp_path / "a.npz", silent)
    assert f"put it at {tmp_path / 'a.npz'}" in str(raised.value)
    assert names(tmp_path) == set()


def test_a_proxy_in_the_environment_is_used(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", bucket.address)
    download("http://storage.invalid/a.npz", tmp_path / "a.npz", silent)
    assert (tmp_path / "a.npz").read_bytes() == bucket.content
    assert bucket.requests[0].path == "http://storage.invalid/a.npz"
    monkeypatch.setenv("http_proxy", "nonsense://proxy")
    with pytest.raises(DownloadError, match="nonsense"):
        download("http://storage.invalid/b.npz", tmp_path / "b.npz", silent)


def test_a_published_name_is_fetched_once(bucket: Bucket, tmp_path: Path) -> None:
    for mirror in (f"{bucket.address}/", "http://127.0.0.1:9/nowhere"):
        path = locate("BiT-M-R50x1-run0-caltech101", tmp_path, silent, mirror)
        assert path.read_bytes() == bucket.content
    assert path == tmp_path / "BiT-M-R50x1-run0-caltech101.npz"
    assert [request.path for request in bucket.requests] == ["/vtab/BiT-M-R50x1-run0-caltech101.npz"]


def test_a_mirror_in_the_environment_is_used(tiny_npz: Path, tmp_path: Path) -> None:
    with serving(Bucket(content=tiny_npz.read_bytes())) as bucket:
        result = bit("inspect", "BiT-S-R50x1", cwd=tmp_path, BIT_MIRROR=bucket.address)
    assert_refused(result, "states R50x1, but the tensors are", tmp_path)
    assert file_sha256(tmp_path / "checkpoints" / "BiT-S-R50x1.npz") == file_sha256(tiny_npz)
    assert [request.path for request in bucket.requests] == ["/BiT-S-R50x1.npz"]


def test_a_file_that_changed_since_it_was_fetched_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    url = f"{bucket.address}/a.npz"
    download(url, path, silent)
    path.touch()
    download(url, path, silent)
    path.write_bytes(bytes([*bucket.content[:-1], bucket.content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"is not the file that was fetched from {url}: the SHA-256 is"):
        download(url, path, silent)
    path.write_bytes(bucket.content[:-1])
    with pytest.raises(CheckpointError, match=f"it has {SIZE - 1} bytes instead of {SIZE}; delete it"):
        download(url, path, silent)
    info_path(path).unlink()
    download(url, path, silent)
    assert path.stat().st_size == SIZE - 1, "a file put there by hand is used as it is"
    assert len(bucket.requests) == 1


def test_a_published_h5_file_is_fetched_by_its_full_name(tmp_path: Path) -> None:
    content = b"\x89HDF\r\n\x1a\n" + bytes(1000)
    with serving(Bucket(content=content)) as bucket:
        assert locate("BiT-M-R50x1.h5", tmp_path, silent, bucket.address) == tmp_path / "BiT-M-R50x1.h5"
    assert (tmp_path / "BiT-M-R50x1.h5").read_bytes() == content


LOGIN = "someone:p%40ss-word@"
SECRETS = ("someone", "p%40ss-word", "p@ss-word")


def with_login(bucket: Bucket) -> str:
    return bucket.address.replace("://", f"://{LOGIN}")


def test_credentials_of_a_mirror_are_sent_and_neither_stored_nor_shown(bucket: Bucket, tmp_path: Path) -> None:
    bucket.faults = [Fault(cut=1000), Fault(status=401), Fault(status=403)]
    arguments = ("inspect", "BiT-M-R50x1", "--mirror", with_login(bucket))
    result = run_here(*arguments, cwd=tmp_path)
    refused = run_here(*arguments, cwd=tmp_path)
    assert_refused(refused, f"{bucket.address}/BiT-M-R50x1.npz answers 403 Forbidden; the next try resumes", tmp_path)
    kept = [path.read_text("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    run_here(*arguments, cwd=tmp_path)
    kept += [path.read_text("latin-1") for path in tmp_path.rglob("*") if path.is_file()]
    for secret in SECRETS:
        assert all(secret not in text for text in (result.stderr, result.stdout, refused.stderr, *kept))
    expected = "Basic " + base64.b64encode(b"someone:p@ss-word").decode()
    assert {request.headers.get("Authorization") for request in bucket.requests} == {expected}


def test_a_part_whose_description_holds_credentials_is_resumed(bucket: Bucket, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    bucket.faults = [Fault(cut=1000), Fault(status=403)]
    with pytest.raises(DownloadError):
        download(f"{bucket.address}/a.npz", path, silent)
    info_path(path).write_text(info_path(path).read_text().replace("http://", f"http://{LOGIN}"))
    download(f"{with_login(bucket)}/a.npz", path, silent)
    assert bucket.ranges[-1] == "bytes=1000-"
    assert "ss-word" not in info_path(path).read_text()


@pytest.mark.parametrize(
    "address",
    [f"https:/{LOGIN}host", f"{LOGIN}host", "http://someone:p%40ss-word@[", "http://someone:p%40ss-word/x@127.0.0.1:9"],
)
def test_credentials_of_an_invalid_address_are_not_shown(tmp_path: Path, address: str) -> None:
    result = run_here("inspect", "BiT-M-R50x1", "--mirror", address, cwd=tmp_path)
    assert_refused(result, "cannot be reached", tmp_path)
    assert not any(secret in result.stderr for secret in SECRETS)


def test_a_server_to_which_a_mirror_redirects_gets_no_credentials(bucket: Bucket, tmp_path: Path) -> None:
    with serving(Bucket()) as other:
        bucket.faults = [Fault(status=302, headers={"Location": f"{other.address}/a.npz"})]
        download(f"{with_login(bucket)}/a.npz", tmp_path / "a.npz", silent)
    assert "Authorization" in bucket.requests[0].headers
    assert "Authorization" not in other.requests[0].headers


def test_a_redirect_from_https_to_http_is_refused(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = certificate(tmp_path / "certificate.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(issued))
    with serving(Bucket(), issued) as secure:
        download(f"{secure.address}/a.npz", tmp_path / "a.npz", silent)
        secure.faults = [Fault(status=302, headers={"Location": f"{bucket.address}/b.npz"})]
        with pytest.raises(DownloadError, match=r"b\.npz leads from https to http"):
            download(f"{secure.address}/b.npz", tmp_path / "b.npz", silent)
    assert bucket.requests == []
    assert not (tmp_path / "b.npz").exists()


@pytest.mark.parametrize("start", [0, 1000])
def test_no_more_bytes_than_stated_are_accepted(bucket: Bucket, tmp_path: Path, start: int) -> None:
    bucket.faults = [Fault(cut=start)] * bool(start) + [Fault(extra=1 << 30)]
    with pytest.raises(DownloadError, match=f"sends more than the {SIZE} bytes that it states; fetch it by hand"):
        download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
    assert names(tmp_path) == set()
    assert bucket.sent < 1 << 27, "the rest is not read"


def test_chunks_with_the_stated_bytes_are_accepted(bucket: Bucket, tmp_path: Path) -> None:
    bucket.faults = [Fault(extra=0)]
    download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
    assert (tmp_path / "a.npz").read_bytes() == bucket.content


def test_a_file_without_a_stated_size_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "LARGEST", SIZE - 1)
    with serving(Bucket(["etag"])) as bucket, pytest.raises(DownloadError, match=r"sends more than 0\.0 GB"):
        download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
    assert names(tmp_path) == set()


def test_a_compressed_answer_is_refused(bucket: Bucket, tmp_path: Path) -> None:
    bucket.faults = [Fault(headers={"Content-Encoding": "gzip"})]
    with pytest.raises(DownloadError, match="compresses the answer, though told not to"):
        download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
    assert names(tmp_path) == set()


def test_a_server_that_sends_drop_by_drop_is_left(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "PATIENCE", 0.3)
    monkeypatch.setattr(policy, "SLOWEST", 1e9)
    bucket.pause = 0.05
    with pytest.raises(DownloadError, match=r"did not answer completely within .* resumes at byte \d+; or"):
        download(f"{bucket.address}/a.npz", tmp_path / "a.npz", silent)
