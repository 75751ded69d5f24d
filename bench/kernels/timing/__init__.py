"""Times of ops, of the kernels within them, and of whole sites against each other."""
