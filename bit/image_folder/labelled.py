"""Labelled images, as a value that knows where the pixels are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property

from PIL import Image

from bit.image_folder.sources import Source
from bit.image_processing import pil_to_rgb

Progress = Callable[[str, int, int], None]
"""`progress(task, done, total)`; a `total` of 0 means that it is not known."""


OPTION = "--skip-bad-images"
"""The option of the commands; in Python it is `skip_bad=True`."""


@dataclass(frozen=True)
class LabelledImages:
    """Images with a class each. No pixels are held: `open` reads an image each time."""

    classes: tuple[str, ...]
    """Names of the classes, in the order of their indices."""
    labels: tuple[int, ...]
    """Index of the class of each image, from 0."""
    source: Source
    """The place of each image."""
    places: tuple[int, ...]
    """Number of each image in the source."""
    sizes: tuple[tuple[int, int], ...]
    """Height and width of each image, in pixels, upright."""
    skipped: tuple[str, ...] = ()
    """One line for each image that was left out because it cannot be read."""

    def __len__(self) -> int:
        return len(self.labels)

    def open(self, index: int) -> Image.Image:
        """Return an image as RGB, uint8: upright, its first frame, with white behind transparent pixels.

        Raises `OSError`, or `ValueError`, in one line that names it, if it cannot be read.
        """
        return pil_to_rgb(self.source.open(self.places[index]))

    def name(self, index: int) -> str:
        """Return the path of an image, or `row 17`, counted from 0."""
        return self.source.name(self.places[index])

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of an image, in pixels, upright."""
        return self.sizes[index]

    def subset(self, indices: Iterable[int]) -> LabelledImages:
        """Return the images of these indices, in this order, with the same classes."""
        kept = list(indices)
        return replace(
            self,
            labels=tuple(self.labels[i] for i in kept),
            places=tuple(self.places[i] for i in kept),
            sizes=tuple(self.sizes[i] for i in kept),
        )

    def key(self, index: int) -> str:
        """Return the name of an image that is the same on every machine."""
        return self.source.key(self.places[index])

    def fingerprint(self) -> str:
        """Return a SHA-256 over classes, and over name, label and bytes of each image; the same on every machine."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        whole = hashlib.sha256()
        parts = [*self.classes, str(len(self))]
        for index, place in enumerate(self.places):
            content = hashlib.sha256(self.source.content(place)).hexdigest()
            parts += [self.key(index), str(self.labels[index]), content]
        for part in parts:  # with lengths, so that no two lists of parts give the same bytes
            encoded = part.encode(errors="surrogateescape")
            whole.update(len(encoded).to_bytes(8, "big") + encoded)
        return whole.hexdigest()


@dataclass(frozen=True)
class Listed:
    """Images that were found, and not yet opened."""

    place: str
    """The data as the user named them, for messages."""
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    source: Source

    def reordered(self, classes: tuple[str, ...]) -> Listed:
        """Return the same images with their classes in another order; labels that are not those of a class stay."""
        number = {label: classes.index(name) for label, name in enumerate(self.classes)}
        return replace(self, classes=classes, labels=tuple(number.get(label, label) for label in self.labels))

    def checked(self, skip_bad: bool, progress: Progress | None) -> LabelledImages:
        """Decode every image, and return those that can be read.

        Raises `ValueError`, or `OSError`, for an image that cannot be read, unless `skip_bad`; and
        `ValueError` if there are fewer than two classes, or no image is left.
        """
        if not self.labels:
            raise ValueError(f"{self.place} holds no images; give a folder with a folder of images for each class")
        places: list[int] = []
        sizes: list[tuple[int, int]] = []
        skipped: list[str] = []
        for place, label in enumerate(self.labels):
            try:
                if not 0 <= label < len(self.classes):
                    raise ValueError(f"{self.source.name(place)} has no label ({label}); use a split that has labels")
                image = self.source.open(place)
                places.append(place)
                sizes.append((image.height, image.width))
            except (OSError, ValueError) as error:
                if not skip_bad and isinstance(error, ValueError):
                    raise ValueError(f"{error}, or leave out bad images with {OPTION}") from None
                if not skip_bad:
                    raise
                skipped.append(_reason(error))
            if progress is not None:
                progress("reading images", place + 1, len(self.labels))
        if not places:
            raise ValueError(f"{self.place} holds no image that can be read; the first: {skipped[0]}")
        labels = tuple(self.labels[place] for place in places)
        if len(set(labels)) < 2:
            only = self.classes[labels[0]]
            raise ValueError(f"{self.place} holds images of one class ({only}); classification needs two or more")
        return LabelledImages(self.classes, labels, self.source, tuple(places), tuple(sizes), tuple(skipped))


def _reason(error: OSError | ValueError) -> str:
    """Return the message of an error in one line that begins with the name of the file."""
    if isinstance(error, OSError) and error.filename is not None:
        return " ".join(f"{error.filename}: {error.strerror}".split())
    return " ".join(str(error).split())
