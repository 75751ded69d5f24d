"""Sites in the user's model: what a plan becomes there.

`start_values`: values of the parameters at which the model computes what it computed before.
`sites`: the modules that hold parameters, their markers, and the plan.
`plan_text`: that plan as text, in checkpoints, too.
`owners`: the subclass that an owner of sites gets.
`phase`: how far a model has come, and what that means for a graph without markers.
`attach`: creates the sites of a plan, or takes them away.
`optimizers`: groups for optimizers, and a warning where one leaves parameters out.
"""
