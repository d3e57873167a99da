"""The interface: a third benchmark is one class and one line in a table."""

import json
import shutil

import pytest

import blip_fine_tune_2
from sprc import benchmarks
from sprc.benchmarks.benchmark import Benchmark, Preset, RetrievalTask, Validation
from sprc.benchmarks.cirr import CIRR
from sprc.core.errors import InputError
from sprc.data.image_set import ImageSet
from sprc.data.triplets import Query


class Shapes(Benchmark):
    """A benchmark of a test: one JSON file of triplets over a folder of images."""

    name = "Shapes"
    preset = Preset(
        "shapes", "found", "best.pt", lambda epochs: {"epochs": epochs, "pct_start": 0.1}, 1, 1e-3, 0.0, 0.0
    )
    protocols = {"all": "every image"}  # noqa: RUF012
    default_root = None

    def annotation_files(self):
        return [self.root / "triplets.json"]

    def training_images(self, preprocess):
        entries = json.loads((self.root / "triplets.json").read_text())
        paths = {path.stem: path.name for path in sorted(self.root.glob("*.png"))}
        return ImageSet("Shapes", self.root, paths, preprocess), [Query(r, c, (t,)) for r, t, c in entries]

    def validation(self, preprocess):
        images, queries = self.training_images(preprocess)
        task = RetrievalTask(
            images, queries, [q.caption for q in queries], lambda scores: {"found": float(len(scores))}
        )
        return Validation({"all": task}, lambda metrics: metrics["all"])


@pytest.fixture
def shapes(demo, tmp_path):
    benchmark = CIRR(demo)
    paths = benchmark.image_paths("train")
    queries = benchmark.queries("train", paths)[:8]
    folder = tmp_path / "shapes"
    folder.mkdir()
    for name in {name for query in queries for name in (query.reference, query.target)}:
        shutil.copy(demo / paths[name], folder / f"{name}.png")
    entries = [[query.reference, query.target, query.caption] for query in queries]
    (folder / "triplets.json").write_text(json.dumps(entries))
    return folder


def test_a_third_benchmark_trains_and_validates(shapes, small_yaml, tmp_path, monkeypatch):
    monkeypatch.setitem(benchmarks.BENCHMARKS, "Shapes", (__name__, "Shapes"))
    flags = ["--dataset", "shapes", "--data-path", str(shapes), "--backbone", small_yaml, "--device", "cpu"]
    flags += ["--batch-size", "4", "--num-workers", "0", "--save-best", "--output-folder", str(tmp_path / "models")]
    best = blip_fine_tune_2.main(flags)
    assert (best.monitor, best.metrics) == ("found", {"found": 8.0})
    (folder,) = (tmp_path / "models").iterdir()
    assert folder.name.startswith("clip_finetuned_on_shapes_")
    assert (folder / "saved_models" / "best.pt").is_file()
    assert "triplets.json" in json.loads((folder / "training_hyperparameters.json").read_text())["inputs"]


def test_an_unknown_benchmark_names_the_known_ones():
    with pytest.raises(InputError, match=r"'imagenet' .*`dataset` CIRR or FashionIQ"):
        benchmarks.find_benchmark("imagenet")


def test_a_benchmark_without_a_test_server_says_so(shapes):
    with pytest.raises(InputError, match="Shapes has no test server"):
        Shapes(shapes).test_task(None)
