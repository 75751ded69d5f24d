"""The plan of a whole model: which sites it has, and how they share streams.

`drafting`: from the graphs of a captured run to a plan.
`joints`: where regions and connections pass from graph to graph, and where they are cut.
`model_plan`: the frozen plan, as the model's state carries it along.
`memory`: what training keeps of the streams.
"""
