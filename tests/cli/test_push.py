"""`bit push` as a user runs it, what it keeps to itself, and who reads what it pushed."""

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
from support.pushing import REPOSITORY, TOKEN, account, edit, local, push

from convert.files.base import file_sha256

# The second is how huggingface_hub hands files to its HTTP client.
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


def test_the_command_pushes_says_so_and_tells_the_token_to_nobody(server: HubServer, folder: Path) -> None:
    planned = run(server, folder, REPOSITORY, "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert "me/tiny would be made, public" in planned.stdout
    assert "nothing was sent" in planned.stdout
    assert server.sent() == []
    pushed = run(server, folder, REPOSITORY, "--message", "First", HF_DEBUG="1")
    assert pushed.returncode == 0, pushed.stderr
    assert f"commit {server.repositories[REPOSITORY].head[:12]}" in pushed.stdout
    again = run(server, folder, REPOSITORY, "--json")
    assert again.returncode == 0, again.stderr
    printed = json.loads(again.stdout)
    assert printed["state"] == "identical"
    assert printed["commit"] == server.repositories[REPOSITORY].head
    assert printed["url"] == f"{server.endpoint}/me/tiny"
    assert printed["files"].keys() == {*local(folder), "README.md"}


def test_exit_statuses_tell_what_is_not_verified_from_what_is_not_possible(server: HubServer, folder: Path) -> None:
    server.tokens[TOKEN] = account("read")
    refused = run(server, folder, REPOSITORY, HF_DEBUG="1")
    assert refused.returncode == 2
    assert refused.stderr.splitlines()[-1].startswith("error: the token may only read")
    (folder / "config.json").write_text("{}")
    unverified = run(server, folder, REPOSITORY, "--json")
    assert unverified.returncode == 1
    assert "Traceback" not in refused.stderr + unverified.stderr
    assert json.loads(unverified.stdout)["problems"] == ["config.json has changed since: its SHA-256 is another"]
    assert server.sent() == []


def test_a_push_without_a_token_says_where_one_is_made(server: HubServer, folder: Path) -> None:
    result = run(server, folder, REPOSITORY, HF_TOKEN="")
    assert result.returncode == 2
    assert "there is no token" in result.stderr


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
    assert max(shares) - min(shares) < 1e-3 * max(shares), "another epsilon, and no more"


@pytest.mark.long  # four gigabytes on the disk
def test_two_gigabytes_are_pushed_in_little_memory(server: HubServer, folder: Path) -> None:
    with open(folder / "model.safetensors", "wb") as file:
        file.truncate(2_000_000_000)
    digest = file_sha256(folder / "model.safetensors")
    edit(folder, lambda report: report["files"].update({"model.safetensors": digest}))
    home = {"HF_HOME": str(folder.parent / "home"), "HF_TOKEN": TOKEN}
    command = [str(BIT), "push", str(folder), REPOSITORY]
    process = psutil.Popen(command, env={**os.environ, **server.environment, **home}, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(psutil.NoSuchProcess):
            peak = max(peak, process.memory_info().rss)
        threading.Event().wait(0.02)
    assert process.returncode == 0
    assert server.repositories[REPOSITORY].files["model.safetensors"].sha256 == digest
    print(f"{peak / 1e6:.0f} MB")
    assert peak < 400e6
