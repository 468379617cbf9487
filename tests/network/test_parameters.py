from __future__ import annotations

import math

import pytest

from bit.config import BitConfig
from convert.network.parameters import parameters


@pytest.mark.parametrize(
    ("architecture", "count"),
    # Counted by timm and Google's own code; arXiv 1912.11370 rounds them to 25, 381 and 928 million.
    [("R50x1", 25_549_352), ("R101x3", 387_934_888), ("R152x4", 936_533_224)],
)
def test_the_parameters_of_published_networks_add_up(architecture: str, count: int) -> None:
    listed = parameters(BitConfig.from_architecture(architecture))
    assert sum(math.prod(parameter.shape) for parameter in listed) == count


def test_only_the_first_unit_of_a_stage_has_a_projection() -> None:
    names = [parameter.name for parameter in parameters(BitConfig()) if "projection" in parameter.name]
    assert names == [f"block{block}/unit01/projection/kernel" for block in (1, 2, 3, 4)]
