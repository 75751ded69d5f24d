"""What every step needs: cases, a context, kernels to call, processes to work in."""
