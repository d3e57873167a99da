"""The BERT tokenizer of the Q-Former: uncased WordPiece plus `[DEC]`, as LAVIS adds it."""

import os
from pathlib import Path

from transformers import BertTokenizer

from lavis.common.errors import InputError
from lavis.models.model_config import CONFIG_FOLDER

REPOSITORY = Path(__file__).resolve().parents[3]


def build_tokenizer(source: str, vocab_size: int) -> BertTokenizer:
    """A tokenizer whose ids fit `vocab_size` word embeddings.

    `source` is a vocabulary file, a folder that holds `vocab.txt`, or a name on the hub; a name is first looked for in
    `$SPRC_TOKENIZER` and in `models/<name>`. Raises InputError where nothing is found or the sizes disagree.
    """
    tokenizer = _load(source)
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"tokenizer {source} has {len(tokenizer)} tokens with [DEC], but the model has word embeddings for"
            f" {vocab_size}: set qformer.vocab_size in the model's YAML file, or use the vocabulary it was trained with"
        )
    return tokenizer


def vocab_file(source: str) -> Path | None:
    """The local vocabulary file that `source` names, or None."""
    folders = [os.environ.get("SPRC_TOKENIZER", ""), REPOSITORY / "models" / source]
    candidates = [CONFIG_FOLDER / source, Path(source), Path(source) / "vocab.txt"]
    candidates += [Path(folder) / "vocab.txt" for folder in folders if folder]
    return next((path for path in candidates if path.is_file()), None)


def _load(source: str) -> BertTokenizer:
    path = vocab_file(source)
    if path is not None:
        tokens = path.read_text(encoding="utf-8").splitlines()
        return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})
    try:
        return BertTokenizer.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no tokenizer {source!r}: put its vocab.txt (https://huggingface.co/{source}, 232 kB) into"
            f" {REPOSITORY / 'models' / source}, or set SPRC_TOKENIZER to the folder that holds it ({error})"
        ) from error
