"""The plan of a whole model."""
