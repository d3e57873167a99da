"""Fixtures that several tests share."""

import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings
from paths import REPOSITORY, SHARED

from sprc.core.logs import show_logs

if TYPE_CHECKING:
    from warm import WarmProcess

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need a network, or find one
torch.set_num_threads(1)  # the suite runs in several processes
settings.register_profile("project", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def shown_logs() -> None:
    """A test that calls a script's `main` sees on stdout what the script shows, as `run_main` has it."""
    show_logs()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The project's shared data beside the repository; a user's checkout does not have it."""
    if not (SHARED / "cirr").is_dir():
        pytest.skip("the shared data folder is not beside this repository")
    return SHARED


@pytest.fixture(scope="session")
def recorded() -> Path:
    """Numbers recorded from upstream: all of them where they are at hand, else the part that the repository holds."""
    whole = SHARED / "reference"
    return whole if whole.is_dir() else REPOSITORY / "tests" / "reference"


@pytest.fixture(scope="session", params=["vit_g_tiny", "vit_l_tiny"])
def reference_dir(request, recorded) -> Path:
    """A folder of upstream's numbers for one model: `$SPRC_REFERENCE_DIR`, or those recorded for EVA-g and ViT-L."""
    given = os.environ.get("SPRC_REFERENCE_DIR")
    if given and request.param == "vit_l_tiny":
        pytest.skip("SPRC_REFERENCE_DIR names one folder")
    folder = Path(given).resolve() if given else recorded / request.param
    if not folder.is_dir():
        pytest.skip(f"the numbers recorded for {request.param} are in the shared data folder alone")
    return folder


@pytest.fixture(scope="session")
def reference(reference_dir):
    """`upstream_reference.Reference` of `reference_dir`."""
    from upstream_reference import load_reference

    return load_reference(reference_dir)


SMALL_MODEL = """
vision: {encoder: eva_clip_g, image_size: 56, patch_size: 14, width: 32, depth: 1, heads: 2, mlp_ratio: 2.0, seed: 1}
qformer: {hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 64, vocab_size: 1024,
          num_query_token: 4, initializer_range: 0.1}
embed_dim: 16
tokenizer: tiny_vocab.txt
"""


@pytest.fixture(scope="session")
def small_yaml(tmp_path_factory) -> str:
    """The path of a model configuration that is quick to run: 56 px input, 4 query tokens, dropout on."""
    path = tmp_path_factory.mktemp("model") / "small.yaml"
    path.write_text(SMALL_MODEL)
    return str(path)


@pytest.fixture(scope="session")
def still_yaml(tmp_path_factory) -> str:
    """The small model without dropout."""
    path = tmp_path_factory.mktemp("model") / "still.yaml"
    path.write_text(SMALL_MODEL.replace("initializer_range", "dropout: 0.0, initializer_range"))
    return str(path)


@pytest.fixture(scope="session")
def demo(tmp_path_factory) -> Path:
    """A demo dataset of 24 training, 18 validation and 60 test images. Read only."""
    from sprc.demo.dataset import DemoSettings, make_demo_dataset

    folder = tmp_path_factory.mktemp("demo")
    settings = DemoSettings(24, 40, val_images=18, val_triplets=30, test_images=60, test_triplets=20, seed=3)
    make_demo_dataset(folder, settings)
    return folder


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """A function from a size, `4m`, to the folder of a file system of its own that has no more space."""
    mounted = []

    def mount(size: str) -> Path:
        folder = tmp_path / f"disk-{len(mounted)}"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("a file system can be mounted by root alone")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def warm(tmp_path_factory) -> Iterator[Callable[..., "WarmProcess"]]:
    """A function from a script and its flags to a process that runs it (`warm.WarmProcess`)."""
    from warm import WarmProcess

    started = []

    def start(*words: object, cwd: Path | str = REPOSITORY, **environ: str) -> WarmProcess:
        folder = tmp_path_factory.mktemp("warm")
        started.append(WarmProcess([str(word) for word in words], folder, Path(cwd), environ))
        return started[-1]

    yield start
    for process in started:
        process.end()


@pytest.fixture
def warm_run(warm) -> Callable[..., subprocess.CompletedProcess]:
    """What stands in for `subprocess.run` of a Python script; a file given for stdout gets all that it prints."""

    def run(command: list[str], env: dict | None = None, stdout=None, **_unused) -> subprocess.CompletedProcess:
        ended = warm(*command[1:], **(env or {})).finished()
        if hasattr(stdout, "write"):
            stdout.write((ended.stdout + ended.stderr).encode())
        return ended

    return run


@pytest.fixture
def demo_copy(demo, tmp_path) -> Path:
    """A demo dataset that a test may break."""
    return shutil.copytree(demo, tmp_path / "demo")


@pytest.fixture
def server():
    """(base URL of a server of `file_server.CONTENT`, the handler's class to set up)."""
    from file_server import FileHandler

    handler = type("Handler", (FileHandler,), {"requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}/", handler
        running.shutdown()
