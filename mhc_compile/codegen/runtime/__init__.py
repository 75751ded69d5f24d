"""From a call of an op to a kernel that runs.

dispatch      runs ops by generated kernels, where there are some; `register` tells torch so
spec_of_call  the Spec that the arguments of a call ask for
build         a text becomes a module
cache         the directory of generated files, private and never trusted
tune, space   tiles of a launch: which were found fastest, and which are worth a try
support       on which devices kernels can run, and why not on others
interpreter   Triton's interpreter, mended, for runs on the CPU
cpu           kernels in C++ for the CPU: which there are, and how torch gets to know them
compiler      a text in C++ becomes a shared library, built once per machine
dtypes        names of dtypes in kernels and in torch
"""
