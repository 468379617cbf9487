"""Turn images into the input of BiT: `[N, C, H, W]` in [-1, 1].

`BitImageProcessorPil` computes with Pillow and NumPy, `BitImageProcessor` with PyTorch. With equal
settings each gives what the class of that name in transformers gives. The defaults are BiT's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from bit.files import HUB_OPTIONS, load_json, local_folder, short, write_json
from bit.hyperrule import SMALL_AREA
from bit.images import PreparedImages

if TYPE_CHECKING:
    import torch
    from PIL import Image

PREPROCESSOR_NAME = "preprocessor_config.json"
BILINEAR, BICUBIC = 2, 3
"""Pillow's numbers for these filters, which `preprocessor_config.json` stores."""
CHANNELS = (1, 3, 4)
MAX_EDGE = 2048
"""Largest height and width, in pixels, of a stated size; the largest at which Google evaluates is 512."""
MAX_AREA = MAX_EDGE * MAX_EDGE
"""Most pixels of a prepared image: the first activations of R50x1 then take a gigabyte."""
MAX_SCALE = 1e6
"""Largest factor, mean and deviation, and the inverse of the smallest factor and deviation."""

Array = NDArray[Any]
Size = Mapping[str, int]

PROFILES: Mapping[str, Mapping[str, Any]] = {
    # big_transfer, `get_resolution`: a square without a crop, so that the whole image is seen.
    "google": {"size": {"height": 480, "width": 480}, "small_size": {"height": 128, "width": 128}},
    # timm, the BiT entries of `resnetv2.py`: 224 after a crop of 0.875.
    "timm": {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
    # transformers, the defaults of `BitImageProcessor`, except for CLIP's mean and deviation.
    "transformers": {
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "resample": BICUBIC,
    },
}
"""Settings with which Google, timm and transformers evaluate."""

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Mean and deviation that transformers assumes if a file gives none (transformers, `image_utils.py`)."""


@dataclasses.dataclass
class BitImageProcessorPil:
    """An image processor that uses Pillow and NumPy; the results equal those of transformers' class of that name.

    The settings are named as in `preprocessor_config.json`; a call can replace any of them. Raises
    `ValueError` for invalid settings.
    """

    do_convert_rgb: bool = True
    do_resize: bool = True
    size: Size = dataclasses.field(default_factory=lambda: dict(PROFILES["google"]["size"]))
    """`height` and `width`, or `shortest_edge`, in pixels."""
    small_size: Size | None = None
    """Replaces `size` for images of fewer than 96×96 pixels."""
    resample: int = BILINEAR
    """Pillow's number of the filter: 2 bilinear, 3 bicubic; always antialiased."""
    do_center_crop: bool = False
    crop_size: Size = dataclasses.field(default_factory=lambda: {"height": 224, "width": 224})
    """`height` and `width` in pixels; smaller images are padded with zeros."""
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: Sequence[float] = (0.5, 0.5, 0.5)
    """Mean of each channel after rescaling."""
    image_std: Sequence[float] = (0.5, 0.5, 0.5)
    """Standard deviation of each channel after rescaling."""

    def __post_init__(self) -> None:
        square, edge = ("height", "width"), ("shortest_edge",)
        for field in dataclasses.fields(self):
            if field.name.startswith("do_") and type(getattr(self, field.name)) is not bool:
                raise ValueError(f"{field.name} is {short(getattr(self, field.name))}; expected true or false")
        self.size = _checked_size("size", self.size, edge, square)
        self.crop_size = _checked_size("crop_size", self.crop_size, square)
        if self.small_size is not None:
            self.small_size = _checked_size("small_size", self.small_size, square, edge)
        if not isinstance(self.resample, int) or self.resample not in (BILINEAR, BICUBIC):
            raise ValueError(f"resample is {short(self.resample)}; {BILINEAR} is bilinear, {BICUBIC} bicubic")
        if not _is_number(self.rescale_factor, 1 / MAX_SCALE):
            raise ValueError(
                f"rescale_factor is {short(self.rescale_factor)}; expected a positive number such as 1/255"
            )
        for name, least in (("image_mean", -MAX_SCALE), ("image_std", 1 / MAX_SCALE)):
            values = getattr(self, name)
            if not isinstance(values, list | tuple) or not all(_is_number(value, least) for value in values):
                kind = "positive number" if least > 0 else "number"
                raise ValueError(f"{name} is {short(values)}; expected a list with a {kind} for each channel")
        if len(self.image_mean) != len(self.image_std):
            raise ValueError(
                f"image_mean {short(self.image_mean)} and image_std {short(self.image_std)} do not fit each other"
            )

    @classmethod
    def from_profile(cls, name: str, **settings: Any) -> Self:
        """Return a processor with the settings of `google`, `timm` or `transformers`, and others in `settings`."""
        if name not in PROFILES:
            raise ValueError(f"unknown profile {name!r}; expected one of {', '.join(PROFILES)}")
        return cls(**{**PROFILES[name], **settings})

    @classmethod
    def from_pretrained(cls, name: str | Path, **settings: Any) -> Self:
        """Read `preprocessor_config.json` of a folder or of a Hub repository; `settings` replace those in it.

        Missing settings are those of transformers, with CLIP's mean and deviation. `HUB_OPTIONS` choose
        among a repository's files. Raises `OSError`, or `ValueError` for invalid settings.
        """
        source = {key: settings.pop(key) for key in HUB_OPTIONS if key in settings}
        processor = load_json(local_folder(name, (PREPROCESSOR_NAME,), **source) / PREPROCESSOR_NAME, cls.from_dict)
        return dataclasses.replace(processor, **settings)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Return a processor from the content of a `preprocessor_config.json`, see `from_pretrained`."""
        names = {field.name for field in dataclasses.fields(cls)}
        settings = {name: value for name, value in values.items() if name in names and value is not None}
        return cls(**{**PROFILES["transformers"], "image_mean": CLIP_MEAN, "image_std": CLIP_STD, **settings})

    def to_dict(self) -> dict[str, Any]:
        """Return the content of a `preprocessor_config.json` that transformers reads."""
        values = {name: value for name, value in dataclasses.asdict(self).items() if value is not None}
        values |= {"image_mean": list(self.image_mean), "image_std": list(self.image_std)}
        return {"image_processor_type": "BitImageProcessor", **values}

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `preprocessor_config.json` to `folder`."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / PREPROCESSOR_NAME, self.to_dict())

    def __call__(
        self,
        images: Any,
        return_tensors: str | None = None,
        data_format: str = "channels_first",
        input_data_format: str | None = None,
        **settings: Any,
    ) -> PreparedImages:
        """Prepare one image or a list of images.

        An image is a PIL image, or a NumPy array or tensor `[H, W]`, `[H, W, C]` or `[C, H, W]` with
        1, 3 or 4 channels and values from 0 to 255, or already scaled with `do_rescale=False`; a
        batch of arrays may be one array. `input_data_format`, `channels_first` or `channels_last`,
        names the order of the axes if the shape does not show it. `settings` replace those of the
        processor.

        Returns `{"pixel_values": …}`: a list of arrays; or one array `[N, C, H, W]` for
        `return_tensors="np"`, one tensor for `"pt"`; with `data_format="channels_last"` the channels
        come last. Raises `TypeError` for anything but images, and `ValueError` for images that
        cannot be used.
        """
        for name, choice in (("data_format", data_format), ("input_data_format", input_data_format)):
            if choice not in ("channels_first", "channels_last", *([None] if name.startswith("input") else [])):
                raise ValueError(f"{name} is {choice!r}; expected channels_first or channels_last")
        processor = dataclasses.replace(self, **settings) if settings else self
        prepared = [processor._prepare(image, input_data_format) for image in _flatten(images)]
        if data_format == "channels_last":
            prepared = [image.swapaxes(0, 1).swapaxes(1, 2) for image in prepared]
        return PreparedImages(pixel_values=_stack(prepared, return_tensors))

    def resized_to(self, height: int, width: int) -> tuple[int, int]:
        """Return height and width, in pixels, to which an image of this size is resized before the crop.

        Raises `ValueError` for an image so long that they would be more than `MAX_AREA` pixels.
        """
        size = self.small_size if self.small_size and height * width < SMALL_AREA else self.size
        if "shortest_edge" not in size:
            return size["height"], size["width"]
        short, long = sorted((height, width))
        edges = size["shortest_edge"], int(size["shortest_edge"] * long / short)
        _check_area(*edges)
        return edges if height < width else edges[::-1]

    def _prepare(self, image: Any, input_data_format: str | None) -> Any:
        """Return `[C, H, W]`, float32 if it was rescaled or normalized, on the device of a given tensor."""
        x = _to_channels_first(image, input_data_format, self.do_convert_rgb)
        if self.do_convert_rgb:
            x = self._to_rgb(x)
        x = self._load(x, getattr(image, "device", "cpu"))
        if self.do_resize:
            x = self._resize(x, self.resized_to(*x.shape[1:]))
        if self.do_center_crop:
            x = self._center_crop(x)
        _check_area(*x.shape[1:])
        if self.do_normalize and len(x) != len(self.image_mean):
            raise ValueError(f"the image has {len(x)} channels, but image_mean has {len(self.image_mean)} values")
        return self._scale(x)

    def _to_rgb(self, x: Array) -> Array:
        """Repeat one channel, blend four with white, and leave any other number as it is."""
        if len(x) != 4:
            return np.repeat(x, 3, axis=0) if len(x) == 1 else x
        if np.issubdtype(x.dtype, np.floating) and (x.min() < 0 or x.max() > 1):
            raise ValueError(f"an image with transparency must have values from 0 to 1, not {x.min()} to {x.max()}")
        blended: Array = self._blend(x).astype(x.dtype)
        return blended

    def _center_crop(self, x: Any) -> Any:
        """Return the middle of `x` in the size of the crop, with zeros around a smaller image."""
        margins = []
        for axis, size in ((1, self.crop_size["height"]), (2, self.crop_size["width"])):
            cut, missing = max(x.shape[axis] - size, 0), max(size - x.shape[axis], 0)
            kept = slice(cut // 2, cut // 2 + size)
            x = x[:, kept] if axis == 1 else x[:, :, kept]
            margins.append((missing // 2, missing - missing // 2))
        if isinstance(x, np.ndarray):
            # transformers puts an odd row or column of zeros first, torchvision puts it last.
            return np.pad(x, [(0, 0), *(margin[::-1] for margin in margins)])
        import torch

        return torch.nn.functional.pad(x, (*margins[1], *margins[0]))

    def _load(self, x: Array, device: Any) -> Any:
        """Return `x` as the kind of array or tensor that the following steps take."""
        return x

    def _blend(self, x: Array) -> Array:
        """Return `[3, H, W]`: red, green, blue and opacity of `x` before a white background."""
        white = 1.0 if np.issubdtype(x.dtype, np.floating) else 255
        alpha = x[3:] / white
        blended: Array = alpha * x[:3] + (1 - alpha) * white
        return blended if white == 1.0 else np.round(blended)

    def _resize(self, x: Any, size: tuple[int, int]) -> Any:
        """Return `x` `[C, H, W]` in another height and width.

        Pillow resizes bytes, so fractions from 0 to 1 are scaled to 0…255 and back.
        """
        from PIL import Image

        fractions = x.dtype != np.uint8 and not np.allclose(x, np.trunc(x))
        if x.dtype != np.uint8 and not (x.min() >= 0 and x.max() <= (1 if fractions else 255)):
            raise ValueError(f"an image must have values from 0 to 255 or from 0 to 1, not {x.min()} to {x.max()}")
        pixels = np.moveaxis((x.astype(np.float64) * 255).astype(np.float32) if fractions else x, 0, 2).astype(np.uint8)
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
        resized = np.array(image.resize((size[1], size[0]), resample=Image.Resampling(self.resample)))
        resized = np.moveaxis(resized[:, :, None] if resized.ndim == 2 else resized, 2, 0)
        return (resized.astype(np.float64) * (1 / 255)).astype(np.float32) if fractions else resized

    def _scale(self, x: Any) -> Any:
        """Rescale and normalize `x`."""
        if self.do_rescale:
            x = (x.astype(np.float64) * self.rescale_factor).astype(np.float32)
        if self.do_normalize:
            x = x if np.issubdtype(x.dtype, np.floating) else x.astype(np.float32)
            mean, std = (np.array(values, x.dtype)[:, None, None] for values in (self.image_mean, self.image_std))
            x = (x - mean) / std
        return x


class BitImageProcessor(BitImageProcessorPil):
    """The image processor with PyTorch in the place of Pillow, on the device of a given tensor.

    The results are within a level of 255 of transformers' class of that name.
    """

    def _load(self, x: Array, device: Any) -> torch.Tensor:
        import torch

        return torch.from_numpy(np.ascontiguousarray(x)).to(device)

    def _blend(self, x: Array) -> Array:
        unit = x.astype(np.float32)
        if np.issubdtype(x.dtype, np.floating):
            return unit[:3] * unit[3:] + (1 - unit[3:])
        unit /= np.float32(255)
        # torchvision, `to_dtype(scale=True)`: 256 equal bins, except for the last value.
        return (unit[:3] * unit[3:] + (1 - unit[3:])) * np.float32(256 - 1e-3)

    def _resize(self, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        import torch

        if size == tuple(x.shape[1:]):
            return x
        # As in torchvision, bytes stay bytes, and the memory layout selects the kernel.
        batch = x[None].contiguous(memory_format=torch.channels_last)
        direct = x.dtype in (torch.uint8, torch.float32, torch.float64)
        batch = batch if direct else batch.float()
        mode = "bilinear" if self.resample == BILINEAR else "bicubic"
        resized = torch.nn.functional.interpolate(batch, size, mode=mode, antialias=True, align_corners=False)[0]
        return (resized if direct or x.is_floating_point() else resized.round_()).to(x.dtype)

    def _scale(self, x: torch.Tensor) -> torch.Tensor:
        scale = self.rescale_factor if self.do_rescale else 1.0
        if not self.do_normalize:
            return x * scale if self.do_rescale else x
        x = x.float()
        mean, std = (x.new_tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
        return (x - mean * (1.0 / scale)) / (std * (1.0 / scale))


def _checked_size(name: str, size: Any, *allowed: tuple[str, ...]) -> Size:
    """Return a copy of `size`; a single number, as old files have it, stands for the first of the allowed names."""
    size = dict.fromkeys(allowed[0], size) if type(size) is int else size
    valid = isinstance(size, Mapping) and all(
        type(number) is int and 1 <= number <= MAX_EDGE for number in size.values()
    )
    if not valid or set(size) not in map(set, allowed):
        expected = " or ".join(" and ".join(names) for names in allowed)
        raise ValueError(f"{name} is {short(size)}; expected {expected} in pixels, from 1 to {MAX_EDGE}")
    return dict(size)


def _is_number(value: object, least: float) -> bool:
    """Return whether a value is a number, not true or false, from `least` to `MAX_SCALE`."""
    return type(value) in (int, float) and least <= value <= MAX_SCALE  # type: ignore[operator]


def _check_area(height: int, width: int) -> None:
    """Raise `ValueError` for more than `MAX_AREA` pixels."""
    if height * width > MAX_AREA:
        raise ValueError(
            f"the image would be prepared as {height}×{width} pixels; at most {MAX_AREA} are accepted: crop the image, "
            "or prepare it with another size"
        )


def _flatten(images: Any) -> list[Any]:
    """Return the single images of a list, a batch or a list of those."""
    listed = isinstance(images, list | tuple)
    if not listed and getattr(images, "ndim", 0) != 4:
        return [images]
    if not len(images):
        raise ValueError(f"there is no image in the {'list' if listed else 'batch'}")
    return [image for part in images for image in _flatten(part)]


def _to_channels_first(image: Any, input_data_format: str | None, rgb: bool) -> Array:
    """Return `[C, H, W]` in the image's own dtype. Raises the errors of `__call__`."""
    if hasattr(image, "getbands"):  # a PIL image; arrays do not need Pillow installed
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"an image of mode {image.mode} has more than 256 levels; convert it to 8 bits first")
        image, input_data_format = np.array(pil_to_rgb(image) if rgb else image), "channels_last"
    elif hasattr(image, "numpy") and hasattr(image, "detach"):
        image = image.detach().cpu().numpy()
    if not isinstance(image, np.ndarray):
        raise TypeError(f"an image must be a PIL image, an array or a tensor, not {type(image).__name__}")
    image = image.astype(image.dtype.newbyteorder("="), copy=False)
    if image.dtype == bool or not np.issubdtype(image.dtype, np.number) or np.iscomplexobj(image):
        raise ValueError(f"the elements of an image must be numbers, not {image.dtype}")
    if image.ndim == 2:
        image, input_data_format = image[None], "channels_first"
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(f"an image must be [H, W], [H, W, C] or [C, H, W], not {list(image.shape)}")
    first, last = image.shape[0] in CHANNELS, image.shape[2] in CHANNELS
    if input_data_format is None and not (first or last):
        raise ValueError(f"an image must have 1, 3 or 4 channels first or last, not {list(image.shape)}")
    channels_last = input_data_format == "channels_last" or (input_data_format is None and not first)
    return np.moveaxis(image, 2, 0) if channels_last else image


def pil_to_rgb(image: Image.Image) -> Image.Image:
    """Convert to RGB, with white behind transparent pixels."""
    from PIL import Image

    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image.convert("RGB")
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, (255,) * 4), image).convert("RGB")


def _stack(images: list[Any], return_tensors: str | None) -> Any:
    if return_tensors is None:
        return images
    if return_tensors not in ("np", "pt"):
        raise ValueError(f"return_tensors is {return_tensors!r}; expected np, pt or None")
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) > 1:
        raise ValueError(f"images of shapes {sorted(shapes)} do not form a batch; resize or crop them to one size")
    if return_tensors == "np":
        return np.stack([np.asarray(image) for image in images])
    import torch

    return torch.stack([torch.as_tensor(np.ascontiguousarray(i)) if isinstance(i, np.ndarray) else i for i in images])
