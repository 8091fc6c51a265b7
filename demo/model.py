"""all-MiniLM-L6-v2, a sentence encoder, around given tensors. Imports torch and transformers: for workers only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel


def build(tensors: Mapping[str, torch.Tensor], directory: Path) -> Any:
    """The BertModel around `tensors`, which it uses as they are: nothing is copied. `directory` holds config.json."""
    config = BertConfig.from_pretrained(directory)
    with torch.device("meta"):
        model: Any = BertModel(config)
    result = model.load_state_dict(dict(tensors), strict=False, assign=True)
    # Older snapshots hold this constant too.
    unexpected = set(result.unexpected_keys) - {"embeddings.position_ids"}
    if result.missing_keys or unexpected:
        raise ValueError(f"not this model: missing {result.missing_keys}, unexpected {sorted(unexpected)}")
    # Constants that no file holds; on the meta device they have no values.
    positions = torch.arange(config.max_position_embeddings).expand((1, -1))
    model.embeddings.register_buffer("position_ids", positions, persistent=False)
    model.embeddings.register_buffer("token_type_ids", torch.zeros_like(positions), persistent=False)
    return model.eval()


def warm_up(directory: Path) -> None:
    """What libraries allocate at their first use, done now, so that it is not counted as the model's."""
    tokenizer(directory)
    config = BertConfig(hidden_size=384, num_hidden_layers=1, intermediate_size=1536, vocab_size=64)
    model: Any = BertModel(config)
    with torch.inference_mode():
        model.eval()(input_ids=torch.ones((2, 16), dtype=torch.long))


def tokenizer(directory: Path) -> Tokenizer:
    """The model's own tokenizer, padding to the longest sentence of a batch."""
    loaded: Tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    loaded.enable_truncation(256)
    loaded.enable_padding()
    return loaded


def embed(model: Any, words: Tokenizer, sentences: Sequence[str]) -> torch.Tensor:
    """Sentence embeddings, float32 [len(sentences), 384]: mean over tokens, then length 1, as the model's card says."""
    batch = words.encode_batch(list(sentences))
    ids = torch.tensor([e.ids for e in batch])
    mask = torch.tensor([e.attention_mask for e in batch])
    with torch.inference_mode():
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * weights).sum(1) / weights.sum(1), dim=1)
