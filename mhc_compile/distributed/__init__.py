"""Upgraded models on several devices.

`sharding`: FSDP2, where the parameters of all sites form a group of their own.
`tokens`: sequence parallel, where gradients of sites are summed.
"""
