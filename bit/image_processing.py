"""From images to what BiT takes: `[N, C, H, W]` in [-1, 1].

`BitImageProcessorPil` computes with Pillow and NumPy, `BitImageProcessor` with PyTorch; each gives
what the class of that name in transformers gives for the same settings. The defaults are BiT's own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from bit.config import read_json

if TYPE_CHECKING:
    import torch
    from PIL import Image

PREPROCESSOR_NAME = "preprocessor_config.json"
BILINEAR, BICUBIC = 2, 3
"""Pillow's numbers of its filters, as `preprocessor_config.json` has them."""
CHANNELS = (1, 3, 4)
SMALL_AREA = 96 * 96
"""Images of fewer pixels are small to Google's rule (big_transfer, `bit_hyperrule.py`)."""

Array = NDArray[Any]
Size = Mapping[str, int]

PROFILES: Mapping[str, Mapping[str, Any]] = {
    # big_transfer, `get_resolution`: a square and no crop, so that nothing of the image is lost.
    "google": {"size": {"height": 480, "width": 480}, "small_size": {"height": 128, "width": 128}},
    # timm, the BiT entries of `resnetv2.py`: 224 after a crop of 0.875.
    "timm": {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
    # transformers, the defaults of `BitImageProcessor`, but for CLIP's mean and deviation.
    "transformers": {
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "resample": BICUBIC,
    },
}
"""How images are evaluated, by whom."""

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What transformers assumes where a file says nothing (transformers, `image_utils.py`)."""


@dataclasses.dataclass
class _ImageProcessor:
    """The settings of both, under the names of `preprocessor_config.json`; any can be replaced in a call.

    Raises `ValueError` for settings that cannot be.
    """

    do_convert_rgb: bool = True
    do_resize: bool = True
    size: Size = dataclasses.field(default_factory=lambda: dict(PROFILES["google"]["size"]))
    """`height` and `width`, or `shortest_edge`, in pixels."""
    small_size: Size | None = None
    """What takes the place of `size` for images of fewer than 96×96 pixels."""
    resample: int = BILINEAR
    """Pillow's number of the filter: 2 bilinear, 3 bicubic; always antialiased."""
    do_center_crop: bool = False
    crop_size: Size = dataclasses.field(default_factory=lambda: {"height": 224, "width": 224})
    """`height` and `width`; smaller images are padded with zeros."""
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Sequence[float] = (0.5, 0.5, 0.5)
    image_std: Sequence[float] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        self.size, self.crop_size = _size(self.size, "shortest_edge"), _size(self.crop_size, "height", "width")
        self.small_size = self.small_size and _size(self.small_size, "height", "width")
        if not all(isinstance(values, list | tuple) for values in (self.image_mean, self.image_std)):
            raise ValueError("image_mean and image_std must have a number for each channel")
        if self.resample not in (BILINEAR, BICUBIC):
            raise ValueError(f"resample is {self.resample}; {BILINEAR} is bilinear, {BICUBIC} bicubic")
        for name, size in (("size", self.size), ("small_size", self.small_size), ("crop_size", self.crop_size)):
            allowed: list[set[str]] = [{"height", "width"}, {"shortest_edge"}][: 1 if name == "crop_size" else 2]
            if size is None and name == "small_size":
                continue
            numbers = isinstance(size, Mapping) and all(type(n) is int and n > 0 for n in size.values())
            if not numbers or set(size or ()) not in allowed:
                wanted = " or ".join(" and ".join(sorted(keys)) for keys in allowed)
                raise ValueError(f"{name} is {size!r}; {wanted} in pixels are wanted")
        if len(self.image_mean) != len(self.image_std) or 0 in self.image_std:
            raise ValueError(f"image_mean {self.image_mean} and image_std {self.image_std} do not fit each other")

    @classmethod
    def from_profile(cls, name: str, **settings: Any) -> Self:
        """The settings by which `google`, `timm` or `transformers` evaluates."""
        if name not in PROFILES:
            raise ValueError(f"there is no profile {name!r}; there are {', '.join(PROFILES)}")
        return cls(**{**PROFILES[name], **settings})

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Self:
        """Read `preprocessor_config.json`; what it does not say is as transformers has it, CLIP's mean included.

        Raises `FileNotFoundError`, and `ValueError` for settings that cannot be.
        """
        return cls.from_dict(read_json(Path(folder) / PREPROCESSOR_NAME))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From the content of a `preprocessor_config.json`, see `from_pretrained`."""
        names = {field.name for field in dataclasses.fields(cls)}
        settings = {name: value for name, value in values.items() if name in names and value is not None}
        return cls(**{**PROFILES["transformers"], "image_mean": CLIP_MEAN, "image_std": CLIP_STD, **settings})

    def to_dict(self) -> dict[str, Any]:
        """The content of a `preprocessor_config.json` that transformers reads."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        values |= {"image_mean": list(self.image_mean), "image_std": list(self.image_std)}
        return {"image_processor_type": "BitImageProcessor", **values}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `preprocessor_config.json` to `folder`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=2) + "\n"
        (Path(folder) / PREPROCESSOR_NAME).write_text(text, "utf-8")

    def __call__(
        self,
        images: Any,
        return_tensors: str | None = None,
        data_format: str = "channels_first",
        input_data_format: str | None = None,
        **settings: Any,
    ) -> dict[str, Any]:
        """Prepare one image or a list of images.

        An image is a PIL image, or a NumPy array or tensor `[H, W]`, `[H, W, C]` or `[C, H, W]` of
        1, 3 or 4 channels, with values 0 to 255, or already scaled with `do_rescale=False`; a
        batch of arrays may be one array. `input_data_format`, `channels_first` or
        `channels_last`, says which axis is which where that can be doubted. `settings` replace
        those of the processor.

        Returns `{"pixel_values": …}`: a list of arrays, or one array `[N, C, H, W]` (`[N, H, W,
        C]` for `data_format="channels_last"`) for `return_tensors="np"`, a tensor for `"pt"`.
        Raises `TypeError` for what is no image and `ValueError` for an image that cannot be used.
        """
        for name, choice in (("data_format", data_format), ("input_data_format", input_data_format)):
            if choice not in ("channels_first", "channels_last", *([None] if name.startswith("input") else [])):
                raise ValueError(f"{name} is {choice!r}; channels_first or channels_last is wanted")
        processor = dataclasses.replace(self, **settings) if settings else self
        prepared = [processor._prepare(image, input_data_format) for image in _flatten(images)]
        if data_format == "channels_last":
            prepared = [_channels_last(image) for image in prepared]
        return {"pixel_values": _stack(prepared, return_tensors)}

    def _prepare(self, image: Any, input_data_format: str | None) -> Any:
        raise TypeError("use BitImageProcessor or BitImageProcessorPil")

    def resized_to(self, height: int, width: int) -> tuple[int, int]:
        """Height and width, in pixels, to which an image of these is resized before it is cropped."""
        size = self.small_size if self.small_size and height * width < SMALL_AREA else self.size
        if "shortest_edge" not in size:
            return size["height"], size["width"]
        short, long = sorted((height, width))
        edges = size["shortest_edge"], int(size["shortest_edge"] * long / short)
        return edges if height < width else edges[::-1]


