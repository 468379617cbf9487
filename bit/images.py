"""Prepared images, and the check of their shape before the network runs, with one sentence for every implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bit.config import BitConfig


class PreparedImages(dict[str, Any]):
    """The result of an image processor: the input of a model by name, also as attributes, as transformers has it."""

    def to(self, *arguments: Any, **options: Any) -> PreparedImages:
        """Return the tensors on another device or in another dtype, see `torch.Tensor.to`; lists stay as they are."""
        moved = {
            name: value.to(*arguments, **options) if hasattr(value, "to") else value for name, value in self.items()
        }
        return PreparedImages(moved)

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"prepared images have no {name}; expected {', '.join(self)}") from None


def check_images(config: BitConfig, shape: Sequence[Any], channels_last: bool = True) -> None:
    """Raise `ValueError` unless the network accepts images of a shape.

    The shape is `[N, H, W, num_channels]`, or `[N, num_channels, H, W]` unless `channels_last`. Only numbers are
    checked: what is unknown while a graph is traced, None or a symbol, is accepted.
    """
    if found := _problem(config, shape, channels_last):
        least = _counted(config.smallest_image, "pixel")
        raise ValueError(
            f"expected images with 4 axes, {_counted(config.num_channels, 'channel')}, and a height and a width of "
            f"at least {least}; found {found}"
        )


def _problem(config: BitConfig, shape: Sequence[Any], channels_last: bool) -> str:
    """Return what the network does not accept, or an empty text."""
    if len(shape) != 4:
        return _counted(len(shape), "axis", "axes")
    count, *sizes = shape
    channels = sizes.pop(2 if channels_last else 0)
    if isinstance(channels, int) and channels != config.num_channels:
        return _counted(channels, "channel")
    if any(isinstance(size, int) and size < config.smallest_image for size in sizes):
        return "a height of {} and a width of {}".format(*sizes)
    return "no image" if isinstance(count, int) and count < 1 else ""


def _counted(number: int, noun: str, plural: str = "") -> str:
    """Return the number with the noun, such as `1 pixel` or `3 channels`."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"
