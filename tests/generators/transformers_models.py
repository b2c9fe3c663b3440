"""Folders of tiny transformers models with a tokenizer of whole words, and texts for them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch

WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "sat",
    "ran",
    "flew",
    "on",
    "over",
    "mat",
    "hill",
    "tree",
    "and",
    "then",
    "home",
    "good",
    "bad",
    "fine",
    "poor",
]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def save_tokenizer(folder: Path, *, framed: bool = True, mask: bool = True) -> None:
    """A tokenizer of `WORDS`, which puts [CLS] and [SEP] around a text if `framed`."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if framed:
        ends = [(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=ends)
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]"} | ({"mask_token": "[MASK]"} if mask else {})
    ends = {"cls_token": "[CLS]", "sep_token": "[SEP]"} if framed else {"eos_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names, **ends).save_pretrained(folder)


def save_bert(folder: Path, architecture: str = "BertForMaskedLM", **options: Any) -> Path:
    """A model of two layers of width 32, with dropout."""
    import transformers

    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32, initializer_range=0.2, **options,
    )  # fmt: skip
    getattr(transformers, architecture)(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def save_llama(folder: Path, *, tied: bool = False) -> Path:
    """A causal model of two layers of width 32."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(SPECIAL) + len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=32, bos_token_id=None, eos_token_id=3,
        tie_word_embeddings=tied, initializer_range=0.2,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder, framed=False, mask=False)
    return folder


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences that have something to be learned: what the animal does goes with it."""
    chance = random.Random(seed)
    ways = (("cat", "sat on", "mat"), ("dog", "ran over", "hill"), ("bird", "flew over", "tree"))
    return [
        " then ".join(
            f"the {animal} {does} the {place}"
            for animal, does, place in chance.choices(ways, k=chance.choice((1, 2, 6)))
        )
        for _ in range(count)
    ]


def save_texts(file: Path, count: int = 40) -> Path:
    """Documents with blank lines between them."""
    file.write_text("\n\n".join(sentences(count)) + "\n")
    return file


def save_labelled(file: Path, count: int = 40) -> Path:
    """Texts that say what they are."""
    chance = random.Random(1)
    rows = []
    for text in sentences(count):
        label = chance.choice(("good", "bad"))
        rows.append({"text": f"{text} {label}", "label": label})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
