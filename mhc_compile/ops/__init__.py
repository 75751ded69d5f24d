"""Mathematics: the reference functions (the specification) and the ops of the mhc IR."""
