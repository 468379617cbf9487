"""ONNX Runtime as a reference: it runs a written graph, asked for every tap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from convert.onnx_graph import INPUT

FOLDER_OF_DATA = "session.model_external_initializers_file_folder_path"


def forward(
    path: Path, images: Mapping[str, NDArray[np.generic]], taps: Sequence[str]
) -> Iterator[tuple[str, dict[str, NDArray[np.generic]]]]:
    """Yield taps as `definition.forward` does, one batch of `images` (`[N, H, W, C]`) after the other, on the CPU."""
    model = onnx.load(path, load_external_data=False)
    outputs = {output.name for output in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=tap) for tap in taps if tap not in outputs)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(FOLDER_OF_DATA, str(path.resolve().parent))
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for name, image in images.items():
        pixels = np.ascontiguousarray(image.transpose(0, 3, 1, 2), np.float32)
        for tap, value in zip(taps, session.run(list(taps), {INPUT: pixels}), strict=True):
            yield tap, {name: value.transpose(0, 2, 3, 1) if value.ndim == 4 else value}
