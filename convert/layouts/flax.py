"""google-research/big_transfer in JAX (bit_jax/models.py): names joined by `/`, norms `[1, 1, 1, c]`."""

from typing import Any

from bit.config import CONFIG_NAME, BitConfig
from convert.layouts.layout import Export, Layout, Row
from convert.layouts.transformers import stated


def configuration(config: BitConfig, dtype: str, name: str, profile: str) -> dict[str, dict[str, Any]]:
    """Return the `config.json` from which `bit.flax` and `bit.keras` build their models."""
    return {CONFIG_NAME: {**config.to_dict(), "dtype": dtype}}


_UNIT = "block{block}/unit{unit:02d}/"

FLAX = Layout(
    name="flax",
    ws_eps=1e-10,
    spellings={r"^head/": "conv_head/"},  # as in big_vision (models/bit_paper.py)
    rows={
        "stem/kernel": Row("root_block/conv_root/kernel", "hwio"),
        "unit/norm{n}/scale": Row(_UNIT + "gn{n}/scale", "111c"),
        "unit/norm{n}/bias": Row(_UNIT + "gn{n}/bias", "111c"),
        "unit/conv{n}/kernel": Row(_UNIT + "conv{n}/kernel", "hwio"),
        "unit/projection/kernel": Row(_UNIT + "conv_proj/kernel", "hwio"),
        "norm/scale": Row("norm-pre-head/scale", "111c"),
        "norm/bias": Row("norm-pre-head/bias", "111c"),
        "head/kernel": Row("conv_head/kernel", "cn"),
        "head/bias": Row("conv_head/bias", "n"),
    },
    export=Export(
        library="google-research/big_transfer, JAX (`bit.flax`)",
        container="safetensors",
        loading='import bit.flax\nmodel = bit.flax.load("{folder}")',
        companions=configuration,
        stated=stated,
    ),
)
