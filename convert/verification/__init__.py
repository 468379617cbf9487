"""Prove that a conversion changed nothing: bytes, taps, preprocessing, and what explains a difference."""
