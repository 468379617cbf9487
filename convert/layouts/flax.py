"""google-research/big_transfer in JAX (bit_jax/models.py); `/`-joined names, norms `[1, 1, 1, c]`."""

from typing import Any

from bit.config import CONFIG_NAME, BitConfig
from convert.layouts.layout import Layout, Row
from convert.layouts.transformers import stated


def configuration(config: BitConfig, dtype: str, name: str, profile: str) -> dict[str, dict[str, Any]]:
    """The `config.json` that `bit`'s own models for JAX and TensorFlow are built from."""
    return {CONFIG_NAME: {**config.to_dict(), "dtype": dtype}}


_UNIT = "block{block}/unit{unit:02d}/"

FLAX = Layout(
    name="flax",
    library="google-research/big_transfer, JAX (`bit.flax`)",
    container="safetensors",
    weights_name="model.safetensors",
    ws_eps=1e-10,
    companions=configuration,
    stated=stated,
    spellings={r"^head/": "conv_head/"},  # as big_vision (models/bit_paper.py) names it
    rows={
        "stem/kernel": Row("root_block/conv_root/kernel", "hwio"),
        "unit/norm1/scale": Row(_UNIT + "gn1/scale", "111c"),
        "unit/norm1/bias": Row(_UNIT + "gn1/bias", "111c"),
        "unit/conv1/kernel": Row(_UNIT + "conv1/kernel", "hwio"),
        "unit/norm2/scale": Row(_UNIT + "gn2/scale", "111c"),
        "unit/norm2/bias": Row(_UNIT + "gn2/bias", "111c"),
        "unit/conv2/kernel": Row(_UNIT + "conv2/kernel", "hwio"),
        "unit/norm3/scale": Row(_UNIT + "gn3/scale", "111c"),
        "unit/norm3/bias": Row(_UNIT + "gn3/bias", "111c"),
        "unit/conv3/kernel": Row(_UNIT + "conv3/kernel", "hwio"),
        "unit/projection/kernel": Row(_UNIT + "conv_proj/kernel", "hwio"),
        "norm/scale": Row("norm-pre-head/scale", "111c"),
        "norm/bias": Row("norm-pre-head/bias", "111c"),
        "head/kernel": Row("conv_head/kernel", "cn"),
        "head/bias": Row("conv_head/bias", "n"),
    },
)
