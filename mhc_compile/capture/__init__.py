"""What Dynamo shows of a model: frames, graphs and owners.

`frames`: the frame that is compiled: its module, what broke it, errors on their way out.
`graphs`: copies of its graph, and new inputs.
`model_run`: one run of a whole model, with all its graphs.
`undisturbed`: which leaves the model as it was.
`skipped`: the frames that Dynamo runs without compiling them.
`owners`: which module's forward made a node.
`sources`: how Dynamo says where a frame finds a module.
"""
