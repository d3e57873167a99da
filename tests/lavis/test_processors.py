"""Captions and tokens against what upstream recorded."""

import json

import pytest
from PIL import Image

from lavis.models.tokenizer import build_tokenizer
from lavis.processors import BlipCaptionProcessor, BlipImageEvalProcessor
from sprc.core.errors import InputError


def test_captions_parity(recorded):
    cases = json.loads((recorded / "text.json").read_text())["caption_processor_eval"]
    assert len(cases) >= 10
    assert [BlipCaptionProcessor()(case["in"]) for case in cases] == [case["out"] for case in cases]


def test_tokens_parity(recorded):
    cases = json.loads((recorded / "text.json").read_text())["tokenizer"]
    tokenizer = build_tokenizer(str(recorded / "vit_g_tiny" / "vocab.txt"), 316)
    found = [tokenizer(case["in"], padding="max_length", truncation=True, max_length=32) for case in cases]
    assert [tokens["input_ids"] for tokens in found] == [case["input_ids"] for case in cases]
    assert [sum(tokens["attention_mask"]) for tokens in found] == [case["n_attended"] for case in cases]


def test_a_caption_that_is_no_text_is_named():
    with pytest.raises(InputError, match="not 5"):
        BlipCaptionProcessor()(5)


def test_a_vocabulary_too_large_for_the_model_is_refused():
    with pytest.raises(InputError, match=r"tokens with \[DEC\]"):
        build_tokenizer("tiny_vocab.txt", 100)


def test_a_missing_tokenizer_says_where_to_put_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match="SPRC_TOKENIZER"):
        build_tokenizer(str(tmp_path / "nowhere"), 30523)


def test_a_tokenizer_folder_is_found_by_variable(monkeypatch, tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nred\n")
    monkeypatch.setenv("SPRC_TOKENIZER", str(tmp_path))
    assert build_tokenizer("bert-base-uncased", 7)("red").input_ids == [2, 5, 3]


def test_image_processor_takes_any_mode_and_shape():
    assert BlipImageEvalProcessor(56)(Image.new("LA", (30, 91))).shape == (3, 56, 56)