class BitImageProcessorPil(_ImageProcessor):
    """With Pillow and NumPy; equal to transformers' `BitImageProcessorPil`."""

    def _prepare(self, image: Any, input_data_format: str | None) -> Array:
        """`[C, H, W]`, float32 if it was rescaled or normalized."""
        x = _to_channels_first(image, input_data_format, self.do_convert_rgb)
        if self.do_convert_rgb:
            x = _to_rgb(x)
        if self.do_resize:
            x = _resize_by_pillow(x, self.resized_to(*x.shape[1:]), self.resample)
        if self.do_center_crop:
            x = _center_crop(x, self.crop_size["height"], self.crop_size["width"])
        if self.do_rescale:
            x = (x.astype(np.float64) * self.rescale_factor).astype(np.float32)
        if self.do_normalize:
            _check_channels(len(x), self.image_mean)
            x = x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float32)
            mean, std = (np.array(values, x.dtype)[:, None, None] for values in (self.image_mean, self.image_std))
            x = (x - mean) / std
        return x


class BitImageProcessor(_ImageProcessor):
    """With PyTorch; as near to transformers' `BitImageProcessor` as torchvision's own paths are to each other."""

    def _prepare(self, image: Any, input_data_format: str | None) -> torch.Tensor:
        """`[C, H, W]`, float32 if it was rescaled or normalized, on the device of a tensor that was given."""
        import torch
        from torch.nn import functional

        if isinstance(image, torch.Tensor) and image.device.type != "cpu":
            device = image.device
            image = image.cpu()
        else:
            device = torch.device("cpu")
        x = torch.from_numpy(np.ascontiguousarray(_to_channels_first(image, input_data_format, self.do_convert_rgb)))
        x = _to_rgb_tensor(x.to(device)) if self.do_convert_rgb else x.to(device)
        if self.do_resize:
            height, width = self.resized_to(*x.shape[1:])
            mode = "bilinear" if self.resample == BILINEAR else "bicubic"
            if (height, width) != tuple(x.shape[1:]):
                # As torchvision does, a byte image stays one, and its layout chooses the kernel.
                batch = x[None].contiguous(memory_format=torch.channels_last)
                known = batch.dtype in (torch.uint8, torch.float32, torch.float64)
                whole = not batch.is_floating_point()
                resized = functional.interpolate(
                    batch if known else batch.float(), (height, width), mode=mode, antialias=True, align_corners=False
                )[0]
                x = resized if known else (resized.round_() if whole else resized).to(x.dtype)
        if self.do_center_crop:
            x = _center_crop_tensor(x, self.crop_size["height"], self.crop_size["width"])
        scale = self.rescale_factor if self.do_rescale else 1.0
        if self.do_normalize:
            _check_channels(len(x), self.image_mean)
            mean, std = (
                (torch.tensor(values, device=device) * (1.0 / scale))[:, None, None]
                for values in (list(self.image_mean), list(self.image_std))
            )
            return (x.to(torch.float32) - mean) / std
        return x * scale if self.do_rescale else x


