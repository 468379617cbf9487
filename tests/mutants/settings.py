"""Operators on the JSON beside the weights: preprocessing, class names, configuration and manifest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from mutants.mutant import Operator
from mutants.networks import Base

from bit.image_processing import BICUBIC, BILINEAR, CLIP_MEAN, CLIP_STD
from convert.verification.pixels import IMAGENET_MEAN, IMAGENET_STD

Json = dict[str, Any]
Edit = Callable[[Json, Random], None]
"""Changes the content of a file."""

PREPROCESSOR, CONFIG, MANIFEST = "preprocessor_config.json", "config.json", "conversion.json"


def _one(field: str, change: Callable[[float], float]) -> Edit:
    def edit(values: Json, rng: Random) -> None:
        index = rng.randrange(len(values[field]))
        values[field][index] = change(values[field][index])

    return edit


def _set(**changes: Any) -> Edit:
    return lambda values, rng: values.update(changes)


def _sized(change: Callable[[int], int]) -> Edit:
    def edit(values: Json, rng: Random) -> None:
        values["size"] = {key: change(value) for key, value in values["size"].items()}

    return edit


def _one_side(values: Json, rng: Random) -> None:
    values["size"] = {"height": values["size"]["height"] - 1, "width": values["size"]["width"]}


TRANSFORMERS: dict[str, tuple[str, Edit]] = {
    "mean off by 1e-3": ("image_mean", _one("image_mean", lambda v: v + 1e-3)),
    "mean off by 1e-4": ("image_mean", _one("image_mean", lambda v: v - 1e-4)),
    "mean of one channel is 0": ("image_mean", _one("image_mean", lambda v: 0.0)),
    "deviation off by 1e-3": ("image_std", _one("image_std", lambda v: v + 1e-3)),
    "deviation doubled": ("image_std", _one("image_std", lambda v: 2 * v)),
    "mean and deviation of CLIP": ("CLIP", _set(image_mean=list(CLIP_MEAN), image_std=list(CLIP_STD))),
    "mean and deviation of ImageNet": ("ImageNet", _set(image_mean=list(IMAGENET_MEAN), image_std=list(IMAGENET_STD))),
    "mean and deviation in the order BGR": (
        "image_mean|image_std",
        _set(image_mean=[0.5, 0.5, 0.4], image_std=[0.5, 0.5, 0.5]),
    ),
    "deviation is the variance": ("image_std", _set(image_std=[0.25] * 3)),
    "not normalized": ("left out", _set(do_normalize=False)),
    "not rescaled": ("not scaled", _set(do_rescale=False)),
    "rescaled by 1/256": ("rescale_factor", _set(rescale_factor=1 / 256)),
    "rescaled by 1/127.5": ("rescale_factor", _set(rescale_factor=1 / 127.5)),
    "rescale factor rounded": ("rescale_factor", _set(rescale_factor=0.0039)),
    "another filter": ("bicubic|bilinear", _set(resample=BICUBIC)),
    "not resized": ("not resized", _set(do_resize=False)),
    "size off by one": ("size", _sized(lambda v: v - 1)),
    "size halved": ("size", _sized(lambda v: v // 2)),
    "height off by one": ("size", _one_side),
    "shortest edge in place of a square": ("size", _set(size={"shortest_edge": 480})),
    "cropped": ("crop", _set(do_center_crop=True)),
    "cropped by one": ("crop", _set(do_center_crop=True, crop_size={"height": 479, "width": 480})),
    "small images as large ones": ("small_size", _set(small_size={"height": 480, "width": 480})),
    "size removed": ("size|settings", lambda values, rng: values.pop("size")),
    "mean removed": ("image_mean|CLIP|settings", lambda values, rng: values.pop("image_mean")),
    "filter unknown": ("settings|resample", _set(resample=9)),
}
TIMM: dict[str, tuple[str, Edit]] = {
    "mean off by 1e-3": ("image_mean", _one("mean", lambda v: v + 1e-3)),
    "mean off by 1e-4": ("image_mean", _one("mean", lambda v: v - 1e-4)),
    "mean of one channel is 0": ("image_mean", _one("mean", lambda v: 0.0)),
    "deviation off by 1e-3": ("image_std", _one("std", lambda v: v + 1e-3)),
    "deviation doubled": ("image_std", _one("std", lambda v: 2 * v)),
    "mean and deviation of ImageNet": ("ImageNet", _set(mean=list(IMAGENET_MEAN), std=list(IMAGENET_STD))),
    "mean and deviation of CLIP": ("CLIP", _set(mean=list(CLIP_MEAN), std=list(CLIP_STD))),
    "another filter": ("bicubic", _set(interpolation="bicubic")),
    "crop off by one percent": ("size", _set(crop_pct=0.865)),
    "not cropped": ("size|crop", _set(crop_pct=1.0)),
    "squashed": ("size|crop", _set(crop_mode="squash")),
    "size off by one": ("size", _set(input_size=[3, 223, 223])),
    "size halved": ("size", _set(input_size=[3, 112, 112])),
    "filter unknown": ("settings", _set(interpolation="nearest")),
}


def _preprocessing(name: str) -> Operator:
    words = "|".join(dict.fromkeys(table[name][0] for table in (TRANSFORMERS, TIMM) if name in table))

    def places(base: Base) -> Sequence[str]:
        tables = {"transformers": (TRANSFORMERS, PREPROCESSOR), "timm": (TIMM, CONFIG)}
        table, file = tables.get(base.layouts[1], ({}, ""))
        return [file] if name in table else []

    def apply(base: Base, place: str, rng: Random) -> tuple[str, Callable[[Json], None]]:
        table = TIMM if place == CONFIG else TRANSFORMERS

        def edit(values: Json) -> None:
            table[name][1](values["pretrained_cfg"] if place == CONFIG else values, rng)

        return place, edit

    return Operator("preprocessing", name, words, places, apply)


def _labels(values: Json) -> list[str]:
    return list(values["label_names"] if "label_names" in values else values["id2label"].values())


def _relabelled(change: Callable[[list[str], Random], list[str]]) -> Edit:
    def edit(values: Json, rng: Random) -> None:
        changed = change(_labels(values), rng)
        if "label_names" in values:
            values["label_names"] = changed
        else:
            values["id2label"] = {str(index): label for index, label in enumerate(changed)}
            values["label2id"] = {label: index for index, label in enumerate(changed)}

    return edit


def _exchanged(labels: list[str], rng: Random) -> list[str]:
    first, second = rng.sample(range(len(labels)), 2)
    labels[first], labels[second] = labels[second], labels[first]
    return labels


def _one_label(labels: list[str], rng: Random) -> list[str]:
    labels[rng.randrange(len(labels))] += "?"
    return labels


def _shifted(labels: list[str], rng: Random) -> list[str]:
    return [*labels[1:], labels[0]]


def _repeated(labels: list[str], rng: Random) -> list[str]:
    labels[0] = labels[-1]
    return labels


def _no_labels(values: Json, rng: Random) -> None:
    count = len(_labels(values))
    for key in ("label_names", "id2label", "label2id"):
        values.pop(key, None)
    if "pretrained_cfg" not in values:
        values["num_labels"] = count


def _larger(key: str) -> Edit:
    def edit(values: Json, rng: Random) -> None:
        if isinstance(values[key], list):
            index = rng.randrange(len(values[key]))
            values[key][index] = 2 * values[key][index]
        else:
            values[key] = 2 * values[key]

    return edit


_NAMES = "class names"
LABELS: dict[str, tuple[str, Edit]] = {
    "two labels exchanged": (_NAMES, _relabelled(_exchanged)),
    "every label off by one": (_NAMES, _relabelled(_shifted)),
    "labels in alphabetical order reversed": (_NAMES, _relabelled(lambda labels, rng: sorted(labels, reverse=True))),
    "one label changed": (_NAMES, _relabelled(_one_label)),
    "one label repeated": (f"{_NAMES}|label", _relabelled(_repeated)),
    "one label too few": ("classes", _relabelled(lambda labels, rng: labels[:-1])),
    "one label too many": ("classes", _relabelled(lambda labels, rng: [*labels, "another"])),
    "labels removed": (_NAMES, _no_labels),
    "another kind of problem": ("problem type", _set(problem_type="multi_label_classification")),
    "epsilon 1e-8": ("epsilon|ws_eps|does not match", _set(ws_eps=1e-8)),
    "epsilon 1e-5": ("epsilon|ws_eps|does not match", _set(ws_eps=1e-5)),
}
FIELDS: dict[str, tuple[str, Edit]] = {
    "architecture of another model": ("architecture|does not match", lambda v, rng: v.update(_renamed(v))),
}
CONFIG_TRANSFORMERS: dict[str, tuple[str, Edit]] = {
    **{
        f"{key} doubled": (f"{key}|does not match|expected|groups", _larger(key))
        for key in ("embedding_size", "hidden_sizes", "depths", "num_groups", "width_factor", "num_channels")
    },
    "layer type": ("layer_type", _set(layer_type="bottleneck")),
    "activation": ("hidden_act", _set(hidden_act="gelu")),
    "padding SAME": ("global_padding", _set(global_padding="SAME")),
    "dynamic padding": ("embedding_dynamic_padding", _set(embedding_dynamic_padding=True)),
    "output stride": ("output_stride", _set(output_stride=16)),
    "stochastic depth": ("does not match", _set(drop_path_rate=0.1)),
    "dtype": ("does not match", _set(dtype="float16")),
    "class of the model": ("does not match", _set(architectures=["BitModel"])),
    "feature maps": ("does not match|out_", _set(out_features=["stem"], out_indices=[0])),
    "model type": ("model_type|does not match", _set(model_type="resnet")),
}
CONFIG_TIMM: dict[str, tuple[str, Edit]] = {
    "num_classes": ("num_classes", _larger("num_classes")),
    "num_features": ("does not match", _larger("num_features")),
    "architecture": ("architecture|does not match", _set(architecture="resnetv2_101x1_bit")),
    "first layer": ("does not match", lambda v, rng: v["pretrained_cfg"].update(first_conv="conv1")),
    "license": ("does not match", lambda v, rng: v["pretrained_cfg"].update(license="mit")),
}


def _renamed(values: Json) -> Json:
    return {"architectures": ["ResNetModel"]} if "architectures" in values else {"architecture": "resnetv2_50x1_bit"}


def _exchange_rows(values: Json, rng: Random) -> None:
    first, second = rng.sample(values["tensors"], 2)
    first["source"], second["source"] = second["source"], first["source"]


ROWS: dict[str, tuple[str, Edit]] = {
    "architecture in the manifest": ("architecture", _set(architecture="R50x1")),
    "classes in the manifest": ("classes", _larger("classes")),
    "epsilon in the manifest": ("epsilon|ws_eps|does not match", _set(ws_eps=1e-8)),
    "a row's parameter in the manifest": (
        "tensors|rows",
        lambda v, rng: rng.choice(v["tensors"]).update(parameter="block9/unit99/conv1/kernel"),
    ),
    "a row's shape in the manifest": ("tensors|rows", lambda v, rng: rng.choice(v["tensors"]).update(shape=[1, 2, 3])),
    "a row's dtype in the manifest": ("tensors|rows", lambda v, rng: rng.choice(v["tensors"]).update(dtype="float16")),
    "a row missing in the manifest": (
        "tensors|rows",
        lambda v, rng: v["tensors"].pop(rng.randrange(len(v["tensors"]))),
    ),
    "the head called new in the manifest": (
        "origin|logits",
        lambda v, rng: v["origin"].update(head=f"new:{v['classes']}"),
    ),
}


def _metadata(name: str) -> Operator:
    tables = (
        (LABELS, CONFIG, ("transformers", "timm")),
        (FIELDS, CONFIG, ("transformers", "timm")),
        (CONFIG_TRANSFORMERS, CONFIG, ("transformers",)),
        (CONFIG_TIMM, CONFIG, ("timm",)),
        (ROWS, MANIFEST, ("transformers", "timm", "google", "flax", "keras", "google-tf2")),
    )
    found = [(table[name], file, layouts) for table, file, layouts in tables if name in table]
    (words, edit), file, layouts = found[0]

    def places(base: Base) -> Sequence[str]:
        stored = base.layouts[0] != "google" or name not in LABELS or "epsilon" in name or "problem" in name
        return [file] if base.layouts[1] in layouts and stored else []

    def apply(base: Base, place: str, rng: Random) -> tuple[str, Callable[[Json], None]]:
        return place, lambda values: edit(values, rng)

    return Operator("metadata", name, words, places, apply)


OPERATORS = (
    *(_preprocessing(name) for name in {**TRANSFORMERS, **TIMM}),
    *(_metadata(name) for table in (LABELS, FIELDS, CONFIG_TRANSFORMERS, CONFIG_TIMM, ROWS) for name in table),
)
assert BILINEAR
