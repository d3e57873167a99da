"""A model's YAML file and its vocabulary: what is odd in them is named, with the entry; nothing in them is run."""

from pathlib import Path

import pytest

from lavis.models.model_config import config_path, load_config
from lavis.models.tokenizer import build_tokenizer, find_vocabulary, read_vocabulary
from sprc.core.errors import InputError

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue"]


@pytest.fixture
def edited(small_yaml, tmp_path):
    """A function that writes the small model's YAML with a text replaced, and returns its path."""

    def edit(old: str, new: str) -> str:
        text = Path(small_yaml).read_text()
        assert old in text
        (tmp_path / "m.yaml").write_text(text.replace(old, new))
        return str(tmp_path / "m.yaml")

    return edit


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("image_size: 56", "image_size: 0", "vision.image_size is 0; write a number that is at least 1"),
        ("image_size: 56", "image_size: -56", "vision.image_size is -56"),
        ("patch_size: 14", "patch_size: 0", "vision.patch_size is 0"),
        ("depth: 1", "depth: -1", "vision.depth is -1"),
        ("heads: 2, mlp", "heads: 0, mlp", "vision.heads is 0"),
        ("mlp_ratio: 2.0", "mlp_ratio: 0", "vision.mlp_ratio is 0; write a number that is above 0"),
        ("mlp_ratio: 2.0", "mlp_ratio: .nan", "vision.mlp_ratio is nan"),
        ("mlp_ratio: 2.0", "mlp_ratio: .inf", "vision.mlp_ratio is inf"),
        ("mlp_ratio: 2.0", "mlp_ratio: 1e3", r"'1e3'; write a value of type float \(YAML takes 1e3 for a text"),
        ("seed: 1", "seed: -1", "vision.seed is -1; write a number that is at least 0"),
        ("num_query_token: 4", "num_query_token: 0", "qformer.num_query_token is 0"),
        ("num_query_token: 4", "num_query_token: 4, dropout: 1.0", "dropout is 1.0; .* at least 0 and below 1"),
        ("num_query_token: 4", "num_query_token: 4, cross_attention_freq: 0", "cross_attention_freq is 0"),
        ("initializer_range: 0.1", "initializer_range: 0", "initializer_range is 0; .* above 0"),
        ("embed_dim: 16", "embed_dim: 0", "embed_dim is 0"),
        ("embed_dim: 16", "embed_dim: 16\nmax_txt_len: -1", "max_txt_len is -1"),
        ("embed_dim: 16", "embed_dim: 16\nembed_dim: 8", "not valid YAML: 'embed_dim' stands twice"),
        ("seed: 1", "seed: 1, seed: 2", "not valid YAML: 'seed' stands twice"),
        ("embed_dim: 16", "embed_dim: 16\nweights: ../../x.pth", "weights is '../../x.pth'; write the name of a file"),
        ("embed_dim: 16", "embed_dim: 16\nvision_weights: /x.pth", "vision_weights is '/x.pth'"),
        ("tokenizer: tiny_vocab.txt", r"tokenizer: 'C:\words.txt'", "tokenizer is 'C:.*write a file or folder, with /"),
        ("tokenizer: tiny_vocab.txt", "tokenizer: [1]", "tokenizer is"),
        ("embed_dim: 16", "embed_dim: !!python/object/apply:os.system ['touch marked']", "could not determine a const"),
    ],
)
def test_an_entry_that_cannot_be_is_named(edited, monkeypatch, tmp_path, old, new, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message) as caught:
        load_config(edited(old, new))
    assert "m.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "marked").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "not valid YAML"),
        (b"a: \x07", "not valid YAML"),
        (b"[" * 5000, "nested too deeply"),
        (b"? [1]\n: 2", "not valid YAML"),
        (b"a: 2020-99-99", "not valid YAML"),
        (b"", "should be a table of settings"),
    ],
)
def test_a_file_that_is_no_yaml(tmp_path, content, message):
    (tmp_path / "m.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_config(str(tmp_path / "m.yaml"))
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_and_a_home_folder(small_yaml, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "m.yaml").write_bytes(b"\xef\xbb\xbf" + Path(small_yaml).read_bytes())
    assert config_path("~/m.yaml") == tmp_path / "m.yaml"
    assert load_config("~/m.yaml") == load_config(small_yaml)


def test_a_vocabulary_beside_the_yaml_file(edited, tmp_path, monkeypatch):
    path = edited("tokenizer: tiny_vocab.txt", "tokenizer: words.txt")
    assert load_config(path).tokenizer == "words.txt"  # not there: a name
    (tmp_path / "words.txt").write_text("\n".join(TOKENS))
    monkeypatch.chdir("/")
    assert load_config(path).tokenizer == str(tmp_path / "words.txt")
    assert len(build_tokenizer(load_config(path).tokenizer, 1024)) == len(TOKENS) + 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (b"red\nblue\nred\n", "has the token 'red' twice"),
        (b"r\xffd\n", "is no text in UTF-8"),
        (b"[UNK]\n[CLS]\n[SEP]\nred\n", r"is no vocabulary of BERT, for it lacks \[PAD\], \[MASK\]"),
    ],
)
def test_a_vocabulary_that_is_none(tmp_path, content, message):
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(InputError, match=rf"vocab\.txt {message}.*: download it again"):
        read_vocabulary(tmp_path / "vocab.txt")


def test_vocabularies_with_a_mark_or_from_windows_are_read(tmp_path):
    tokens = [*TOKENS, "a\u2028b"]  # only line feeds part them, as in transformers
    (tmp_path / "vocab.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*tokens, ""]).encode())
    assert read_vocabulary(tmp_path / "vocab.txt") == tokens
    with pytest.raises(InputError, match=r"no file .*nowhere"):
        read_vocabulary(tmp_path / "nowhere")


def test_a_home_folder_in_the_vocabularys_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SPRC_TOKENIZER", "~/words")
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(TOKENS))
    assert find_vocabulary("some-name") == tmp_path / "words" / "vocab.txt"
