from __future__ import annotations

import pytest
import torch
from torch import nn

from vss2.errors import InputError
from vss2.modeling.transformer_decoder import (
    MaskedAttentionDecoder,
    MaskPrediction,
    attention_mask,
    free_empty_rows,
    mask_logits,
    semantic_scores,
)
from vss2.modeling.transformer_layers import Attention

CHANNELS = 32
SIZES = ((2, 3), (4, 6), (8, 12), (16, 24))


def decoder(video: bool = False, fast: bool = False) -> MaskedAttentionDecoder:
    torch.manual_seed(0)
    return MaskedAttentionDecoder(
        5,
        video=video,
        num_queries=7,
        hidden_dim=CHANNELS,
        num_heads=4,
        dim_feedforward=48,
        num_layers=4,
        fast_attention_masks=fast,
    )


def features(images: int, seed: int = 1) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    *levels, fine = (torch.randn(images, CHANNELS, *size, generator=generator) for size in SIZES)
    return levels, fine


def test_attention_equals_torch() -> None:
    torch.manual_seed(0)
    own, theirs = Attention(CHANNELS, 4), nn.MultiheadAttention(CHANNELS, 4, batch_first=True)
    assert own.state_dict().keys() == theirs.state_dict().keys()
    own.load_state_dict(theirs.state_dict())
    query, key, value = torch.randn(2, 5, CHANNELS), *torch.randn(2, 2, 9, CHANNELS)
    forbidden = free_empty_rows(torch.rand(2, 5, 9) < 0.6)
    expected = theirs(query, key, value, attn_mask=forbidden.repeat_interleave(4, dim=0))[0]
    torch.testing.assert_close(own(query, key, value, forbidden), expected, rtol=0, atol=1e-6)
    expected = theirs(query, key, value)[0]
    torch.testing.assert_close(own(query, key, value), expected, rtol=0, atol=1e-6)


def test_dropout_of_attention_acts_in_training_only() -> None:
    torch.manual_seed(0)
    layer = Attention(CHANNELS, 4, dropout=0.5)
    x = torch.randn(1, 6, CHANNELS)
    assert not torch.equal(layer(x, x, x), layer(x, x, x))
    layer.eval()
    assert torch.equal(layer(x, x, x), layer(x, x, x))


def test_rows_that_forbid_everything_are_freed() -> None:
    rows = torch.tensor([[True, True], [True, False], [False, False]])
    assert free_empty_rows(rows).tolist() == [[False, False], [True, False], [False, False]]


def test_masks_forbid_their_background() -> None:
    masks = torch.full((1, 2, 1, 4, 4), -3.0)
    masks[0, 0, 0, :2] = 5.0
    forbidden = attention_mask(masks, (2, 2))
    assert forbidden.shape == (1, 2, 1, 2, 2)
    assert forbidden[0, 0, 0].tolist() == [[False, False], [True, True]]
    assert forbidden[0, 1].all()


def test_masks_of_clips_are_those_of_their_frames() -> None:
    embedding, maps = torch.randn(2, 3, CHANNELS), torch.randn(2, 4, CHANNELS, 5, 6)
    expected = torch.einsum("bqc,btchw->bqthw", embedding, maps)
    torch.testing.assert_close(mask_logits(embedding, maps), expected, rtol=0, atol=1e-4)


def test_scores_by_hand() -> None:
    logits, masks = torch.randn(2, 3, 5), torch.randn(2, 3, 2, 4, 4)
    scores = semantic_scores(MaskPrediction(logits, masks))
    classes = logits.softmax(-1)[..., :4]
    expected = torch.einsum("bqk,bqthw->btkhw", classes, masks.sigmoid())
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_the_last_prediction_alone_is_the_last_of_all() -> None:
    model, (levels, fine) = decoder().eval(), features(2)
    every = model(levels, fine, auxiliary=True)
    assert len(every) == 5
    (last,) = model(levels, fine)
    torch.testing.assert_close(last.class_logits, every[-1].class_logits, rtol=0, atol=1e-5)
    torch.testing.assert_close(last.masks, every[-1].masks, rtol=0, atol=1e-5)


def test_fast_attention_masks_give_the_same() -> None:
    levels, fine = features(4)
    for frames in (1, 2):
        exact = decoder(video=True).eval()(levels, fine, frames)[-1]
        fast = decoder(video=True, fast=True).eval()(levels, fine, frames)[-1]
        torch.testing.assert_close(fast.masks, exact.masks, rtol=0, atol=1e-4)
        torch.testing.assert_close(fast.class_logits, exact.class_logits, rtol=0, atol=1e-5)


def test_class_heads_of_inner_layers_are_skipped_where_not_wanted() -> None:
    model, (levels, fine) = decoder().eval(), features(1)
    calls = []
    model.class_embed.register_forward_hook(lambda *_: calls.append(1))
    model(levels, fine)
    assert len(calls) == 1
    model(levels, fine, auxiliary=True)
    assert len(calls) == 1 + 5


def test_clips_of_a_batch_do_not_see_each_other_and_frames_do() -> None:
    model, (levels, fine) = decoder(video=True).eval(), features(6)
    together = model(levels, fine, 3)[-1]
    assert together.masks.shape == (2, 7, 3, *SIZES[3])
    second = model([x[3:] for x in levels], fine[3:], 3)[-1]
    torch.testing.assert_close(together.masks[1:], second.masks, rtol=0, atol=1e-4)
    alone = model([x[3:4] for x in levels], fine[3:4], 1)[-1]
    assert (alone.masks[:, :, 0] - together.masks[1:, :, 0]).abs().max() > 1e-3


def test_gradients_reach_every_parameter() -> None:
    model, (levels, fine) = decoder(video=True), features(2)
    predictions = model(levels, fine, 2, auxiliary=True)
    sum(p.masks.square().mean() + p.class_logits.square().mean() for p in predictions).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


def test_bfloat16_autocast_stays_close() -> None:
    model, (levels, fine) = decoder().eval(), features(1)
    exact = model(levels, fine)[-1].class_logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(levels, fine)[-1].class_logits
    assert (rough.float() - exact).abs().max() < 0.2 * exact.abs().max()


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(InputError, match="30 channels cannot be split over 4 heads"):
        Attention(30, 4)
