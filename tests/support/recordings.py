"""Values taken from recordings."""

from __future__ import annotations

from convert.network.taps import Key
from convert.references.recordings import Recordings
from convert.verification.metrics import summary_error


def float32_error(recordings: Recordings, key: Key) -> float:
    """Return the larger error of the recorded float32 runs at a tap."""
    expected = recordings.float64.taps[key]
    return max(summary_error(run.taps[key], expected) for run in recordings.float32)
