"""Where weights and vocabulary are looked for, and in which order."""

import hashlib
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from file_server import CONTENT
from huggingface_hub import constants

from lavis.models import downloads, load_model, weight_sources
from lavis.models.model_config import load_config
from lavis.models.tokenizer import build_tokenizer, find_vocabulary
from lavis.models.weight_sources import WeightFiles, check_blob, find_weights, how_to_get
from sprc.core.errors import InputError


@pytest.fixture
def places(tmp_path, monkeypatch) -> tuple[Path, Path]:
    """(`models/weights`, LAVIS's cache folder) of a machine of its own, without environment variables and hub."""
    for name in ("SPRC_WEIGHTS", "SPRC_TOKENIZER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(weight_sources, "REPOSITORY", tmp_path)
    monkeypatch.setattr("lavis.models.tokenizer.REPOSITORY", tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "torch" / "hub"))
    monkeypatch.setattr(weight_sources.huggingface_hub, "try_to_load_from_cache", lambda repository, name: None)
    folders = weight_sources.weight_folders()
    for folder in folders:
        folder.mkdir(parents=True)
    return tuple(folders)


def put(path: Path, **content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def put_qformer(path: Path) -> Path:
    return put(path, model={"query_tokens": torch.zeros(1)})


def put_whole(path: Path) -> Path:
    return put(path, Blip2QformerCirAlignPrompt={"visual_encoder.cls_token": torch.zeros(1)})


def test_a_backbone_without_published_weights_starts_at_random(places, monkeypatch):
    monkeypatch.setenv("SPRC_WEIGHTS", "elsewhere.pt")
    tiny = load_config("tiny")
    assert find_weights(None, tiny) is None
    assert find_weights("random", load_config("pretrain")) is None
    given = put_whole(places[0] / "given.pt")
    assert find_weights(str(given), tiny) == WeightFiles(given)


def test_the_order_of_places(places, monkeypatch, tmp_path):
    pretrain, (own, lavis_cache) = load_config("pretrain"), places
    with pytest.raises(InputError, match="not on this machine"):
        find_weights(None, pretrain)
    hub = tmp_path / "hub"
    put(hub / "config.json")
    put(hub / "model.safetensors")
    (hub / "model.safetensors").unlink()
    put(hub / "model.safetensors", Blip2QformerCirAlignPrompt={"visual_encoder.cls_token": torch.zeros(1)})
    monkeypatch.setattr(
        weight_sources.huggingface_hub, "try_to_load_from_cache", lambda repository, name: str(hub / name)
    )
    monkeypatch.setattr(weight_sources, "read_weights", lambda path: type("W", (), {"holds_vision": path == hub}))
    assert find_weights(None, pretrain) == WeightFiles(hub)
    monkeypatch.undo()
    monkeypatch.setattr(weight_sources, "weight_folders", lambda: list(places))

    vision = put(lavis_cache / "eva_vit_g.pth")
    cached = put_qformer(lavis_cache / "blip2_pretrained.pth")
    assert find_weights(None, pretrain) == WeightFiles(cached, vision)
    nearer = put_qformer(own / "blip2_pretrained.pth")
    assert find_weights(None, pretrain) == WeightFiles(nearer, vision)
    beside = put(own / "eva_vit_g.pth")
    assert find_weights(None, pretrain) == WeightFiles(nearer, beside)
    checkpoint = put_whole(own / "sprc.pt")
    assert find_weights(None, pretrain) == WeightFiles(checkpoint)
    put_whole(own / "another.pt")
    with pytest.raises(InputError, match=r"holds 2 checkpoints \(another.pt, sprc.pt\)"):
        find_weights(None, pretrain)
    monkeypatch.setenv("SPRC_WEIGHTS", str(checkpoint))
    assert find_weights(None, pretrain) == WeightFiles(checkpoint)
    assert find_weights(str(lavis_cache), pretrain) == WeightFiles(cached, vision)
    with pytest.raises(InputError, match="no weights at nowhere"):
        find_weights("nowhere.pt", pretrain)


def test_one_message_lists_files_sizes_sources_and_places(places):
    for backbone, names in (("pretrain", ("blip2_pretrained.pth", "eva_vit_g.pth", "Salesforce/blip2-itm-vit-g")),
                            ("pretrain_vitL", ("blip2_pretrained_vitL.pth", "clip_vit_L.pth"))):  # fmt: skip
        with pytest.raises(InputError) as error:
            load_model("blip2_cir_align_prompt", backbone)
        said = str(error.value)
        assert said == how_to_get(load_config(backbone))
        for part in (*names, "GB", "https://storage.googleapis.com", *map(str, places), "`weights`", "SPRC_WEIGHTS"):
            assert part in said, part
    assert "huggingface" not in said


class ProxyError(Exception):
    """As the hub client's HTTP library has them: no OSError."""


@pytest.mark.parametrize("kind", [ConnectionError, ProxyError])
def test_a_missing_network_is_no_traceback(places, monkeypatch, kind):
    refuse = Mock(side_effect=kind("403 Forbidden"))
    monkeypatch.setattr(downloads, "urlopen", Mock(side_effect=ConnectionError("no route to host")))
    monkeypatch.setattr(weight_sources.huggingface_hub, "snapshot_download", refuse)
    monkeypatch.setattr(weight_sources.huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(InputError, match=r"no tokenizer 'bert-base-uncased'.*\(403 Forbidden\)"):
        find_vocabulary("bert-base-uncased")
    with pytest.raises(InputError, match="not on this machine"):
        find_weights(None, load_config("pretrain"))
    put_qformer(places[0] / "blip2_pretrained.pth")
    with pytest.raises(InputError, match="holds no vision encoder"):
        find_weights(None, load_config("pretrain"))


def test_published_files_are_downloaded_to_lavis_cache(server, places, monkeypatch):
    url, _ = server
    monkeypatch.setattr(weight_sources, "LAVIS_URL", url)
    monkeypatch.setattr(weight_sources, "read_weights", lambda path: type("W", (), {"holds_vision": False}))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    found = find_weights(None, load_config("pretrain_vitL"))
    assert found == WeightFiles(places[1] / "blip2_pretrained_vitL.pth", places[1] / "clip_vit_L.pth")
    assert found.main.read_bytes() == CONTENT


def test_a_damaged_file_of_the_hub_is_removed(tmp_path):
    name = hashlib.sha256(b"right").hexdigest()
    (tmp_path / name).write_bytes(b"right")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / name)
    check_blob(tmp_path / "model.safetensors")
    (tmp_path / name).write_bytes(b"wrong")
    with pytest.raises(InputError, match="damaged"):
        check_blob(tmp_path / "model.safetensors")
    assert not (tmp_path / name).exists()


# --- the vocabulary ---------------------------------------------------------------------------------------------------

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "##s"]


