"""Is it worth it? One deep, narrow transformer on real text, trained with every kind of connection, rate and seed.

`trial`: one training run, as numbers; `questions`: which runs answer what; `training`: runs one; `starts`,
`projections`: what some of them need; `store`: the results, and which are missing; `verdicts`: means, intervals, and
what they say, and `plot`, as curves; `page`: the parts of docs/evidence.md; `run`: the command.
"""
