"""The BERT tokenizer of the Q-Former: uncased WordPiece plus `[DEC]`, as LAVIS adds it."""

import os
from pathlib import Path

import huggingface_hub
from transformers import BertTokenizer

from lavis.common.errors import InputError, first_line
from lavis.models.model_config import CONFIG_FOLDER

REPOSITORY = Path(__file__).resolve().parents[3]


def build_tokenizer(source: str, vocab_size: int) -> BertTokenizer:
    """A tokenizer whose ids fit `vocab_size` word embeddings.

    `source` is a vocabulary file, a folder that holds `vocab.txt`, or a name on the hub; a name is first looked for in
    `$SPRC_TOKENIZER`, in `models/<name>` and in the hub's cache. `[DEC]` is added unless the vocabulary has it: BERT's
    30,522 tokens and LAVIS's 30,523 give the same tokenizer.

    Raises InputError where nothing is found, or the vocabulary is not the one that the embeddings are for.
    """
    path = find_vocabulary(source)
    tokens = path.read_text(encoding="utf-8").splitlines()
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    size, own = len(tokenizer), Path(source).suffix == ".txt"  # a model's own file may be smaller than its embeddings
    if size > vocab_size or (size < vocab_size and not own):
        raise InputError(
            f"{path} gives {size} tokens with [DEC], but the model has word embeddings for {vocab_size}: use the"
            f" vocabulary that it was trained with ({source}), or set qformer.vocab_size in the model's YAML file"
        )
    return tokenizer


def find_vocabulary(source: str, download: bool = True) -> Path:
    """The vocabulary file that `source` names, on this machine or downloaded. Raises InputError where there is none."""
    path = _local(source)
    if path is not None:
        return path
    reason = "not looked for on the hub"
    if download:
        try:
            return Path(huggingface_hub.hf_hub_download(source, "vocab.txt"))
        except Exception as error:  # the hub's client raises whatever its HTTP and xet libraries do
            reason = first_line(error)
    raise InputError(
        f"no tokenizer {source!r}: put its vocab.txt (https://huggingface.co/{source}, 232 kB) into"
        f" {REPOSITORY / 'models' / source}, or set SPRC_TOKENIZER to the folder that holds it ({reason})"
    )


def _local(source: str) -> Path | None:
    folders = [os.environ.get("SPRC_TOKENIZER", ""), REPOSITORY / "models" / source]
    candidates = [CONFIG_FOLDER / source, Path(source), Path(source) / "vocab.txt"]
    candidates += [Path(folder) / "vocab.txt" for folder in folders if folder]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None and not Path(source).suffix and not Path(source).is_absolute():
        cached = huggingface_hub.try_to_load_from_cache(source, "vocab.txt")
        found = Path(cached) if isinstance(cached, str) else None
    return found
