"""transformers' hyper-connections of DeepSeek-V4: its own decoder layer, around a Llama's attention and MLP."""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn

from bench.train.peers.layer import Peer, library

MODULE = "transformers.models.deepseek_v4.modeling_deepseek_v4"
REMEDY = 'pip install "transformers>=5.23"'


class Expand(nn.Module):
    """Copies, as DeepseekV4Model makes them."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] to [B, T, n, C]."""
        return x.unsqueeze(2).expand(-1, -1, self.n, -1).contiguous()


class Mlp(nn.Module):
    """A Llama's MLP, called as DeepSeek-V4's experts are."""

    def __init__(self, plain: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = plain.gate_proj, plain.up_proj, plain.down_proj
        self.act_fn = plain.act_fn

    def forward(self, x: Tensor, input_ids: Tensor | None = None) -> Tensor:
        """Return what the branch adds."""
        made: Tensor = self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))
        return made


@functools.cache
def _layer_class() -> Any:
    base = library("transformers", MODULE, "DeepseekV4DecoderLayer", REMEDY)

    class DeepSeekLayer(base):  # type: ignore[misc, valid-type]  # found at run time
        """Its forward is the library's; what it runs between two sites is the Llama's."""

        def __init__(self, plain: Any, sites: tuple[nn.Module, nn.Module]) -> None:
            nn.Module.__init__(self)
            self.self_attn, self.mlp = plain.self_attn, Mlp(plain.mlp)
            self.input_layernorm, self.post_attention_layernorm = plain.input_layernorm, plain.post_attention_layernorm
            self.attn_hc, self.ffn_hc = sites
            self.enter: nn.Module = nn.Identity()
            self.leave: nn.Module = nn.Identity()

        def forward(self, hidden_states: Tensor, **keywords: Any) -> Tensor:
            made: Tensor = self.leave(super().forward(self.enter(hidden_states), **keywords))
            return made

    return DeepSeekLayer


def widen(model: Any, n: int) -> None:
    """Give a Llama the connections of DeepSeek-V4, in float32 and at the values that their model class starts with."""
    layer = _layer_class()
    parts = ("DeepseekV4Config", "DeepseekV4HyperConnection", "DeepseekV4HyperHead")
    config_class, site, head = (library("transformers", MODULE, name, REMEDY) for name in parts)
    config = config_class(
        hidden_size=model.config.hidden_size, hc_mult=n, hc_sinkhorn_iters=20, rms_norm_eps=model.config.rms_norm_eps
    )

    def started(module: nn.Module) -> nn.Module:
        for name, parameter in module.named_parameters():
            kind = name.removeprefix("hc_")
            if kind == "fn":
                nn.init.normal_(parameter, std=config.initializer_range)
            else:
                nn.init.constant_(parameter, 1.0 if kind == "scale" else 0.0)
        return module.to(model.device)

    layers = model.model.layers
    for index, plain in enumerate(layers):
        layers[index] = layer(plain, (started(site(config)), started(site(config))))
    layers[0].enter, layers[-1].leave = Expand(n), started(head(config))


PEER = Peer("transformers", "DeepseekV4HyperConnection", widen, lambda state, n: state)