def _flatten(images: Any) -> list[Any]:
    """The images in lists, batches and lists of those."""
    if isinstance(images, list | tuple):
        if not images:
            raise ValueError("there is no image in the list")
        return [image for part in images for image in _flatten(part)]
    if getattr(images, "ndim", 0) != 4:
        return [images]
    if not len(images):
        raise ValueError("there is no image in the batch")
    return list(images)


def _size(size: Any, *names: str) -> Size:
    """A copy; a bare number, as transformers once wrote it, stands for the names."""
    return dict.fromkeys(names, size) if type(size) is int else dict(size) if isinstance(size, Mapping) else size


def _to_channels_first(image: Any, input_data_format: str | None, rgb: bool) -> Array:
    """`[C, H, W]` of the image's own type. Raises as `__call__` says."""
    if hasattr(image, "getbands"):  # of Pillow, which need not be there for arrays
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"an image of mode {image.mode} has more than 256 levels; convert it to 8 bits first")
        image, input_data_format = np.array(_pil_to_rgb(image) if rgb else image), "channels_last"
    elif hasattr(image, "numpy") and hasattr(image, "detach"):
        image = image.detach().numpy()
    if isinstance(image, np.ndarray):
        image = image.astype(image.dtype.newbyteorder("="), copy=False)
    else:
        raise TypeError(f"an image is a PIL image, an array or a tensor, not {type(image).__name__}")
    if image.dtype == bool or not np.issubdtype(image.dtype, np.number) or np.iscomplexobj(image):
        raise ValueError(f"an image has numbers as its elements, not {image.dtype}")
    if image.ndim == 2:
        image, input_data_format = image[None], "channels_first"
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"an image is [H, W], [H, W, C] or [C, H, W], not {list(image.shape)}")
    first, last = image.shape[0] in CHANNELS, image.shape[2] in CHANNELS
    if input_data_format is None and not (first or last):
        raise ValueError(f"no axis of {list(image.shape)} can be that of 1, 3 or 4 channels")
    channels_last = input_data_format == "channels_last" or (input_data_format is None and not first)
    return np.moveaxis(image, 2, 0) if channels_last else image


def _pil_to_rgb(image: Image.Image) -> Image.Image:
    """RGB; what is transparent shows white."""
    from PIL import Image

    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255,) * 4), image).convert("RGB")


