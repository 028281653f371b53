"""Speech and time series: BatchNorm1d between transpositions, depthwise Conv1d, weight_norm."""

from __future__ import annotations

from typing import Any

import transformers as hub
from torch import Tensor, nn
from transformers.models.speecht5.modeling_speecht5 import SpeechT5SpeechDecoderPostnet

from tests.zoo.architecture import Architecture

FRAMES = (2, 11, 16)
"""[batch, time, features]"""

ATTENTION = "eager"
"""torch.onnx cannot decompose the fused attention of a Conformer."""


def conformer() -> nn.Module:
    config = hub.Wav2Vec2ConformerConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        conv_dim=[16, 16],
        conv_stride=[5, 2],
        conv_kernel=[10, 3],
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        conv_depthwise_kernel_size=7,
        apply_spec_augment=False,
        attn_implementation=ATTENTION,
    )
    return hub.Wav2Vec2ConformerModel(config)


def parakeet() -> nn.Module:
    config = hub.ParakeetEncoderConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=48,
        num_mel_bins=16,
        subsampling_conv_channels=16,
        attn_implementation=ATTENTION,
    )
    return hub.ParakeetEncoder(config)


def hifi_gan() -> nn.Module:
    config = hub.SpeechT5HifiGanConfig(
        model_in_dim=16,
        upsample_initial_channel=32,
        upsample_rates=[4, 2],
        upsample_kernel_sizes=[8, 4],
        resblock_kernel_sizes=[3, 5],
        resblock_dilation_sizes=[[1, 3], [1, 3]],
    )
    vocoder = hub.SpeechT5HifiGan(config)
    vocoder.apply_weight_norm()
    return vocoder


def univ_net() -> nn.Module:
    config = hub.UnivNetConfig(
        model_in_channels=16,
        model_hidden_channels=16,
        num_mel_bins=16,
        resblock_kernel_sizes=[3],
        resblock_stride_sizes=[4],
        resblock_dilation_sizes=[[1, 3]],
        kernel_predictor_hidden_channels=16,
    )
    vocoder = hub.UnivNetModel(config)
    vocoder.apply_weight_norm()
    return vocoder


def codec() -> nn.Module:
    config = hub.DacConfig(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        decoder_hidden_size=32,
        hidden_size=32,
    )
    model = hub.DacModel(config)
    model.apply_weight_norm()
    return model.encoder


def patch_tst() -> nn.Module:
    config = hub.PatchTSTConfig(
        num_input_channels=3,
        context_length=32,
        patch_length=8,
        patch_stride=8,
        d_model=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=24,
        norm_type="batchnorm",
    )
    return hub.PatchTSTModel(config)


def post_net() -> nn.Module:
    return SpeechT5SpeechDecoderPostnet(
        hub.SpeechT5Config(hidden_size=16, num_mel_bins=16, speech_decoder_postnet_units=24)
    )


def refined(model: nn.Module, x: Tensor) -> Any:
    return model(x)[1]


SEQUENCE = [
    Architecture("Wav2Vec2-Conformer", conformer, 1, shape=(2, 801)),
    Architecture("Parakeet", parakeet, 1, shape=(2, 65, 16)),
    Architecture("SpeechT5 post-net", post_net, 5, shape=FRAMES, run=refined),
    Architecture("PatchTST", patch_tst, 4, shape=(2, 32, 3)),
    Architecture("HiFi-GAN", hifi_gan, shape=FRAMES, run=lambda model, x: model(x)),
    Architecture("UnivNet", univ_net, shape=FRAMES, run=lambda model, x: model(x, x)[0]),
    Architecture("DAC", codec, shape=(2, 1, 480), run=lambda model, x: model(x)),
]
