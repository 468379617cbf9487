"""Small random networks for property tests, of any depths, widths, channels and classes."""

from __future__ import annotations

from hypothesis import strategies as st

from bit.config import BitConfig

# A bottleneck is a quarter of its stage, and 32 groups must divide both.
sizes = st.sampled_from([128, 256, 384])


@st.composite
def configs(draw: st.DrawFn) -> BitConfig:
    stages = draw(st.integers(1, 5))
    return BitConfig(
        num_channels=draw(st.integers(1, 5)),
        embedding_size=draw(st.sampled_from([32, 64, 96])),
        hidden_sizes=tuple(draw(st.lists(sizes, min_size=stages, max_size=stages))),
        depths=tuple(draw(st.lists(st.integers(1, 3), min_size=stages, max_size=stages))),
        num_labels=draw(st.integers(1, 7)),
    )
