"""Triton: the text of a kernel file."""
