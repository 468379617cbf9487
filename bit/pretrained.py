"""Load, save and prepare models."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from bit.checks import check_layout, check_size, listed, mismatches
from bit.config import CONFIG_NAME, WEIGHTS_NAME, BitConfig
from bit.files import HUB_OPTIONS, check_regular, local_folder, one_line, read_json, short, write_json
from bit.inference import operators_work
from bit.layers import StandardizedConv2d
from bit.timm_names import timm_to_transformers, to_timm

HEAD = "classifier.1."
LIBRARY_EPS = 1e-8
"""Epsilon of weight standardization in transformers (`WeightStandardizedConv2d`) and timm (`StdConv2d`)."""
DTYPES = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
"""The dtypes of weights that PyTorch computes with on every device."""
DTYPE_NAMES = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in DTYPES))
FIXED_OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "use_safetensors": (None, True),
    "weights_only": (True, None),
    "low_cpu_mem_usage": (None, True, False),
    "trust_remote_code": (None, True, False),
    "attn_implementation": (None, "eager"),
    "state_dict": (None,),
    "variant": (None,),
    "quantization_config": (None,),
}
"""Keywords of transformers that `from_pretrained` accepts where they ask for what it does anyway: it reads safetensors
alone, runs no code of a repository, and BiT has no attention."""


class PretrainedModel(nn.Module):
    """A network that loads from and saves to a folder with `config.json` and `model.safetensors`."""

    prefix = ""
    """Start of the names that this network's parameters have in a classification checkpoint."""

    config: BitConfig
    """The configuration that libraries read and, where transformers is installed, assign to."""
    network: BitConfig
    """The configuration that the network was built with."""

    def __init__(self, config: BitConfig) -> None:
        super().__init__()
        self.network = self.config = BitConfig.from_value(config)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Return the number of weights; BiT has no embeddings to exclude."""
        return sum(weight.numel() for weight in self.parameters() if weight.requires_grad or not only_trainable)

    def wants_hidden_states(self, asked: bool | None) -> bool:
        """Tell whether to return hidden states: as asked for, or else as the configuration says."""
        return bool(getattr(self.config, "output_hidden_states", False) if asked is None else asked)

    def wants_mapping(self, asked: bool | None) -> bool:
        """Tell whether to return results by name: as asked for, or else as the configuration says."""
        return bool(getattr(self.config, "return_dict", True) if asked is None else asked)

    @property
    def for_inference_only(self) -> bool:
        """True if `for_inference` replaced the weights of this model or of a part of it."""
        return any(module.folded for module in self.modules() if isinstance(module, StandardizedConv2d))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        config: Any = None,
        ignore_mismatched_sizes: bool = False,
        output_loading_info: bool = False,
        **options: Any,
    ) -> Self:
        """Load a model from a folder or a Hub repository, in the layout of transformers or timm.

        `name` is a folder or `owner/name`. `config`, of `bit` or transformers or the name of a folder,
        replaces the stored configuration, and further keywords replace its fields. Another `num_labels`
        than the stored one gives a new head with a warning: zeros, from which BiT is fine-tuned (arXiv
        1912.11370, section 3.3). So does, with `ignore_mismatched_sizes`, a stored head that does not fit
        or is missing. The model is in evaluation mode, in `dtype` (also `torch_dtype`; a dtype or its
        name), by default in the stored dtype, or in the one that holds the values of all if there are
        several, and on the device `device_map`. `HUB_OPTIONS` have the meanings that they have in
        transformers. With `output_loading_info`, returns the model and what was missing or did not fit.
        A folder on this machine that transformers or timm saved gets their epsilon of weight
        standardization, 1e-8, with a warning, unless `ws_eps` or `config` is given.

        Raises `OSError`, or `ValueError` unless the files are intact and hold every other parameter of
        the model once, as floating-point numbers with the right shape, and for other keywords.
        """
        source, (dtype, device), fields = split_options(options)
        check_layout(name, "transformers")
        folder = local_folder(name, ("*.json", "*.safetensors"), **source)
        values, stored = read_json(folder / CONFIG_NAME), load_tensors(folder)
        timm = "architecture" in values
        try:
            stored_config, stored = (
                timm_to_transformers(values, stored) if timm else (BitConfig.from_dict(values), stored)
            )
            check_size(stored_config, stored)
            if Path(name).is_dir() and config is None and "ws_eps" not in fields and saved_by_library(values):
                fields["ws_eps"] = LIBRARY_EPS
                warnings.warn(
                    f"{'timm' if timm else 'transformers'} saved {name}, and computes with a weight-standardization "
                    f"epsilon of {LIBRARY_EPS:g}, which is taken; if the weights are Google's, unchanged: ws_eps=1e-10",
                    stacklevel=2,
                )
            chosen = chosen_config(stored_config, config).replace(**fields)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        with torch.device("meta"):
            model = cls(chosen)
        prefix = cls.prefix if any(key.startswith(cls.prefix) for key in stored) else ""
        expected = {prefix + key: tuple(value.shape) for key, value in model.state_dict().items()}
        head = {key: shape for key, shape in expected.items() if key.startswith(HEAD)}
        old_head = {key: tuple(value.shape) for key, value in stored.items() if key.startswith(HEAD)}
        is_new = bool(head) and (
            stored_config.num_labels != chosen.num_labels or (ignore_mismatched_sizes and old_head != head)
        )
        if is_new or not head:
            stored = {key: value for key, value in stored.items() if key not in old_head}
        if is_new:
            stored |= zeros(head, like=stored)
            classes = old_head.get(f"{HEAD}weight", (0,))[0]
            warnings.warn(
                f"the head of {name} has {classes} classes; it is replaced by a new one with {chosen.num_labels}, "
                "all zeros, which must be trained",
                stacklevel=2,
            )
        found = {key: tuple(value.shape) for key, value in stored.items()}
        if timm:  # Named as in the files.
            expected, found = ({to_timm(key): shape for key, shape in shapes.items()} for shapes in (expected, found))
        if problems := mismatches(expected, found):
            raise ValueError(f"{name} does not hold this model: {listed(problems)}")
        model.load_state_dict({key.removeprefix(prefix): value for key, value in stored.items()}, assign=True)
        # A convolution takes no mixture of dtypes.
        model.to(device, dtype or reduce(torch.promote_types, {value.dtype for value in stored.values()})).eval()
        if not output_loading_info:
            return model
        changed = head if is_new else {}
        info = {
            "missing_keys": changed.keys() - old_head.keys(),
            "mismatched_keys": {(key, old_head[key], shape) for key, shape in changed.items() if key in old_head},
            "unexpected_keys": set(),
            "error_msgs": [],
        }
        return model, info  # type: ignore[return-value]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors`, which transformers reads.

        Raises `RuntimeError` after `for_inference`, which replaced the weights.
        """
        self.check_saveable()
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.contiguous() for name, value in self.state_dict().items()}
        dtype = str(next(iter(state.values())).dtype).removeprefix("torch.")
        content = {"architectures": [type(self).__name__], **self.config.to_dict(), "dtype": dtype}
        write_json(folder / CONFIG_NAME, content)
        save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})

    def check_saveable(self) -> None:
        """Raise `RuntimeError` after `for_inference`."""
        if self.for_inference_only:
            raise RuntimeError(
                "a model prepared by for_inference no longer has the original weights; load it again to save it"
            )

    def for_inference(self, dtype: torch.dtype | None = None, compile: bool = False) -> Self:  # noqa: A002
        """Prepare this model in place to run fast; it can no longer be trained or saved. Returns the model.

        Every kernel is standardized once instead of at each pass (in float64, then rounded) and kept
        packed for oneDNN, memory is laid out channels last, large batches run in parts that fit the
        caches, and gradients are off. The logits of R50x1 are within 1.1e-5 (relative L2) of those
        in float64; the plain model's are within 5.3e-6. `dtype` is what the network computes with:
        `torch.bfloat16` gives 5.5e-2. Load the model again to undo it.

        `compile` makes one graph with `torch.compile` where that is faster: on another device than a CPU,
        and on a CPU whose PyTorch lacks the operators for packed kernels (the graph packs them, too). On
        other CPUs it keeps the packed kernels, because a graph has nothing to gain there: convolutions
        take nine tenths of the time and are the same in both, and PyTorch's own group normalization is
        faster than the one that the compiler writes (R50x1 at 224×224, one thread of an AMD EPYC, PyTorch
        2.15: 125 ms, and 135 in a graph with packed kernels; for eight images 986 and 1107 ms).
        """
        for module in self.modules():
            if isinstance(module, StandardizedConv2d) and not module.folded:
                module.fold()
        self.eval().requires_grad_(False)
        self.to(dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
        on_cpu = self.device.type == "cpu"
        if compile and not (on_cpu and (self.dtype != torch.float32 or operators_work())):
            self.compile(fullgraph=True, options={"freezing": True} if on_cpu else None)
        return self

    def train(self, mode: bool = True) -> Self:
        """Set training mode as PyTorch does. Raises `RuntimeError` after `for_inference`."""
        if mode and self.for_inference_only:
            raise RuntimeError(
                "this model was prepared by for_inference: the kernels are standardized already, so gradients would "
                "not be those of the weights; load it again to train it"
            )
        return super().train(mode)

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | bool | None = None, **options: Any
    ) -> Any:
        """Save to a repository of the Hub, which is created if there is none, and return what the Hub says.

        `options` are those of `huggingface_hub.HfApi.upload_folder`, such as `commit_message`, `revision`
        and `create_pr`. `bit push` does more: it proves the weights and writes a model card.
        """
        from huggingface_hub import HfApi

        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            api = HfApi(token=token)
            repository = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            return api.upload_folder(repo_id=repository, folder_path=folder, **options)

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Save memory in training: compute each unit again in the backward pass.

        `gradient_checkpointing_kwargs` are options of `torch.utils.checkpoint.checkpoint`. Raises
        `ValueError` for `every_n_layers` and `offload` of transformers, which BiT does not have.
        """
        if every_n_layers != 1 or offload:
            raise ValueError("BiT checkpoints every unit, on the device; leave every_n_layers and offload out")
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = True  # type: ignore[assignment]
                options = {"use_reentrant": False, **(gradient_checkpointing_kwargs or {})}
                module.checkpointing_options = options  # type: ignore[assignment]

    @property
    def is_gradient_checkpointing(self) -> bool:
        """True if units are computed again in the backward pass; peft asks."""
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def get_input_embeddings(self) -> StandardizedConv2d:
        """Return the first layer, where peft lets gradients begin; transformers' vision models return theirs."""
        return next(module for module in self.modules() if isinstance(module, StandardizedConv2d))

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations for the backward pass, as is the default."""
        for module in self.modules():
            if hasattr(module, "gradient_checkpointing"):
                module.gradient_checkpointing = False  # type: ignore[assignment]


def split_options(options: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[Any, Any], dict[str, Any]]:
    """Return the keywords for the Hub, the dtype and the device, and the fields of the configuration.

    Raises `ValueError` for a keyword that is neither, or that has a value other than what `bit` does.
    """
    fields = dict(options)
    source = {key: fields.pop(key) for key in HUB_OPTIONS if key in fields}
    for key, accepted in FIXED_OPTIONS.items():
        if (value := fields.pop(key, accepted[0])) not in accepted:
            raise ValueError(f"from_pretrained does not take {key}={short(value)}; leave it out")
    old, new = fields.pop("torch_dtype", None), fields.pop("dtype", None)
    chosen = old if new is None else new
    dtype = getattr(torch, chosen, None) if isinstance(chosen, str) and chosen != "auto" else chosen
    if dtype in (None, "auto") and chosen in (None, "auto"):
        dtype = None
    elif dtype not in DTYPES:
        raise ValueError(f"dtype is {short(chosen)}; expected one of {DTYPE_NAMES}")
    device = fields.pop("device_map", None)
    if isinstance(device, Mapping):
        device = device.get("") if len(device) == 1 else "a map"
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return source, (dtype, None if device is None else torch.device(device)), fields
    except (RuntimeError, TypeError):
        raise ValueError(f"device_map is {short(options['device_map'])}; expected one device, such as cpu") from None


def saved_by_library(values: Mapping[str, Any]) -> bool:
    """Return whether transformers or timm wrote this `config.json`: each then ran the weights with its own epsilon.

    transformers states its version, and timm no epsilon.
    """
    return "transformers_version" in values or ("architecture" in values and "ws_eps" not in values)


def chosen_config(stored: BitConfig, given: Any) -> BitConfig:
    """Return the stored configuration or the one that is given instead: a value, or the name of a folder."""
    if given is None:
        return stored
    if isinstance(given, str | Path):
        return BitConfig.from_pretrained(given)
    return BitConfig.from_value(given, stored.ws_eps)


def zeros(shapes: Mapping[str, tuple[int, ...]], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a tensor of zeros for each shape, in the dtype of another tensor."""
    dtype = next(iter(like.values()), torch.zeros(())).dtype
    return {key: torch.zeros(shape, dtype=dtype) for key, shape in shapes.items()}


def load_tensors(folder: Path) -> dict[str, Tensor]:
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
            found = str(value.dtype).removeprefix("torch.")
            raise ValueError(f"{folder}: {short(key)} is {found}; expected {DTYPE_NAMES}")
    return state
