"""A sentence of a user, as the model will read it: what it cannot read is said before the search."""

import logging
from collections.abc import Callable

from lavis.models import Blip2QformerCirAlignPrompt
from sprc.core.errors import InputError, shown
from sprc.data.image_files import is_text

logger = logging.getLogger(__name__)

SPECIAL_TOKENS = 2  # [CLS] and [SEP]
MOST_CHARACTERS = 40  # of a word in a message


def readable_sentence(text: str, process: Callable[[str], str], model: Blip2QformerCirAlignPrompt) -> str:
    """The processed sentence. The log says which words the vocabulary lacks, and if the end is not read.

    Raises InputError for a sentence that is empty, or of whose words the vocabulary has none.
    """
    if not is_text(text):
        raise InputError(f"the sentence {text[:80]!a} is not valid UTF-8: write `text` again")
    sentence = process(text)
    if not sentence:
        raise InputError("the sentence is empty: write in `text` what is to be different")
    assert model.tokenizer is not None
    unknown = [word for word in sentence.split() if model.tokenizer.unk_token in model.tokenizer.tokenize(word)]
    if len(unknown) == len(sentence.split()):
        raise InputError(f"the model knows no word of {shown(text)}: write the sentence in its language, English")
    if unknown:
        words = ", ".join(word[:MOST_CHARACTERS] for word in unknown)
        logger.warning(f"the model does not know {words}: the rest of the sentence counts")
    count, most = len(model.tokenizer.tokenize(sentence)), model.config.max_txt_len - SPECIAL_TOKENS
    if count > most:
        logger.warning(f"the sentence has {count} tokens, of which the model reads the first {most}: shorten it")
    return sentence
