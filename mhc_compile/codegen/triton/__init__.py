"""The target language Triton: Spec -> the text of one file.

generate      puts the parts of a file together; the bytes it should move, its default tiles
host          the functions that a caller sees: what they allocate and launch
forward       kernels `project`, `read`: coefficients of streams, and what a branch reads
grad_logits   kernel `coefs`, the first of the backward: gradients of every token's logits
grad_streams  kernel `streams`, the second: gradients of streams, branch output and phi
grad_sums     kernel `reduce`, the third: sums over what programs left, always in the same order
one_launch    kernels `both`, `back`: two of those above in one launch
leave         kernels `leave`, `leave_backward`
replay        kernel `replay`, and replaying inside the backward kernels
sinkhorn      Sinkhorn-Knopp in registers, and its gradient
fragments     what several kernels share, such as the replay of a block's writes
"""
