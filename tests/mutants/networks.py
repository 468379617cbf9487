"""Seeded networks, each with a right conversion between two random layouts and a recording of the source."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bit.config import BitConfig
from convert.checkpoints.checkpoint import Checkpoint
from convert.checkpoints.manifest import Manifest, foreign_names
from convert.checkpoints.options import ConversionOptions
from convert.conversion.plan import plan
from convert.conversion.write import write
from convert.files.atomic import NewFolder
from convert.files.base import File, file_sha256
from convert.layouts import LAYOUTS
from convert.layouts.google import GOOGLE
from convert.layouts.layout import Layout
from convert.network.axes import Transform
from convert.network.inputs import INPUTS, batches
from convert.network.parameters import KINDS, Place, parameters
from convert.network.taps import parts
from convert.progress import silent
from convert.references.recorder import record
from convert.references.recordings import Recordings, find_recordings
from convert.sources.synthetic import parameter
from convert.verification.oracle_taps import OracleTaps
from convert.verification.results import CONVERTED
from convert.verification.tap_errors import Candidate, Expected

Inputs = Mapping[str, tuple[int, int, int, int]]
"""Seed, count, height and width of images by name, see `convert.network.inputs`."""
SMALL: Inputs = {"square": (1, 2, 48, 48), "odd": (2, 1, 33, 49)}
"""The images of the recordings: the kinds of `INPUTS`, those of a user's verification, at a twentieth of the cost."""
LARGE = {996: "R50x1", 997: "R50x1", 998: "R14x1", 999: "R14x1"}
"""Numbers of networks that are no random ones."""
TARGETS = ("transformers", "transformers", "timm", "timm", "google", "flax", "keras", "google-tf2")
SOURCES = ("google", "transformers", "timm")

Weights = dict[str, NDArray[np.float32]]
"""Parameters by canonical name, in canonical axes."""


def config_of(number: int, seed: int) -> BitConfig:
    """Return a network of random depth, width and number of classes, or one of `LARGE`.

    Each group of a norm has at least two channels, as in every published network. A norm with a group for each channel
    takes back what a kernel's epsilon does, to 1e-12.
    """
    rng = Random(f"{seed} {number}")
    classes = rng.randint(2, 12)
    labels = {index: f"class {rng.randrange(1 << 30)}-{index}" for index in range(classes)}
    if number in LARGE:
        return BitConfig.from_architecture(LARGE[number], num_labels=classes, id2label=labels)
    stages = rng.choice((1, 1, 2, 2, 2, 3))
    return BitConfig(
        embedding_size=64,
        hidden_sizes=tuple(rng.choice((256, 256, 512)) for _ in range(stages)),
        depths=tuple(rng.choice((1, 1, 2, 3) if stages < 3 else (1, 1, 1, 2)) for _ in range(stages)),
        num_labels=classes,
        id2label=labels,
    )


