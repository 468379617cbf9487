"""Loading, saving and preparing models."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bit.config import CONFIG_NAME, BitConfig, read_json
from bit.layers import StandardizedConv2d
from bit.timm_names import timm_to_transformers

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = f"{WEIGHTS_NAME}.index.json"
HEAD = "classifier.1."


class PretrainedModel(nn.Module):
    """A network that loads from and saves to a folder with `config.json` and `model.safetensors`."""

    prefix = ""
    """What the names of these parameters begin with in a classification checkpoint."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def for_inference_only(self) -> bool:
        """Whether `for_inference` took the place of weights in this model or a part of it."""
        return any(module.folded for module in self.modules() if isinstance(module, StandardizedConv2d))

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, dtype: torch.dtype | None = None, revision: str | None = None, **fields: Any
    ) -> Self:
        """The model in a folder or a Hub repository, in the layout of transformers or timm.

        `name` is a folder or `owner/name`; `revision` a branch, tag or commit of the latter;
        `fields` replace those of the configuration. With another `num_labels` than the stored one
        the head is new: zeros, as BiT fine-tunes from (arXiv 1912.11370, section 3.3), and a
        warning says so. In evaluation mode, in the stored dtype or `dtype`.

        Raises `FileNotFoundError`, and `ValueError` unless every other parameter of the model is
        there once with its shape.
        """
        folder = Path(name)
        if not folder.is_dir():
            folder = _download(str(name), revision)
        stored_config, stored = _read(folder)
        config = stored_config.replace(**fields)
        with torch.device("meta"):
            model = cls(config)
        expected = model.state_dict()
        if cls.prefix and any(key.startswith(cls.prefix) for key in stored):
            # Of a classifier, the body; its head is not part of this model.
            stored = {key.removeprefix(cls.prefix): value for key, value in stored.items() if not key.startswith(HEAD)}
        elif not any(key.startswith(HEAD) for key in expected):
            stored = {key: value for key, value in stored.items() if not key.startswith(HEAD)}
        elif stored_config.num_labels != config.num_labels:
            warnings.warn(
                f"the head of {name} has {stored_config.num_labels} classes; a new one with {config.num_labels}, "
                "all zeros, takes its place and must be trained",
                stacklevel=2,
            )
            stored |= {
                key: torch.zeros(value.shape, dtype=next(iter(stored.values())).dtype)
                for key, value in expected.items()
                if key.startswith(HEAD)
            }
        _check(str(name), expected, stored)
        model.load_state_dict(stored, assign=True)
        return model.to(dtype).eval() if dtype is not None else model.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, as transformers reads them.

        Raises `RuntimeError` after `for_inference`, whose kernels are no longer the weights.
        """
        if self.for_inference_only:
            raise RuntimeError("a model prepared by for_inference no longer has its weights; save one loaded anew")
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
        content: dict[str, Any] = {"architectures": [type(self).__name__], **self.config.to_dict(), "dtype": dtype}
        (folder / CONFIG_NAME).write_text(json.dumps(content, indent=2) + "\n", "utf-8")
        save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})

    def for_inference(self, dtype: torch.dtype | None = None, compile: bool = False) -> Self:  # noqa: A002
        """Prepare this model to be run fast and never trained, in place; returns it.

        Every kernel is standardized once instead of at each pass (in float64, then rounded) and kept
        packed for oneDNN, memory is laid out channels last, and gradients are off. Logits stay
        within float32 rounding: 1.1e-5 (relative L2) from those in float64 with R50x1, where the
        plain model is 5.3e-6 off. `dtype`, `torch.bfloat16` say, converts what the network computes
        with (5.5e-2); `compile` hands it to `torch.compile`. Loading again undoes it.
        """
        for module in self.modules():
            if isinstance(module, StandardizedConv2d) and not module.folded:
                module.fold()
        self.eval().requires_grad_(False)
        self.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if compile:
            self.compile()
        return self

    def train(self, mode: bool = True) -> Self:
        """As in PyTorch; raises `RuntimeError` after `for_inference`."""
        if mode and self.for_inference_only:
            raise RuntimeError(
                "this model was prepared by for_inference: its kernels are standardized already, so gradients "
                "would not be those of its weights; load it again to train it"
            )
        return super().train(mode)

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """Compute each unit again in the backward pass instead of keeping what is in it."""
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                setattr(module, "gradient_checkpointing", enable)  # noqa: B010

    def gradient_checkpointing_disable(self) -> None:
        self.gradient_checkpointing_enable(False)

    def initialize(self) -> None:
        """Draw kernels as transformers and timm do (He et al., arXiv 1502.01852, by the outputs).

        None on the meta device, where there is nothing to be drawn, and where PyTorch's way of
        drawing takes its compiler to import: 150 MB and a second.
        """
        for module in self.modules():
            if isinstance(module, StandardizedConv2d) and not module.weight.is_meta:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _download(name: str, revision: str | None) -> Path:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(f"there is no folder {name}, and it is no owner/name on the Hub")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors"]))


def _read(folder: Path) -> tuple[BitConfig, dict[str, Tensor]]:
    """The configuration and the state dict, under transformers' names."""
    values = read_json(folder / CONFIG_NAME)
    if "architecture" in values:  # as timm writes it
        return timm_to_transformers(values, _load(folder))
    return BitConfig.from_dict(values), _load(folder)


def _load(folder: Path) -> dict[str, Tensor]:
    """The state dict of one file or of shards. Raises `FileNotFoundError`, or `ValueError` for damaged ones."""
    names = {WEIGHTS_NAME}
    if (folder / INDEX_NAME).is_file():
        index = read_json(folder / INDEX_NAME).get("weight_map")
        if not isinstance(index, dict) or not all(isinstance(name, str) for name in index.values()):
            raise ValueError(f"{folder / INDEX_NAME} lists no files")
        names = set(index.values())
    state: dict[str, Tensor] = {}
    for name in sorted(names):
        if Path(name).name != name:
            raise ValueError(f"{folder / INDEX_NAME} names {name}, which is not beside it")
        try:
            state |= load_file(folder / name)
        except SafetensorError as error:
            raise ValueError(f"{folder / name} is damaged ({error})") from None
    return state


def _check(name: str, expected: dict[str, Tensor], stored: dict[str, Tensor]) -> None:
    problems = [f"missing {key}" for key in expected if key not in stored]
    problems += [f"unexpected {key}" for key in stored if key not in expected]
    problems += [
        f"misshapen {key}, {list(stored[key].shape)} instead of {list(value.shape)}"
        for key, value in expected.items()
        if key in stored and stored[key].shape != value.shape
    ]
    if problems:
        raise ValueError(f"{name} does not hold this model: {'; '.join(problems)}")
