"""Other implementations of the network, each run in a process of its own, and recordings of their outputs."""
