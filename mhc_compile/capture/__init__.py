"""Running a model under Dynamo to see its graphs, frames and owners."""