@dataclass(frozen=True)
class Base:
    """A network, the source, and the right conversion."""

    number: int
    config: BitConfig
    layouts: tuple[str, str]
    """Of the source and of the conversion."""
    place: Path
    """A folder for temporary files."""
    weights: Weights
    inputs: Inputs = field(default_factory=lambda: SMALL)
    """The images of the recordings."""
    caches: dict[str, Any] = field(default_factory=dict)

    @property
    def about(self) -> str:
        return f"{self.config.architecture}, {self.config.num_labels} classes, {' to '.join(self.layouts)}"

    @property
    def source(self) -> Path:
        return self.place / "source" / ("net.npz" if self.layouts[0] == "google" else "net")

    @property
    def right(self) -> Path:
        return self.place / "right"

    @property
    def layout(self) -> Layout:
        return LAYOUTS[self.layouts[1]]

    @cached_property
    def places(self) -> dict[str, Place]:
        return {item.name: item.place for item in parameters(self.config)}

    @cached_property
    def recordings(self) -> Recordings:
        manifest = Manifest.read(self.right)
        assert manifest is not None
        found = find_recordings(manifest.origin.sha256, [self.place / "recordings"])
        assert found is not None
        return found

    @cached_property
    def images(self) -> Mapping[str, NDArray[np.float32]]:
        return batches(self.inputs, self.config.num_channels)

    def part_of(self, names: Any) -> str:
        """Return the first part that has one of these parameters; empty if none has."""
        prefixes = [(part.name, f"{part.prefix}/") for part in parts(self.config)]
        return next((name for name, prefix in prefixes if any(item.startswith(prefix) for item in names)), "")

    @cached_property
    def opened_source(self) -> Checkpoint:
        """The source, opened once for all mutants."""
        return Checkpoint(self.source)

    @cached_property
    def expected(self) -> Expected:
        """What implementations that run the right conversion are compared with, the oracle on the source included."""
        taps = self.place / "taps"
        taps.mkdir()
        oracle = OracleTaps(self.opened_source, self.images, taps, silent)
        return Expected(Candidate(CONVERTED, Checkpoint(self.right)), self.recordings, oracle, self.images, silent)

    @cached_property
    def full(self) -> Base:
        """The same network with a recording of the images of a user's verification."""
        base = replace(self, place=self.place / "full", inputs=INPUTS, caches={})
        shutil.copytree(self.place / "source", base.place / "source")
        shutil.copytree(self.right, base.right)
        base.record()
        return base

    def record(self) -> None:
        """Record the source."""
        with Checkpoint(self.source) as source:
            record(source, self.place / "recordings", silent, frameworks=(), inputs=self.inputs)

    def close(self) -> None:
        """Close the files that were opened."""
        if "full" in self.__dict__:
            self.full.close()
        if "opened_source" in self.__dict__:
            self.opened_source.close()
        if "expected" in self.__dict__:
            self.expected.candidate.checkpoint.close()


def prepared(
    number: int, seed: int, place: Path, options: ConversionOptions | None = None, layout: str | None = None
) -> Base:
    """Write the source, record it and convert it; `layout` replaces the random one."""
    config, rng = config_of(number, seed), Random(f"layouts {seed} {number}")
    layouts = rng.choice(SOURCES), layout or rng.choice(TARGETS)
    weights = seeded(config, number + 1)
    base = Base(number, config, layouts, place, weights)
    base.source.parent.mkdir(parents=True)
    write_weights(base, weights, base.source)
    base.record()
    convert(base.source, base.layout, base.right, options)
    return base


def seeded(config: BitConfig, seed: int) -> Weights:
    """Return random weights of a network."""
    return {
        item.name: Transform(GOOGLE.axes(item.place), item.axes)(
            parameter(GOOGLE.key(item.place), GOOGLE.shape(item), seed)
        )
        for item in parameters(config)
    }


def write_weights(base: Base, weights: Weights, target: Path) -> None:
    """Write weights as the source is: an npz, or a folder of transformers or timm that states the classes."""
    plain = target if target.suffix == ".npz" else target.with_name("plain.npz")
    arrays = {}
    for name, place in base.places.items():
        arrays[GOOGLE.key(place)] = Transform(KINDS[place.kind], GOOGLE.axes(place))(weights[name])
    plain.parent.mkdir(parents=True, exist_ok=True)
    np.savez(plain, **arrays)
    if plain != target:
        convert(plain, LAYOUTS[base.layouts[0]], target)
        (target / "conversion.json").unlink()
        values = json.loads((target / "config.json").read_text())
        if base.layouts[0] == "timm":
            values["label_names"] = list((base.config.id2label or {}).values())
        else:
            values |= {key: value for key, value in base.config.to_dict().items() if "label" in key}
        (target / "config.json").write_text(json.dumps(values))
        plain.unlink()


def convert(source: Path, layout: Layout, target: Path, options: ConversionOptions | None = None) -> None:
    """Convert a checkpoint with any table, and do not verify it."""
    with Checkpoint(source) as checkpoint, NewFolder(target, foreign_names, force=True) as folder:
        made = plan(checkpoint, layout) if options is None else plan(checkpoint, layout, options)
        write(made, folder, silent, allow_nonfinite=True)
        folder.commit()


def forged(base: Base, folder: Path) -> Manifest:
    """Write the manifest of the right conversion into a folder, with hashes that fit the files that are there."""
    manifest = Manifest.read(base.right)
    assert manifest is not None
    for name in manifest.files:
        if (folder / name).exists():
            manifest.files[name] = File((folder / name).stat().st_size, file_sha256(folder / name))
    manifest.write(folder)
    return manifest
