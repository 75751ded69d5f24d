"""The field side by side: one transformer as plain residual, under mhc, and widened by other libraries.

`python -m bench.train`. Every contender trains the same Llama, compiled where it compiles, in one process and in turns.
One whose results are wrong is told with the reason instead of a speed.
"""
