"""The recorded training steps of Google's code as data, mixup and schedule of a training."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bit import BitForImageClassification
from bit.finetuning.data import Item
from bit.finetuning.settings import Settings
from bit.hyperrule import BASE_LR, Resolution, Schedule, schedule
from convert.layouts.google import GOOGLE
from convert.layouts.transformers import TRANSFORMERS
from convert.network.axes import Transform
from convert.network.inputs import images
from convert.network.parameters import parameters
from convert.references.training import FOLDER, SAMPLE_SIZE, TrainingRecording
from convert.sources.synthetic import parameter
from convert.verification.metrics import relative_l2

RECORDED = sorted(path.stem for path in FOLDER.glob("*.safetensors"))


@dataclass(frozen=True)
class RecordedImages(Dataset[Item]):
    """The images and labels of a recording in the order of use, in float64."""

    about: Mapping[str, Any]

    def __len__(self) -> int:
        return int(self.about["steps"] * self.about["batch_split"] * self.about["micro_batch"])

    def __getitem__(self, place: int) -> Item:
        about = self.about
        count, split = about["micro_batch"], about["batch_split"]
        number, image = divmod(place, count)
        step, micro_batch = divmod(number, split)
        pixels = images(100 + number, count, about["image_size"], about["image_size"])[image]
        label = (3 * image + step + micro_batch) % about["classes"]
        return {"pixel_values": torch.from_numpy(pixels).permute(2, 0, 1).double(), "label": label, "place": place}


@dataclass(frozen=True)
class RecordedMixup:
    alpha: float
    split: int

    def ratio(self, step: int) -> float:
        return round(np.random.RandomState(1000 + step).beta(0.1, 0.1), 6)

    def partners(self, step: int, micro_batch: int, count: int) -> Tensor:
        seed = 2000 + step * self.split + micro_batch
        return torch.from_numpy(np.random.RandomState(seed).permutation(count))


@dataclass(frozen=True)
class RecordedSchedule(Schedule):
    """The rates of a recording, which starts at a later step of Google's schedule or has none."""

    google: Schedule | None = None
    first: int = 0

    def rate(self, step: int, base_lr: float = BASE_LR) -> float | None:
        return base_lr if self.google is None else self.google.rate(self.first + step, base_lr)


def settings_of(about: Mapping[str, Any]) -> Settings:
    count, steps, size = about["micro_batch"], about["steps"], about["dataset_size"]
    rule = RecordedSchedule(1, (), steps, google=schedule(size) if size else None, first=about["first_step"])
    return Settings(
        rule,
        Resolution(about["image_size"], about["image_size"]),
        count * about["batch_split"],
        count,
        about["base_lr"],
        mixup=0.1 if about["mixup"] else 0.0,
    )


def initial(recording: TrainingRecording) -> dict[str, Tensor]:
    """Return the seeded weights by the names of `bit`."""
    about, state = recording.about, {}
    for item in parameters(recording.config):
        values = parameter(GOOGLE.key(item.place), GOOGLE.shape(item), about["weights_seed"])
        moved = Transform(GOOGLE.axes(item.place), TRANSFORMERS.axes(item.place))(values).astype(np.float64)
        zero = about["zero_head"] and item.name.startswith("head/")
        state[TRANSFORMERS.key(item.place)] = torch.from_numpy(np.ascontiguousarray(moved * (0 if zero else 1)))
    return state


def recorded_errors(
    recording: TrainingRecording, model: BitForImageClassification, losses: list[float]
) -> dict[str, float]:
    """Return the relative L2 error of losses, logits and the change of each parameter."""
    arrays, before, after = recording.arrays, initial(recording), model.state_dict()
    with torch.no_grad():
        x = torch.from_numpy(images(1, 2, 224, 224)).permute(0, 3, 1, 2).double()
        found = {"logits_after": relative_l2(model.eval()(x).logits.numpy(), arrays["logits_after"])}
    split = recording.about["batch_split"]
    found["loss"] = relative_l2(np.array(losses), arrays["loss"].reshape(-1, split).mean(1))
    for item in parameters(recording.config):
        key, name = GOOGLE.key(item.place), TRANSFORMERS.key(item.place)
        moved = Transform(TRANSFORMERS.axes(item.place), GOOGLE.axes(item.place))((after[name] - before[name]).numpy())
        chosen = np.random.RandomState(zlib.crc32(key.encode())).randint(0, moved.size, SAMPLE_SIZE)
        values = np.append(moved.reshape(-1)[chosen], np.linalg.norm(moved))
        expected = np.append(arrays[f"{key}/change_sample"], arrays[f"{key}/change_norm"])
        found[name] = relative_l2(values, expected)
    return found


def network(recording: TrainingRecording) -> BitForImageClassification:
    model = BitForImageClassification(recording.config).double()
    model.load_state_dict(initial(recording))
    return model
