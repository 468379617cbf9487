"""Time and peak memory of converting a large checkpoint, against other ways to the same weights.

Run by `make bench-convert`. The contenders alternate, so that a machine whose speed drifts treats them
alike; medians and ratios are printed. Every contender is a whole process, its imports included. The
floor is what a durable, hashed copy costs at least: `cp`, `sync` of the copy, `openssl dgst -sha256`
of both.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
from pathlib import Path

from benchmarks.measure import BIT, measure

from bit.config import BitConfig
from convert.sources.synthetic import write_npz

MEASURED, LARGEST = "Synthetic-R101x3-21843", "Synthetic-R152x4-21843"


def numpy_way(source: str, target: str) -> None:
    """Load every array, transpose it, save them all: what a short script does."""
    import numpy as np
    from safetensors.numpy import save_file

    arrays = np.load(source)
    state = {
        key: np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array
        for key, array in ((key, arrays[key]) for key in arrays.files)
    }
    os.mkdir(target)
    save_file(state, f"{target}/model.safetensors")


def transformers_way(source: str, target: str) -> None:
    """timm loads Google's file, names are replaced, transformers saves."""
    import timm
    from transformers import BitConfig as TransformersConfig
    from transformers import BitForImageClassification

    loaded = timm.create_model("resnetv2_101x3_bit", num_classes=21843)
    loaded.load_pretrained(source)
    names = {"stem.conv": "bit.embedder.convolution", "stages": "bit.encoder.stages", "norm": "bit.norm"}
    state = {}
    for key, value in loaded.state_dict().items():
        name = key.replace(".blocks.", ".layers.")
        if key.startswith("head.fc"):
            name, value = f"classifier.1{key.removeprefix('head.fc')}", value.flatten(1) if value.ndim > 1 else value
        for old, new in names.items():
            if key.startswith(old):
                name = new + name.removeprefix(old)
        state[name] = value
    config = TransformersConfig(
        embedding_size=192, hidden_sizes=[768, 1536, 3072, 6144], depths=[3, 4, 23, 3], num_labels=21843
    )
    model = BitForImageClassification(config)
    model.load_state_dict(state)
    model.save_pretrained(target)


def generate(path: Path) -> None:
    write_npz(path, BitConfig.from_architecture(path.name.split("-")[1], num_labels=21843))


WAYS = {"numpy": numpy_way, "transformers": transformers_way}


def floor(source: Path, target: Path) -> list[str]:
    return ["bash", "-c", f'cp "{source}" "{target}" && sync "{target}" && openssl dgst -sha256 "{source}" "{target}"']


def remove(target: Path) -> None:
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    # What one contender left to be written must not slow the next one down.
    os.sync()


def compare_containers(npz: Path, folder: Path, rounds: int) -> None:
    """From every container to every container, each against the floor of its source."""
    sources = {"google": npz}
    for layout in ("transformers", "google-tf2"):
        converted = folder / f"source-{layout}"
        if not converted.exists():
            command = [BIT, "convert", npz, "--to", layout, "--out", converted, "--no-verify"]
            measure([str(word) for word in command])
        sources[layout] = next(path for path in converted.iterdir() if path.suffix not in (".json", ".md"))
    target = folder / "out"
    found: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        for source_layout, source in sources.items():
            least, _ = measure(floor(source, target))
            remove(target)
            for layout in sources:
                command = [BIT, "convert", source, "--to", layout, "--out", target, "--no-verify"]
                seconds, peak = measure([str(word) for word in command])
                remove(target)
                found.setdefault((source_layout, layout), []).append((seconds, seconds / least, peak))
    print(f"\n{npz.name} in every container, median of {rounds} rounds: seconds, × floor of the round, peak")
    for (source_layout, layout), runs in found.items():
        seconds, ratio, _ = (statistics.median(run[part] for run in runs) for part in range(3))
        print(f"{source_layout:12} → {layout:12} {seconds:6.2f} s  {ratio:5.2f}  {max(run[2] for run in runs):5.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("build/bench"), help="takes about 16 GB")
    parser.add_argument("--run", nargs=3, metavar=("WAY", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        way, source, target = arguments.run
        WAYS[way](source, target)
        return

    folder = arguments.folder
    for name in (MEASURED, LARGEST):
        if not (folder / f"{name}.npz").exists():
            print(f"generating {name} …", flush=True)
            # In a process of its own: a child's peak memory counts from that of its parent.
            generation = multiprocessing.Process(target=generate, args=(folder / f"{name}.npz",))
            generation.start()
            generation.join()
    source, target = folder / f"{MEASURED}.npz", folder / "out"
    contenders = {
        "bit convert, every check, hashed, synced": [BIT, "convert", source, "--out", target, "--no-verify"],
        "floor: cp, sync, sha256 of both": floor(source, target),
        **{
            f"{way} way, neither hashed nor synced": [sys.executable, __file__, "--run", way, source, target]
            for way in WAYS
        },
    }
    results: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(arguments.rounds):
        for name, command in contenders.items():
            results[name].append(measure([str(word) for word in command]))
            remove(target)
            print(f"round {number + 1}: {name}: {results[name][-1][0]:.2f} s", flush=True)

    first = next(iter(results))
    print(f"\n{source.name}, {source.stat().st_size / 1e9:.2f} GB, median of {arguments.rounds} alternating rounds")
    for name, runs in results.items():
        seconds = [run[0] for run in runs]
        ratio = statistics.median(other[0] / own[0] for own, other in zip(results[first], runs, strict=True))
        print(
            f"{name:42} {statistics.median(seconds):6.2f} s ({min(seconds):.2f} to {max(seconds):.2f})"
            f"  {ratio:5.2f} × bit convert  peak {max(run[1] for run in runs):5.0f} MB"
        )
    seconds, peak = measure([str(BIT), "convert", str(folder / f"{LARGEST}.npz"), "--out", str(target), "--no-verify"])
    shutil.rmtree(target)
    print(f"{LARGEST}.npz: {seconds:.2f} s, peak {peak:.0f} MB")
    compare_containers(source, folder, arguments.rounds)


if __name__ == "__main__":
    main()
