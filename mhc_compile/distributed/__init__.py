"""Upgraded models on several devices.

`sharding`: FSDP2, where the parameters of all sites form a group of their own.
`stages`: pipelines, whose parts hand on streams.
`boundary`: what crosses from one stage to the next.
`sending`: when stages send what they have made.
`tokens`: sequence parallel, where gradients of sites are summed.
"""
