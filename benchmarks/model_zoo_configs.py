"""Tiny configurations of the architectures that mlx-lm's tests have none for.

Ones of a few kilobytes each, by model module; knows nothing of how they are checked.
"""

TINY = dict(
    hidden_size=64,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    vocab_size=100,
    rms_norm_eps=1e-5,
    head_dim=16,
    rope_theta=1000.0,
    max_position_embeddings=1000,
    tie_word_embeddings=False,
)
TINY_MOE = dict(
    moe_intermediate_size=32,
    n_routed_experts=4,
    n_shared_experts=1,
    num_experts=4,
    num_experts_per_tok=2,
    first_k_dense_replace=1,
    routed_scaling_factor=1.0,
    norm_topk_prob=True,
)
TINY_MLA = dict(
    TINY,
    **TINY_MOE,
    kv_lora_rank=16,
    q_lora_rank=16,
    qk_rope_head_dim=16,
    qk_nope_head_dim=16,
    v_head_dim=16,
    index_head_dim=32,
    index_n_heads=4,
    index_topk=8,
    topk_method="noaux_tc",
    scoring_func="sigmoid",
    n_group=1,
    topk_group=1,
    moe_layer_freq=1,
    attention_bias=False,
    rope_parameters={"rope_theta": 1000.0, "rope_type": "default"},
)
LAYER_TYPES = ["sliding_attention", "full_attention", "sliding_attention"]
# Architectures of which mlx-lm's tests run no configuration, or only a large one.
CONFIGS: dict[str, dict] = {
    "cohere": TINY,
    "cohere2": dict(TINY, sliding_window=8, sliding_window_pattern=2),
    "falcon_h1": dict(
        TINY, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16
    ),
    "gemma3": dict(
        vocab_size=100,
        text_config=dict(TINY, model_type="gemma3_text", sliding_window_pattern=2),
    ),
    "glm_moe_dsa": TINY_MLA,
    "gpt_neox": dict(TINY, layer_norm_eps=1e-5, rotary_emb_base=1000, rotary_pct=0.25),
    "gptj": dict(n_embd=64, n_head=4, n_layer=3, rotary_dim=8, vocab_size=100),
    "kimi_k25": dict(text_config=TINY_MLA),
    "mellum": dict(
        TINY,
        **TINY_MOE,
        sliding_window=8,
        layer_types=LAYER_TYPES,
        rope_parameters={name: {"rope_theta": 1000.0} for name in LAYER_TYPES},
    ),
    "ministral3": dict(
        TINY,
        sliding_window=8,
        layer_types=LAYER_TYPES,
        rope_parameters={
            "rope_theta": 1000.0,
            "rope_type": "default",
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 1000,
        },
    ),
    "mistral3": dict(text_config=dict(TINY, model_type="llama")),
    "muse_spark": dict(
        text_config=dict(
            TINY,
            **TINY_MOE,
            post_norm_eps=1e-5,
            rope_parameters={"rope_theta": 1000.0},
            layer_rope_theta=[1000.0, 0, 1000.0],
            layer_types=LAYER_TYPES,
            sliding_window=8,
            final_logit_softcapping=30.0,
            output_multiplier=1.0,
            num_local_experts=4,
            moe_hidden_size=32,
        )
    ),
    "olmo": dict(
        d_model=64,
        n_layers=3,
        mlp_hidden_size=64,
        n_heads=4,
        vocab_size=100,
        embedding_size=100,
    ),
    "phi": dict(TINY, num_key_value_heads=4),
    "phi3": TINY,
    "phixtral": dict(
        num_vocab=100, model_dim=64, num_heads=4, num_layers=3, rotary_dim=8
    ),
    "qwen": dict(TINY, kv_channels=16, no_bias=True),
    "qwen2_vl": dict(text_config=dict(TINY, model_type="qwen2")),
    "solar_open": dict(TINY, **TINY_MOE, partial_rotary_factor=0.5, n_group=1),
}
