"""What BiT is: its parameters, their axes, the float64 oracle, and the interface of every implementation."""
