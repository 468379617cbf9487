"""The BiT network: parameters and axes, the float64 oracle, taps, and the interface of every implementation."""
