"""Load, save and prepare models."""

from __future__ import annotations

import re
import warnings
from functools import reduce
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bit.config import CONFIG_NAME, WEIGHTS_NAME, BitConfig
from bit.files import check_regular, one_line, read_json, short, write_json
from bit.layers import StandardizedConv2d
from bit.layouts_seen import check_layout
from bit.mismatch import check_size, listed, mismatches
from bit.timm_names import timm_to_transformers, to_timm

HEAD = "classifier.1."
DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
"""The dtypes of weights that PyTorch computes with on every device."""


class PretrainedModel(nn.Module):
    """A network that loads from and saves to a folder with `config.json` and `model.safetensors`."""

    prefix = ""
    """Start of the names that this network's parameters have in a classification checkpoint."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def for_inference_only(self) -> bool:
        """True if `for_inference` replaced the weights of this model or of a part of it."""
        return any(module.folded for module in self.modules() if isinstance(module, StandardizedConv2d))

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, dtype: torch.dtype | None = None, revision: str | None = None, **fields: Any
    ) -> Self:
        """Load a model from a folder or a Hub repository, in the layout of transformers or timm.

        `name` is a folder or `owner/name`; `revision` is a branch, tag or commit of the latter;
        `fields` replace fields of the configuration. Another `num_labels` than the stored one gives
        a new head with a warning: zeros, from which BiT is fine-tuned (arXiv 1912.11370, section
        3.3). The model is in evaluation mode, in `dtype`, by default in the stored dtype, or in the one that
        holds the values of all if there are several.

        Raises `OSError`, or `ValueError` unless the files are intact and hold every other parameter of
        the model once, as floating-point numbers with the right shape.
        """
        folder = Path(name) if Path(name).is_dir() else _download(str(name), revision)
        check_layout(folder, "transformers")
        values, stored = read_json(folder / CONFIG_NAME), _load(folder)
        timm = "architecture" in values
        try:
            stored_config, stored = (
                timm_to_transformers(values, stored) if timm else (BitConfig.from_dict(values), stored)
            )
            config = stored_config.replace(**fields)
            check_size(stored_config, stored)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        with torch.device("meta"):
            model = cls(config)
        prefix = cls.prefix if any(key.startswith(cls.prefix) for key in stored) else ""
        expected = {prefix + key: value for key, value in model.state_dict().items()}
        head = {key: value for key, value in expected.items() if key.startswith(HEAD)}
        if not head or stored_config.num_labels != config.num_labels:
            stored = {key: value for key, value in stored.items() if not key.startswith(HEAD)}
            stored_dtype = next(iter(stored.values()), torch.zeros(())).dtype
            stored |= {key: torch.zeros(value.shape, dtype=stored_dtype) for key, value in head.items()}
        if head and stored_config.num_labels != config.num_labels:
            warnings.warn(
                f"the head of {name} has {stored_config.num_labels} classes; it is replaced by a new one with "
                f"{config.num_labels}, all zeros, which must be trained",
                stacklevel=2,
            )
        # Named as in the files.
        shapes = [
            {to_timm(key) if timm else key: tuple(value.shape) for key, value in state.items()}
            for state in (expected, stored)
        ]
        if problems := mismatches(*shapes):
            raise ValueError(f"{name} does not hold this model: {listed(problems)}")
        model.load_state_dict({key.removeprefix(prefix): value for key, value in stored.items()}, assign=True)
        # A convolution takes no mixture of dtypes.
        return model.to(dtype or reduce(torch.promote_types, {value.dtype for value in stored.values()})).eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, which transformers reads.

        Raises `RuntimeError` after `for_inference`, which replaced the weights.
        """
        if self.for_inference_only:
            raise RuntimeError(
                "a model prepared by for_inference no longer has the original weights; load it again to save it"
            )
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
        content = {"architectures": [type(self).__name__], **self.config.to_dict(), "dtype": dtype}
        write_json(folder / CONFIG_NAME, content)
        save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})

    def for_inference(self, dtype: torch.dtype | None = None, compile: bool = False) -> Self:  # noqa: A002
        """Prepare this model in place to run fast; it can no longer be trained or saved. Returns the model.

        Every kernel is standardized once instead of at each pass (in float64, then rounded) and kept
        packed for oneDNN, memory is laid out channels last, large batches run in parts that fit the
        caches, and gradients are off. The logits of R50x1 are within 1.1e-5 (relative L2) of those
        in float64; the plain model's are within 5.3e-6. `dtype` is what the network computes with:
        `torch.bfloat16` gives 5.5e-2. `compile` hands the model to `torch.compile`. Load the model
        again to undo it.
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
        """Set training mode as PyTorch does. Raises `RuntimeError` after `for_inference`."""
        if mode and self.for_inference_only:
            raise RuntimeError(
                "this model was prepared by for_inference: the kernels are standardized already, so gradients would "
                "not be those of the weights; load it again to train it"
            )
        return super().train(mode)

    def gradient_checkpointing_enable(self, enable: bool = True) -> None:
        """Save memory in training: compute each unit again in the backward pass."""
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                setattr(module, "gradient_checkpointing", enable)  # noqa: B010

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations for the backward pass, as is the default."""
        self.gradient_checkpointing_enable(False)


def _download(name: str, revision: str | None) -> Path:
    """Return the local folder of a Hub repository."""
    check_layout(name, "transformers")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError(f"{name} is neither a folder nor an owner/name on the Hub")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, revision=revision, allow_patterns=["*.json", "*.safetensors"]))


def _load(folder: Path) -> dict[str, Tensor]:
    """Return the tensors of one file or of shards.

    Raises `FileNotFoundError`, or `ValueError` if a file is damaged or a tensor is not of `DTYPES`.
    """
    names, index = {WEIGHTS_NAME}, folder / f"{WEIGHTS_NAME}.index.json"
    if index.is_file():
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
            raise ValueError(f"{index} lists no files; download it again")
        names = set(weight_map.values())
    state: dict[str, Tensor] = {}
    for name in sorted(names):
        if Path(name).name != name or "\0" in name:
            raise ValueError(f"{index} names {short(name)}, which is not a file in the same folder")
        path = check_regular(folder / name)
        try:
            tensors = load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({one_line(error)}); download or convert it again") from None
        if twice := state.keys() & tensors.keys():
            raise ValueError(f"{path} holds {short(min(twice))}, which another shard holds too")
        state |= tensors
    for key, value in state.items():
        if value.dtype not in DTYPES:
            kinds = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in DTYPES))
            raise ValueError(f"{folder}: {short(key)} is {str(value.dtype).removeprefix('torch.')}; expected {kinds}")
    return state
