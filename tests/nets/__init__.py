"""The networks under test: one family, shared by all tests.

small: a stem, blocks and a head, for whole models, and what tests do with a model
checkpointed: the same, with the user's own checkpoints
structures: layers that a function of a few lines connects, with what must be found in its comments; graphs of them
chains: such layers in a row, for blocks of recompute
networks: every structure that is widened, written so that it also runs its streams by hand (streams)
random_networks: drawn from them by hypothesis
library: tiny models of `transformers`
partition: what AOTAutograd makes of a network
"""

import pytest

pytest.register_assert_rewrite(*(f"tests.nets.{name}" for name in ("partition", "small", "streams", "structures")))
