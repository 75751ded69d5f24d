"""Memory and time of a training step against the sites per block of selective recompute: `python -m bench.memory`."""