def _to_rgb(x: Array) -> Array:
    """Three channels of one, or of four with what is transparent on white; others as they are."""
    if len(x) == 1:
        return np.repeat(x, 3, axis=0)
    if len(x) != 4:
        return x
    floating = np.issubdtype(x.dtype, np.floating)
    if floating and (x.min() < 0 or x.max() > 1):
        raise ValueError(f"an image with transparency has values from 0 to 1, not from {x.min()} to {x.max()}")
    white = 1.0 if floating else 255
    alpha = x[3:] / white
    blended = alpha * x[:3] + (1 - alpha) * white
    return (blended if floating else np.round(blended)).astype(x.dtype)


def _to_rgb_tensor(x: torch.Tensor) -> torch.Tensor:
    """As `_to_rgb`; what was bytes is computed in float32 and rounded as torchvision does."""
    if len(x) == 1:
        return x.expand(3, -1, -1)
    if len(x) != 4:
        return x
    floating = x.is_floating_point()
    if floating and (x.min() < 0 or x.max() > 1):
        raise ValueError(f"an image with transparency has values from 0 to 1, not from {x.min()} to {x.max()}")
    unit = x.float() if floating else x.float() / 255
    blended = unit[:3] * unit[3:] + (1 - unit[3:])
    # torchvision, `to_dtype(scale=True)`: 256 equal bins, but for the last value.
    return (blended if floating else blended * (256 - 1e-3)).to(x.dtype)


def _resize_by_pillow(x: Array, size: tuple[int, int], resample: int) -> Array:
    """By way of bytes, as Pillow has no other images: fractions from 0 to 1 are scaled there and back."""
    from PIL import Image

    fractions = x.dtype != np.uint8 and not np.allclose(x, np.trunc(x))
    if x.dtype != np.uint8 and not (x.min() >= 0 and x.max() <= (1 if fractions else 255)):
        raise ValueError(f"an image has values from 0 to 255, or fractions from 0 to 1, not {x.min()} to {x.max()}")
    pixels = np.moveaxis((x.astype(np.float64) * 255).astype(np.float32) if fractions else x, 0, 2).astype(np.uint8)
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    resized = np.array(image.resize((size[1], size[0]), resample=Image.Resampling(resample)))
    resized = np.moveaxis(resized[:, :, None] if resized.ndim == 2 else resized, 2, 0)
    return (resized.astype(np.float64) * (1 / 255)).astype(np.float32) if fractions else resized


def _center_crop(x: Array, height: int, width: int) -> Array:
    """The middle `height` × `width` of `[C, H, W]`, on zeros where the image is smaller."""
    out = np.zeros_like(x, shape=(len(x), height, width))
    into, source = zip(*(_overlap(n, size) for n, size in zip(x.shape[1:], (height, width), strict=True)), strict=True)
    out[:, into[0], into[1]] = x[:, source[0], source[1]]
    return out


def _overlap(length: int, size: int) -> tuple[slice, slice]:
    """Where a line of `length` pixels lies in one of `size` around the same middle: there, and of the line."""
    cut, margin = max(length - size, 0) // 2, (max(size - length, 0) + 1) // 2
    count = min(length, size)
    return slice(margin, margin + count), slice(cut, cut + count)


def _center_crop_tensor(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """As `_center_crop`; an odd pixel is cut or put on the other side, as torchvision has it."""
    from torch.nn import functional

    wide, high = max(width - x.shape[2], 0), max(height - x.shape[1], 0)
    x = functional.pad(x, (wide // 2, (wide + 1) // 2, high // 2, (high + 1) // 2))
    top, left = int((x.shape[1] - height) / 2), int((x.shape[2] - width) / 2)
    return x[:, top : top + height, left : left + width]


def _channels_last(x: Any) -> Any:
    return x.transpose(1, 2, 0) if isinstance(x, np.ndarray) else x.permute(1, 2, 0)


def _check_channels(channels: int, mean: Sequence[float]) -> None:
    if channels != len(mean):
        raise ValueError(f"the image has {channels} channels, image_mean is for {len(mean)}")


def _stack(images: list[Any], return_tensors: str | None) -> Any:
    if return_tensors is None:
        return images
    if return_tensors not in ("np", "pt"):
        raise ValueError(f"return_tensors is {return_tensors!r}; np, pt or None is wanted")
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(f"images of the shapes {sorted(shapes)} are no batch; resize or crop them to one size")
    if return_tensors == "np":
        return np.stack([np.asarray(image) for image in images])
    import torch

    return torch.stack([torch.as_tensor(np.ascontiguousarray(i)) if isinstance(i, np.ndarray) else i for i in images])
