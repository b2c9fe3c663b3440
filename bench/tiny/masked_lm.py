"""A pretrained encoder as a masked language model, to adapt it to a language."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, gelu, layer_norm

from bench.models.encoder import MAX_TOKENS, SentenceEncoder
from bench.models.precision import training_autocast

SHARE = 0.15  # of the tokens are to be guessed


class MaskedLM(nn.Module):
    """Hidden states to logits over the vocabulary.

    ``encoder`` holds the pretrained weights, ``head`` the new ones: a dense layer that starts as the identity. The
    output embedding is a frozen copy of the input's, so that only the input's can move.
    """

    output: Tensor

    def __init__(self, sentences: SentenceEncoder) -> None:
        super().__init__()
        self.sentences = sentences
        self.encoder = sentences.model
        embedding = self.encoder.get_input_embeddings().weight
        width = embedding.shape[1]
        self.head = nn.Linear(width, width)
        with torch.no_grad():
            self.head.weight.copy_(torch.eye(width))
            self.head.bias.zero_()
        self.register_buffer("output", embedding.detach().clone(), persistent=False)

    def loss(self, ids: Sequence[Sequence[int]], generator: torch.Generator) -> Tensor:
        """Cross-entropy of the tokens that are hidden: every one with the same chance, special ones never."""
        tokens = torch.tensor(ids)
        hidden = torch.rand(tokens.shape, generator=generator) < SHARE
        special = self.sentences.tokenizer.all_special_ids
        hidden &= ~torch.isin(tokens, torch.tensor(special))
        masked = tokens.masked_fill(hidden, self.sentences.tokenizer.mask_token_id)
        with training_autocast():
            states = self.encoder(masked).last_hidden_state[hidden]
            states = gelu(self.head(states))
            logits = layer_norm(states.float(), states.shape[-1:]) @ self.output.T
        return cross_entropy(logits.float(), tokens[hidden])


def windows(sentences: SentenceEncoder, texts: Sequence[str]) -> list[list[int]]:
    """All texts one after the other as token ids, cut into pieces of the encoder's length."""
    tokenizer = sentences.tokenizer
    flat = [
        token
        for ids in tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)[
            "input_ids"
        ]
        for token in ids
    ]
    inner = MAX_TOKENS - 2
    pieces: Iterator[list[int]] = (flat[at : at + inner] for at in range(0, len(flat) - inner + 1, inner))
    return [[tokenizer.cls_token_id, *piece, tokenizer.sep_token_id] for piece in pieces]
