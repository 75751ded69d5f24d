"""Sound: speech encoders, speech to text, codecs, vocoders."""

from __future__ import annotations

from typing import Any

import torch

from bench.zoo.family import LAYERS, each, hf, under
from bench.zoo.inputs import ids, speech, wave
from bench.zoo.sizes import BART, BLOCK, SPECIAL, STACK, T5, TEXT, TRANSLATION, WIDTH

EARS = {
    **TEXT, "conv_dim": [8, 8], "conv_kernel": [10, 3], "conv_stride": [10, 4], "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 4, "layerdrop": 0.0, "apply_spec_augment": False,
}  # fmt: skip
STABLE = {**EARS, "do_stable_layer_norm": True, "feat_extract_norm": "layer"}
POSITIONED = {**BLOCK, "position convolution": 1}
CONFORMER = each("first half mlp", "attention", "convolution", "second half mlp")
WHISPER = {**BART, "num_mel_bins": 8, "max_source_positions": 20, "max_target_positions": 20}
SPEECH2TEXT = {
    **BART,
    "input_feat_per_channel": 8,
    "conv_channels": 16,
    "max_source_positions": 64,
    "max_target_positions": 64,
}
MOONSHINE = {
    **SPECIAL, "hidden_size": WIDTH, "intermediate_size": 64, "encoder_num_hidden_layers": LAYERS,
    "decoder_num_hidden_layers": LAYERS, "encoder_num_attention_heads": 4, "decoder_num_attention_heads": 4,
    "decoder_start_token_id": 1, "partial_rotary_factor": 1.0, "pad_head_dim_to_multiple_of": None,
}  # fmt: skip
SPEECHT5 = {**EARS, **BART, "hidden_size": WIDTH, "encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}
PARAKEET = {
    **STACK,
    "intermediate_size": 64,
    "num_mel_bins": 8,
    "subsampling_factor": 2,
    "subsampling_conv_channels": 8,
    "layerdrop": 0.0,
}
LASR = {
    **STACK,
    "intermediate_size": 64,
    "num_mel_bins": 8,
    "subsampling_conv_channels": 8,
    "layerdrop": 0.0,
    "conv_kernel_size": 8,
}
ENCODEC = {
    "num_filters": 4,
    "hidden_size": 16,
    "upsampling_ratios": [4, 2],
    "codebook_size": 16,
    "num_residual_layers": 1,
}
DAC = {
    "encoder_hidden_size": 8,
    "downsampling_ratios": [2, 4],
    "decoder_hidden_size": 16,
    "n_codebooks": 2,
    "codebook_size": 16,
    "codebook_dim": 4,
}
MIMI = {
    **STACK, "intermediate_size": 64, "num_filters": 4, "num_residual_layers": 1, "upsampling_ratios": [4, 2],
    "codebook_size": 16,
    "codebook_dim": 16, "vector_quantization_hidden_dimension": 16, "num_quantizers": 2, "upsample_groups": WIDTH,
    "num_key_value_heads": 4,
    "frame_rate": 1500.0, "sampling_rate": 24000,
}  # fmt: skip
MUSICGEN = {
    **SPECIAL,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "ffn_dim": 64,
    "num_codebooks": 2,
    "pad_token_id": 100,
    "bos_token_id": 100,
    "max_position_embeddings": 64,
}
BARK = {
    "block_size": 64,
    "input_vocab_size": 100,
    "output_vocab_size": 100,
    "num_layers": LAYERS,
    "num_heads": 4,
    "hidden_size": WIDTH,
}
DIA = {
    "encoder_config": {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 8, "intermediate_size": 64, "vocab_size": 100},
    "decoder_config": {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 64, "cross_num_attention_heads": 4,
    "cross_head_dim": 8, "cross_num_key_value_heads": 4, "cross_hidden_size": WIDTH, "vocab_size": 100,
    "num_channels": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "delay_pattern": [0, 1], "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
FASTSPEECH = {
    "hidden_size": WIDTH, "vocab_size": 100, "num_mel_bins": 8, "encoder_layers": LAYERS, "decoder_layers": LAYERS,
    "encoder_linear_units": 64, "decoder_linear_units": 64, "speech_decoder_postnet_units": 16,
    "duration_predictor_channels": 16,
    "energy_predictor_channels": 16, "pitch_predictor_channels": 16, "decoder_kernel_size": 7,
}  # fmt: skip
HIFI = {
    "model_in_dim": 8,
    "upsample_initial_channel": 16,
    "upsample_rates": [2, 2],
    "upsample_kernel_sizes": [4, 4],
    "resblock_kernel_sizes": [3, 5],
    "resblock_dilation_sizes": [[1, 3], [1, 3]],
}
UNIVNET = {
    "model_in_channels": 8,
    "model_hidden_channels": 8,
    "num_mel_bins": 8,
    "resblock_kernel_sizes": [3],
    "resblock_stride_sizes": [4],
    "resblock_dilation_sizes": [[1, 3]],
    "kernel_predictor_hidden_channels": 8,
    "kernel_predictor_num_blocks": 1,
}
CODEC_BLOCKS = {"encoder": 2, "decoder": 2}


def mels(frames: int = 40, bins: int = 8) -> torch.Tensor:
    """A batch of spectrograms."""  # [B, T, M]
    return torch.randn(2, frames, bins)


def spectrogram() -> dict[str, Any]:
    """Spectrograms with time on the second axis."""
    return {"input_features": mels()}


def heard_text() -> dict[str, Any]:
    """Spectrograms with time on the second axis for an encoder, tokens for a decoder."""
    return {"input_features": mels(), "decoder_input_ids": ids(7)}


def wave_and_text() -> dict[str, Any]:
    """Sound for an encoder, tokens for a decoder."""
    return {**wave(), "decoder_input_ids": ids(7)}


def channel(samples: int = 320) -> dict[str, Any]:
    """A batch of sound with a channel axis."""
    return {"input_values": torch.randn(2, 1, samples)}


FAMILIES = (
    hf("wav2vec2", "Wav2Vec2Model", EARS, wave, POSITIONED, quick=True),
    hf("wav2vec2_stable", "Wav2Vec2Model", STABLE, wave, POSITIONED),
    hf("hubert", "HubertModel", EARS, wave, POSITIONED),
    hf("hubert_stable", "HubertModel", STABLE, wave, POSITIONED),
    hf("wavlm", "WavLMModel", EARS, wave, POSITIONED),
    hf("unispeech", "UniSpeechModel", EARS, wave, POSITIONED),
    hf("unispeech_sat", "UniSpeechSatModel", EARS, wave, POSITIONED),
    hf(
        "data2vec_audio",
        "Data2VecAudioModel",
        {**EARS, "num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3},
        wave,
        POSITIONED,
    ),
    hf(
        "sew",
        "SEWModel",
        EARS,
        wave,
        POSITIONED,
        note="positions by convolution are added to a pooled copy",
    ),
    hf("sew_d", "SEWDModel", {**EARS, "max_position_embeddings": 64, "position_buckets": 8}, wave, POSITIONED),
    hf(
        "wav2vec2_conformer",
        "Wav2Vec2ConformerModel",
        {**EARS, "position_embeddings_type": "relative", "conv_depthwise_kernel_size": 7},
        wave,
        CONFORMER,
    ),
    hf(
        "wav2vec2_bert",
        "Wav2Vec2BertModel",
        {
            **TEXT,
            "feature_projection_input_dim": 8,
            "conv_depthwise_kernel_size": 7,
            "apply_spec_augment": False,
            "layerdrop": 0.0,
        },
        spectrogram,
        CONFORMER,
    ),
    hf("parakeet", "ParakeetEncoder", PARAKEET, spectrogram, CONFORMER),
    hf("lasr", "LasrEncoder", LASR, spectrogram, CONFORMER),
    hf(
        "audio_spectrogram_transformer",
        "ASTModel",
        {**TEXT, "patch_size": 4, "frequency_stride": 4, "time_stride": 4, "max_length": 40, "num_mel_bins": 8},
        lambda: {"input_values": mels()},
        BLOCK,
    ),
    hf("whisper", "WhisperForConditionalGeneration", WHISPER, speech, TRANSLATION),
    hf("speech_to_text", "Speech2TextForConditionalGeneration", SPEECH2TEXT, heard_text, TRANSLATION),
    hf("speecht5", "SpeechT5ForSpeechToText", SPEECHT5, wave_and_text, {**TRANSLATION, "position convolution": 1}),
    hf("moonshine", "MoonshineForConditionalGeneration", MOONSHINE, wave_and_text, TRANSLATION),
    hf(
        "pop2piano",
        "Pop2PianoForConditionalGeneration",
        T5,
        lambda: {"input_features": mels(12, WIDTH), "decoder_input_ids": ids(7)},
        TRANSLATION,
    ),
    hf(
        "qwen2_audio_encoder",
        "Qwen2AudioEncoder",
        {**WHISPER, "max_source_positions": 20},
        lambda: {"input_features": torch.randn(2, 8, 40)},
        BLOCK,
    ),
    hf(
        "voxtral_encoder",
        "VoxtralEncoder",
        {**TEXT, "num_mel_bins": 8, "max_source_positions": 20},
        lambda: {"input_features": torch.randn(2, 8, 40)},
        BLOCK,
    ),
    hf(
        "encodec",
        "EncodecModel",
        ENCODEC,
        channel,
        {**under("learned shortcut,", CODEC_BLOCKS), "encoder lstm": 1, "decoder lstm": 1},
        note="sums of the quantiser are none",
    ),
    hf(
        "dac",
        "DacModel",
        DAC,
        channel,
        {"encoder unit": 6, "decoder unit": 6},
        slack=2,
        note="a sum and a difference of the quantiser are reported, as connections that stand alone",
    ),
    hf(
        "mimi",
        "MimiModel",
        MIMI,
        channel,
        {**under("encoder", {**BLOCK, "convolution": 2}), **under("decoder", {**BLOCK, "convolution": 2})},
    ),
    hf(
        "musicgen_decoder",
        "MusicgenForCausalLM",
        MUSICGEN,
        lambda: {"input_ids": torch.randint(3, 100, (4, 12))},
        BLOCK,
    ),
    hf("bark_semantic", "BarkSemanticModel", BARK, lambda: {"input_ids": ids()}, BLOCK),
    hf(
        "dia",
        "DiaForConditionalGeneration",
        DIA,
        lambda: {"input_ids": ids(), "decoder_input_ids": torch.randint(3, 100, (2, 7, 2))},
        TRANSLATION,
    ),
    hf(
        "fastspeech2_conformer",
        "FastSpeech2ConformerModel",
        FASTSPEECH,
        lambda: {"input_ids": ids()},
        {**under("encoder", CONFORMER), **under("decoder", CONFORMER), "postnet": 1, "pitch with energy": 1},
    ),
    hf(
        "hifi_gan",
        "FastSpeech2ConformerHifiGan",
        HIFI,
        lambda: {"spectrogram": mels()},
        {"convolutions": 8},
        note="2 upsamplings × 2 kernels × 2 dilations",
    ),
    hf(
        "univnet",
        "UnivNetModel",
        UNIVNET,
        lambda: {"input_features": mels()},
        {"kernel predictor": 1, "location-variable convolution": 2},
    ),
)
