"""What a node does beside its result, and so where it may stand.

`schemas`: what torch says of an op.
`aliases`: which tensors share memory, and which are overwritten.
`modes`: the gradient, inference and autocast mode that a node runs in.
`transforms`: levels of torch.func that nodes open and close.
`order`: whether a node may stand elsewhere.
"""
