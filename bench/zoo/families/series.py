"""Time series and trajectories."""

from __future__ import annotations

from typing import Any

import torch

from bench.zoo.family import LAYERS, each, hf
from bench.zoo.sizes import BLOCK, TRANSLATION, WIDTH

PAST, FUTURE = 24, 8
SERIES = {
    "prediction_length": FUTURE, "context_length": 16, "lags_sequence": [1, 2], "num_time_features": 1,
    "d_model": WIDTH,
    "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "input_size": 1, "scaling": "std",
}  # fmt: skip
PATCHTST = {
    "num_input_channels": 2,
    "context_length": 24,
    "patch_length": 4,
    "patch_stride": 4,
    "num_hidden_layers": LAYERS,
    "d_model": WIDTH,
    "num_attention_heads": 4,
    "ffn_dim": 64,
    "prediction_length": FUTURE,
}
MIXER = {
    "context_length": 24,
    "patch_length": 4,
    "patch_stride": 4,
    "num_input_channels": 2,
    "d_model": 16,
    "num_layers": LAYERS,
    "prediction_length": FUTURE,
}
TIMESFM = {
    "patch_length": 8,
    "context_length": 32,
    "horizon_length": FUTURE,
    "num_hidden_layers": LAYERS,
    "hidden_size": WIDTH,
    "intermediate_size": WIDTH,
    "head_dim": 8,
    "num_attention_heads": 4,
    "freq_size": 3,
}
DECISION = {"state_dim": 5, "act_dim": 3, "hidden_size": WIDTH, "n_layer": LAYERS, "n_head": 4, "max_ep_len": 32}


def history() -> dict[str, Any]:
    """Past and future of a batch of series."""
    past = 18
    return {
        "past_values": torch.randn(2, past), "past_time_features": torch.randn(2, past, 1),
        "past_observed_mask": torch.ones(2, past),
        "future_values": torch.randn(2, FUTURE), "future_time_features": torch.randn(2, FUTURE, 1),
    }  # fmt: skip


def channels() -> dict[str, Any]:
    """The past of a batch of series of two channels."""
    return {"past_values": torch.randn(2, PAST, 2)}


def patches() -> dict[str, Any]:
    """Series as TimesFM takes them."""
    return {
        "past_values": torch.randn(2, 32),
        "past_values_padding": torch.zeros(2, 32, dtype=torch.long),
        "freq": torch.zeros(2, 1, dtype=torch.long),
    }


def trajectory() -> dict[str, Any]:
    """States, actions and returns of a few steps."""
    steps = 4
    return {
        "states": torch.randn(2, steps, 5), "actions": torch.randn(2, steps, 3), "rewards": torch.randn(2, steps, 1),
        "returns_to_go": torch.randn(2, steps, 1), "timesteps": torch.arange(steps).repeat(2, 1),
        "attention_mask": torch.ones(2, steps, dtype=torch.long),
    }  # fmt: skip


FAMILIES = (
    hf("time_series_transformer", "TimeSeriesTransformerModel", SERIES, history, TRANSLATION),
    hf("informer", "InformerModel", {**SERIES, "attention_type": "full", "distil": False}, history, TRANSLATION),
    hf(
        "autoformer",
        "AutoformerModel",
        {**SERIES, "label_length": 4, "moving_average": 5, "autocorrelation_factor": 1},
        history,
        {**TRANSLATION, "first trend": 1},
        note="the seasonal part carries on; sums of trends are none, but for the first: its trend holds the features",
    ),
    hf("patchtst", "PatchTSTForPrediction", PATCHTST, channels, BLOCK),
    hf(
        "patchtst_channels",
        "PatchTSTForPrediction",
        {**PATCHTST, "channel_attention": True},
        channels,
        each("attention", "channel attention", "mlp"),
    ),
    hf("patchtsmixer", "PatchTSMixerForPrediction", MIXER, channels, each("patch mixer", "feature mixer")),
    hf(
        "patchtsmixer_channels",
        "PatchTSMixerForPrediction",
        {**MIXER, "mode": "mix_channel"},
        channels,
        each("channel mixer", "patch mixer", "feature mixer"),
    ),
    hf("timesfm", "TimesFmModel", TIMESFM, patches, {**BLOCK, "learned shortcut of the input": 1}),
    hf("decision_transformer", "DecisionTransformerModel", DECISION, trajectory, BLOCK),
)
