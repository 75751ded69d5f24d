"""The model zoo: architecture families of public libraries, tiny, through capture, rewrite and backward.

`python -m bench.zoo` runs them all and writes bench/results/zoo.json and bench/results/ZOO.md.
"""
