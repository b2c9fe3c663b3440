"""Texts and what models of transformers make of them: corpora, tasks with their losses, tokenizers."""
