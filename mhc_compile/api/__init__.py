"""The verbs that users call.

`explain`: runs a model once and reports what would be built.
`report`: the report, its numbers and its tables.
`upgrade`: gives a model its parameters, and verifies.
`lifecycle`: an upgraded model afterwards: plain, remove, restore.
`export`: one self-contained graph of an upgraded model, or of any FX graph.
"""