def write_vocabulary(folder: Path, words: list[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    return folder / "vocab.txt"


def test_the_vocabulary_is_looked_for_here_first(places, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"vocab\.txt .*232 kB.*models/bert-base-uncased"):
        find_vocabulary("bert-base-uncased")
    cached = write_vocabulary(tmp_path / "cache", WORDS)
    monkeypatch.setattr(weight_sources.huggingface_hub, "try_to_load_from_cache", lambda source, name: str(cached))
    assert find_vocabulary("bert-base-uncased") == cached
    own = write_vocabulary(tmp_path / "models" / "bert-base-uncased", WORDS)
    assert find_vocabulary("bert-base-uncased") == own
    named = write_vocabulary(tmp_path / "named", WORDS)
    monkeypatch.setenv("SPRC_TOKENIZER", str(named.parent))
    assert find_vocabulary("bert-base-uncased") == named


@pytest.mark.parametrize("words", [WORDS, [*WORDS, "[DEC]"]], ids=["as BERT", "with [DEC]"])
def test_dec_is_added_where_it_is_not(places, tmp_path, words):
    write_vocabulary(tmp_path / "models" / "bert-base-uncased", words)
    tokenizer = build_tokenizer("bert-base-uncased", len(WORDS) + 1)
    assert len(tokenizer) == len(WORDS) + 1
    assert tokenizer.convert_tokens_to_ids("[DEC]") == len(WORDS)
    assert tokenizer("Reds [DEC]").input_ids == [2, 5, 7, 8, 3]


@pytest.mark.parametrize("vocab_size", [len(WORDS), len(WORDS) + 2])
def test_another_vocabulary_is_refused(places, tmp_path, vocab_size):
    """A smaller vocabulary gives ids too, of other words."""
    path = write_vocabulary(tmp_path / "models" / "bert-base-uncased", WORDS)
    with pytest.raises(InputError, match=f"gives {len(WORDS) + 1} tokens") as error:
        build_tokenizer("bert-base-uncased", vocab_size)
    assert str(path) in str(error.value)


def test_the_tool_says_where_the_files_are(places, tmp_path, capsys):
    import get_weights

    write_vocabulary(tmp_path / "models" / "bert-base-uncased", WORDS)
    with pytest.raises(InputError, match="not on this machine"):
        get_weights.main(["--no-download"])
    checkpoint = put_whole(places[0] / "sprc.pt")
    get_weights.main(["--no-download"])
    assert capsys.readouterr().out.splitlines()[0] == f"weights: {checkpoint}"
