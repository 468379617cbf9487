"""What a conversion is held to: recorded outputs, and implementations that yield taps."""
