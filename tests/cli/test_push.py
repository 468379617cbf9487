"""`bit push` as a user runs it: output, exit status, the secrecy of the token, and libraries that load the result."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from support.command import BIT, bit
from support.conversions import convert, verified
from support.hub import HubServer
from support.pushing import REPOSITORY, TOKEN, account, local, push

from convert.files.base import file_sha256

# The second: huggingface_hub hands files to its HTTP client in a deprecated way.
pytestmark = [
    pytest.mark.usefixtures("pushes_at_once"),
    pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning"),
]


def run(server: HubServer, folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    home = {"HF_HOME": str(folder.parent / "home"), "HF_TOKEN": TOKEN, **server.environment}
    result = bit("push", folder, *arguments, cwd=folder.parent, **{**home, **environment})
    assert TOKEN not in result.stdout + result.stderr
    for path in folder.parent.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path
    return result


def test_the_command_pushes_and_keeps_the_token_secret(server: HubServer, folder: Path, tiny_npz: Path) -> None:
    planned = run(server, folder, REPOSITORY, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "me/tiny would be created, public" in planned.stdout
    assert "nothing was sent" in planned.stdout
    assert "the quick verification was repeated, and passed" in planned.stdout
    assert server.sent() == []
    pushed = run(server, folder, REPOSITORY, "--message", "First", HF_DEBUG="1")
    assert pushed.returncode == 0, pushed.stderr
    assert f"commit {server.repositories[REPOSITORY].head[:12]}" in pushed.stdout
    again = run(server, folder, REPOSITORY, "--json", "--source", str(tiny_npz))
    assert again.returncode == 0, again.stderr
    printed = json.loads(again.stdout)
    assert (printed["state"], printed["reverified"]) == ("identical", True)
    assert printed["commit"] == server.repositories[REPOSITORY].head
    assert printed["url"] == f"{server.endpoint}/me/tiny"
    assert printed["files"].keys() == {*local(folder), "README.md"}


def test_the_exit_status_tells_an_unverified_folder_from_a_refused_push(server: HubServer, folder: Path) -> None:
    server.tokens[TOKEN] = account("read")
    refused = run(server, folder, REPOSITORY, "--no-reverify", HF_DEBUG="1")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: the token is read-only")
    (folder / "config.json").write_text("{}")
    unverified = run(server, folder, REPOSITORY, "--json")
    assert unverified.returncode == 1
    assert "Traceback" not in refused.stderr + unverified.stderr
    assert json.loads(unverified.stdout)["problems"] == [
        "config.json was changed after the verification (different SHA-256)"
    ]
    assert server.sent() == []


def test_without_a_token_a_push_tells_where_to_create_one(server: HubServer, folder: Path) -> None:
    result = run(server, folder, REPOSITORY, "--no-reverify", HF_TOKEN="")
    assert result.returncode == 2
    assert "no token: create one at https://huggingface.co/settings/tokens" in result.stderr


@pytest.mark.parametrize(
    ("environment", "reason"), [({"HF_TOKEN": ""}, "no token"), ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "be reached")]
)
def test_a_dry_run_without_token_or_network_lists_the_files_and_shows_the_card(
    server: HubServer, folder: Path, environment: dict[str, str], reason: str
) -> None:
    result = run(server, folder, REPOSITORY, "--dry-run", "--no-reverify", **environment)
    assert result.returncode == 0, result.stderr
    assert "the verification was not repeated before (--no-reverify)" in result.stderr
    assert "# tiny\n" in result.stdout, "the model card"
    for name in local(folder).keys() - {"README.md"}:
        assert f"{file_sha256(folder / name)}  {name}" in result.stdout
    assert "the Hub was not asked" in result.stderr
    assert reason in result.stderr
    assert server.requests == []


LOADERS = """
import sys, timm, torch, transformers
from PIL import Image
from bit import BitForImageClassification, BitImageProcessorPil
pixels = BitImageProcessorPil.from_profile("google")(Image.open(sys.argv[1]), return_tensors="pt")["pixel_values"]
models = {
    "transformers": transformers.BitForImageClassification.from_pretrained("me/for-transformers"),
    "timm": timm.create_model("hf-hub:me/for-timm", pretrained=True).eval(),
    "timm in transformers": transformers.AutoModelForImageClassification.from_pretrained("me/for-timm"),
    "bit": BitForImageClassification.from_pretrained("me/for-transformers"),
    "bit of timm": BitForImageClassification.from_pretrained("me/for-timm"),
}
with torch.inference_mode():
    for name, model in models.items():
        result = model(pixels)
        logits = getattr(result, "logits", result)[0]
        print(name, logits.argmax().item(), logits.softmax(0).max().item(), sep=":")
"""


@pytest.mark.long  # two times R50x1, and every framework
def test_three_libraries_classify_an_image_alike_from_what_was_pushed(
    server: HubServer, synthetic: Callable[[str], Path], tmp_path: Path
) -> None:
    for layout in ("transformers", "timm"):
        folder = convert(synthetic("R50x1"), layout, tmp_path / layout)
        assert verified(folder, None).passed
        assert push(server, folder, f"me/for-{layout}").state == "pushed"
    pixels = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    environment = {**os.environ, **server.environment, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", LOADERS, str(tmp_path / "image.png")]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    found = {name: (label, float(share)) for name, label, share in (x.split(":") for x in result.stdout.splitlines())}
    assert len(found) == 5
    assert len({label for label, _ in found.values()}) == 1, found
    shares = [share for _, share in found.values()]
    assert max(shares) - min(shares) < 1e-3 * max(shares), "only the epsilon differs"


@pytest.mark.long  # four gigabytes on the disk
def test_two_gigabytes_are_pushed_in_little_memory(server: HubServer, folder: Path, tiny_npz: Path) -> None:
    with open(folder / "pad.data", "wb") as file:  # a file that the verification covers without looking into it
        file.truncate(2_000_000_000)
    assert verified(folder, tiny_npz).passed
    digest = file_sha256(folder / "pad.data")
    home = {"HF_HOME": str(folder.parent / "home"), "HF_TOKEN": TOKEN}
    command = [str(BIT), "push", str(folder), REPOSITORY]
    process = psutil.Popen(command, env={**os.environ, **server.environment, **home}, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            peak = max(peak, process.memory_info().rss)
        threading.Event().wait(0.02)
    assert process.returncode == 0
    assert server.repositories[REPOSITORY].files["pad.data"].sha256 == digest
    print(f"{peak / 1e6:.0f} MB")
    assert peak < 400e6
