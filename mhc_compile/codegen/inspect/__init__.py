"""What a kernel does, seen without a GPU: interpreter, traffic, machine code."""
