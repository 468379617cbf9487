"""Other implementations of the network, each run in a separate process, and recordings of their outputs."""
