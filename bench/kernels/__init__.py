"""The generated kernels on a GPU: whether they are right, how fast, and against whom. `bash bench/gpu.sh` runs it.

Steps: correctness (against the equations in fp64), time (ops, kernels, a whole seam), peers (other libraries), tune.
"""
