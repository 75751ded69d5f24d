"""What compiling costs: `python -m bench.compile_time`; what of it the passes are: `bench.compile_time.passes`."""
