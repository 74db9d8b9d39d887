"""Encoder-decoders: several stacks of layers under one config."""

from dataclasses import replace

from .family import FAMILIES, Family


def _t5(mlp_in: tuple[str, ...], name: str, own_head_bias: bool) -> Family:
    """T5's three kinds of layers, with a gated or a plain FFN."""
    encoder = Family(
        name=name,
        layers="encoder.block",
        attention="layer.0.SelfAttention",
        q="layer.0.SelfAttention.q",
        k="layer.0.SelfAttention.k",
        v="layer.0.SelfAttention.v",
        o="layer.0.SelfAttention.o",
        mlp_in=tuple(f"layer.1.DenseReluDense.{name}" for name in mlp_in),
        mlp_out="layer.1.DenseReluDense.wo",
        heads="num_heads",
        kv_heads=None,
        ffn="d_ff",
        head_dim="d_kv",
        head_dim_at="key_value_proj_dim",
        attributes={"n_heads": "heads", "inner_dim": "width"},
        head_bias="layer.0.SelfAttention.relative_attention_bias",
        own_head_bias=own_head_bias,
    )
    decoder = replace(
        encoder,
        layers="decoder.block",
        mlp_in=tuple(f"layer.2.DenseReluDense.{name}" for name in mlp_in),
        mlp_out="layer.2.DenseReluDense.wo",
    )
    cross = replace(
        encoder,
        layers="decoder.block",
        attention="layer.1.EncDecAttention",
        q="layer.1.EncDecAttention.q",
        k="layer.1.EncDecAttention.k",
        v="layer.1.EncDecAttention.v",
        o="layer.1.EncDecAttention.o",
        mlp_in=(),
        head_bias=None,
    )
    return replace(encoder, stacks=(encoder, decoder, cross))


for _model_type in ("t5", "mt5", "umt5"):
    _gated, _plain = (_t5(names, _model_type, _model_type == "umt5") for names in (("wi_0", "wi_1"), ("wi",)))
    FAMILIES.register(_model_type, replace(_gated, otherwise=_plain))
