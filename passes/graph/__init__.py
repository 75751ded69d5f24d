"""What the passes share: facts of a graph, and what its ops are."""
