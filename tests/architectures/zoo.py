"""The architectures: tiny configs of transformers' classes, and factories of models of other packages.

See also: what is checked of each (check.py), and the table that is made of it (__main__.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_TINY = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "hidden_dim", "embed_dim"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth"), 2),
    **dict.fromkeys(("encoder_layers", "decoder_layers", "num_decoder_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("intermediate_size", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff"), 64),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("ffn_dim", "mlp_hidden_size"), 64),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_seq_len"), 64),
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token"), 2),
    "vocab_size": 99,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "d_kv": 12,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "type_vocab_size": 2,
}
"""What most configs of text call their numbers; each takes those that it has."""

_IMAGE = {**_TINY, "image_size": 32, "patch_size": 8, "num_channels": 3, "num_labels": 5}


@dataclass(frozen=True)
class Architecture:
    """A class of transformers with numbers for its config, or a factory of another package.

    Attributes:
        name: the class, or "package:factory".
        numbers: what the config, or the factory, is given.
        shape: of a factory's input.
        note: tells two of one class apart.
    """

    name: str
    numbers: Mapping[str, Any] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    note: str = ""

    @property
    def title(self) -> str:
        """How the table calls it."""
        return f"{self.name} ({self.note})" if self.note else self.name

    @property
    def is_factory(self) -> bool:
        """Whether it is no class of transformers."""
        return ":" in self.name


def _text(name: str, note: str = "", **numbers: Any) -> Architecture:
    return Architecture(name, {**_TINY, **numbers}, note=note)


def _image(name: str, note: str = "", **numbers: Any) -> Architecture:
    return Architecture(name, {**_IMAGE, **numbers}, note=note)


_CAUSAL = (
    _text("GPT2LMHeadModel"),
    _text("GPTNeoForCausalLM", num_layers=2, attention_types=[[["global", "local"], 1]]),
    _text("GPTJForCausalLM", rotary_dim=4),
    _text("GPTNeoXForCausalLM"),
    _text("GPTBigCodeForCausalLM"),
    _text("BloomForCausalLM"),
    _text("OPTForCausalLM", word_embed_proj_dim=48),
    _text("FalconForCausalLM"),
    _text("MptForCausalLM"),
    _text("CodeGenForCausalLM", rotary_dim=4),
    _text("CTRLLMHeadModel", dff=64),
    _text("BioGptForCausalLM"),
    _text("XGLMForCausalLM", attention_heads=4),
    _text("LlamaForCausalLM"),
    _text("MistralForCausalLM"),
    _text("MixtralForCausalLM"),
    _text("Qwen2ForCausalLM"),
    _text("Qwen3ForCausalLM"),
    _text("Qwen2MoeForCausalLM"),
    _text("Qwen3MoeForCausalLM"),
    _text("OlmoeForCausalLM"),
    _text("GraniteMoeForCausalLM"),
    _text("GptOssForCausalLM"),
    _text("GemmaForCausalLM"),
    _text("Gemma2ForCausalLM"),
    _text("Gemma3ForCausalLM"),
    _text("PhiForCausalLM"),
    _text("Phi3ForCausalLM"),
    _text("StableLmForCausalLM", head_dim=16, hidden_size=64),
    _text("OlmoForCausalLM"),
    _text("Olmo2ForCausalLM"),
    _text("CohereForCausalLM"),
    _text("GraniteForCausalLM"),
    _text("Starcoder2ForCausalLM"),
    _text("NemotronForCausalLM"),
    _text("SmolLM3ForCausalLM"),
    _text("GlmForCausalLM"),
    _text("ArceeForCausalLM"),
    _text(
        "DeepseekV3ForCausalLM",
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=12,
        head_dim=8,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        num_key_value_heads=4,
    ),
    _text("MambaForCausalLM", state_size=8),
)

_MASKED = (
    _text("BertForMaskedLM"),
    _text("RobertaForMaskedLM"),
    _text("ElectraForMaskedLM", embedding_size=48),
    _text("AlbertForMaskedLM", embedding_size=32),
    _text("DistilBertForMaskedLM"),
    _text("DebertaV2ForMaskedLM"),
    _text("MPNetForMaskedLM"),
    _text("MobileBertForMaskedLM", embedding_size=32, intra_bottleneck_size=32),
    _text("SqueezeBertForMaskedLM", embedding_size=48),
    _text("ConvBertForMaskedLM", embedding_size=48),
    _text("RoFormerForMaskedLM", embedding_size=48),
    _text("FNetForMaskedLM"),
    _text("EsmForMaskedLM", mask_token_id=3),
    _text("MegatronBertForMaskedLM"),
    _text("ModernBertForMaskedLM", cls_token_id=1, sep_token_id=2),
    _text("XLMWithLMHeadModel", emb_dim=48),
    _text("XLNetLMHeadModel", d_inner=64),
    _text("BertForSequenceClassification", num_labels=3),
)

_TO_TEXT = (
    _text("T5ForConditionalGeneration"),
    _text("T5ForConditionalGeneration", "gated", feed_forward_proj="gated-gelu"),
    _text("BartForConditionalGeneration"),
    _text("MBartForConditionalGeneration"),
    _text("PegasusForConditionalGeneration"),
    _text("MarianMTModel", decoder_start_token_id=0),
    _text("M2M100ForConditionalGeneration"),
    _text(
        "WhisperForConditionalGeneration",
        num_mel_bins=16,
        max_source_positions=32,
        max_target_positions=32,
        decoder_start_token_id=1,
    ),
)

_STAGES: dict[str, Any] = {"hidden_sizes": [16, 32], "depths": [2, 2], "embedding_size": 16}
_SWIN: dict[str, Any] = {
    "embed_dim": 16,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 4,
    "patch_size": 2,
}

_VISION = (
    _image("ResNetForImageClassification", **_STAGES),
    _image("ResNetForImageClassification", "basic", **_STAGES, layer_type="basic"),
    _image("RegNetForImageClassification", **_STAGES, groups_width=8),
    _image("BitForImageClassification", **_STAGES, num_groups=4),
    _image(
        "ConvNextForImageClassification",
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        num_stages=4,
        image_size=64,
        patch_size=4,
    ),
    _image(
        "ConvNextV2ForImageClassification",
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        num_stages=4,
        image_size=64,
        patch_size=4,
    ),
    _image("MobileNetV1ForImageClassification"),
    _image("MobileNetV2ForImageClassification"),
    _image(
        "MobileViTForImageClassification",
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
        patch_size=2,
        image_size=64,
    ),
    _image(
        "EfficientNetForImageClassification", hidden_dim=640, width_coefficient=0.5, image_size=96
    ),
    _image("ViTForImageClassification"),
    _image("DeiTForImageClassification"),
    _image("BeitForImageClassification"),
    _image("Dinov2ForImageClassification"),
    _image("Dinov2ForImageClassification", "SwiGLU", use_swiglu_ffn=True),
    _image("Dinov2WithRegistersForImageClassification"),
    _image("SwinForImageClassification", **_SWIN),
    _image("Swinv2ForImageClassification", **_SWIN),
    _image(
        "SegformerForSemanticSegmentation",
        hidden_sizes=[8, 16, 24, 32],
        num_attention_heads=[1, 2, 2, 4],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=32,
        image_size=64,
        patch_sizes=[7, 3, 3, 3],
    ),
    _image(
        "PvtForImageClassification",
        hidden_sizes=[16, 32, 48, 64],
        num_attention_heads=[1, 2, 4, 4],
        depths=[1, 1, 1, 1],
        image_size=64,
    ),
    _image(
        "PoolFormerForImageClassification",
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 1, 1],
        image_size=64,
        patch_size=7,
    ),
    _image("FocalNetForImageClassification", embed_dim=16, depths=[1, 1], patch_size=4),
    _image("SiglipForImageClassification", vision_config={**_IMAGE}),
    _image("CLIPForImageClassification", vision_config={**_IMAGE}),
    _image("YolosForObjectDetection", image_size=[32, 32], num_detection_tokens=5),
    _image(
        "DetrForObjectDetection",
        backbone_config={"model_type": "resnet", **_STAGES, "out_features": ["stage2"]},
        use_timm_backbone=False,
        backbone=None,
        image_size=64,
    ),
    _image(
        "DPTForSemanticSegmentation",
        is_hybrid=False,
        out_indices=[1, 1, 2, 2],
        backbone_out_indices=[1, 1, 2, 2],
        neck_hidden_sizes=[16] * 4,
        fusion_hidden_size=16,
    ),
    _image(
        "GLPNForDepthEstimation",
        hidden_sizes=[8, 16, 24, 32],
        depths=[1] * 4,
        decoder_hidden_size=16,
        num_attention_heads=[1, 2, 2, 4],
        image_size=64,
    ),
    _image(
        "ViTMAEForPreTraining",
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_intermediate_size=48,
        decoder_num_attention_heads=4,
    ),
    _image("VivitForVideoClassification"),
    Architecture(
        "Wav2Vec2ForCTC",
        {
            **_TINY,
            "conv_dim": [16, 16],
            "conv_stride": [5, 2],
            "conv_kernel": [10, 3],
            "num_feat_extract_layers": 2,
            "num_conv_pos_embeddings": 16,
            "num_conv_pos_embedding_groups": 2,
        },
    ),
    Architecture("ASTForAudioClassification", {**_IMAGE, "num_mel_bins": 16, "max_length": 64}),
)

_TORCHVISION = tuple(
    Architecture(f"torchvision.models:{name}", {}, (1, 3, size, size))
    for name, size in {
        "alexnet": 224,
        "densenet121": 64,
        "efficientnet_b0": 64,
        "googlenet": 64,
        "inception_v3": 299,
        "mnasnet1_0": 64,
        "mobilenet_v2": 64,
        "mobilenet_v3_large": 64,
        "regnet_y_400mf": 64,
        "resnet18": 64,
        "resnet50": 64,
        "resnext50_32x4d": 64,
        "shufflenet_v2_x1_0": 64,
        "squeezenet1_1": 64,
        "swin_t": 64,
        "vgg11_bn": 64,
        "vit_b_16": 224,
    }.items()
)

ARCHITECTURES = (*_CAUSAL, *_MASKED, *_TO_TEXT, *_VISION, *_TORCHVISION)
