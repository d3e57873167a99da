"""The BERT tokenizer of the Q-Former: uncased WordPiece plus `[DEC]`, as LAVIS adds it."""

import os
from collections import Counter
from pathlib import Path

import huggingface_hub
from transformers import BertTokenizer

from lavis.models.model_config import CONFIG_FOLDER
from sprc.core.errors import InputError, first_line
from sprc.core.files import read_bytes
from sprc.core.places import REPOSITORY
from sprc.core.reading import expanded

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")  # transformers would add missing ones, with other ids


def build_tokenizer(source: str, vocab_size: int) -> BertTokenizer:
    """A tokenizer whose ids fit `vocab_size` word embeddings.

    `source` is a vocabulary file, a folder that holds `vocab.txt`, or a name on the hub; a name is first looked for in
    `$SPRC_TOKENIZER`, in `models/<name>` and in the hub's cache. `[DEC]` is added unless the vocabulary has it: BERT's
    30,522 tokens and LAVIS's 30,523 give the same tokenizer.

    Raises InputError if nothing is found, or if the vocabulary does not fit the embeddings.
    """
    path = find_vocabulary(source)
    tokens = read_vocabulary(path)
    tokenizer = BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
    size, own = len(tokenizer), Path(source).suffix == ".txt"  # a model's own file may be smaller than its embeddings
    if size > vocab_size or (size < vocab_size and not own):
        raise InputError(
            f"{path} gives {size} tokens with [DEC], but the model has word embeddings for {vocab_size}: use the"
            f" vocabulary that it was trained with ({source}), or set qformer.vocab_size in the model's YAML file"
        )
    return tokenizer


def read_vocabulary(path: Path) -> list[str]:
    """The tokens of a vocabulary file, one a line. Raises InputError if it is no text, empty, or has a token twice."""
    fix = "download it again, or give the vocabulary that the model was trained with"
    try:
        text = read_bytes(path, fix).decode("utf-8-sig").replace("\r\n", "\n").rstrip("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8 ({error}): {fix}") from error
    tokens = text.split("\n") if text else []
    twice = next((token for token, count in Counter(tokens).items() if count > 1), None)
    if not tokens or twice is not None:
        problem = f"has the token {twice!r} twice" if tokens else "is empty"
        raise InputError(f"{path} {problem}: {fix}")
    missing = [token for token in SPECIAL if token not in tokens]
    if missing:
        raise InputError(f"{path} is no vocabulary of BERT, for it lacks {', '.join(missing)}: {fix}")
    return tokens


def find_vocabulary(source: str, download: bool = True) -> Path:
    """The vocabulary file that `source` names, on this machine or downloaded. Raises InputError if there is none."""
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
    given = os.environ.get("SPRC_TOKENIZER", "")
    folders = [given and expanded(given), REPOSITORY / "models" / source]
    own = expanded(source)
    candidates = [CONFIG_FOLDER / source, own, own / "vocab.txt"]
    candidates += [Path(folder) / "vocab.txt" for folder in folders if folder]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None and not Path(source).suffix and not Path(source).is_absolute():
        cached = huggingface_hub.try_to_load_from_cache(source, "vocab.txt")
        found = Path(cached) if isinstance(cached, str) else None
    return found
