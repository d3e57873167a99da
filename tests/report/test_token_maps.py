"""The heat map of an image is the attention of the token that gives it its score."""

import numpy as np
import pytest
import torch

from lavis.models import load_model_and_preprocess
from sprc.benchmarks.cirr import CIRR
from sprc.core.runtime import choose_runtime
from sprc.data.preprocess import targetpad_transform
from sprc.report.token_maps import heat_maps, winning_token_maps
from sprc.retrieval.evaluation import Evaluator
from sprc.retrieval.options import Scoring


@pytest.fixture
def evaluator(small_yaml):
    torch.manual_seed(0)
    model, _, texts = load_model_and_preprocess("blip2_cir_align_prompt", small_yaml, is_eval=True)
    return Evaluator(model, texts["eval"], Scoring(4, 0), choose_runtime("cpu"))


def test_the_token_of_the_largest_cosine_wins(evaluator):
    model, generator = evaluator.model, torch.Generator().manual_seed(2)
    with torch.no_grad():
        tokens, embeds = model.extract_target_features(torch.randn(5, 3, 56, 56, generator=generator))
        query = model.extract_query_features(embeds[:1], ["make it red"])[0]
        maps = winning_token_maps(model, query, tokens, embeds)
        for image in range(5):
            cosines = [float(token @ query) for token in tokens[image]]
            expected = model.token_attention(embeds[image : image + 1])[0, cosines.index(max(cosines))]
            torch.testing.assert_close(maps[image], expected, atol=1e-6, rtol=1e-4)


def test_maps_of_a_gallery_are_those_of_its_scores(evaluator, demo):
    preprocess = targetpad_transform(1.25, 56)
    (task,) = CIRR(demo).validation(preprocess).tasks.values()
    names = [*task.gallery.names[:5], task.queries[3].reference, task.gallery.names[2]]  # one twice
    maps = heat_maps(evaluator, preprocess, task, 3, names)
    assert set(maps) == set(names)
    model, scores = evaluator.model, evaluator.score(task)[3]
    with torch.no_grad():
        _, reference = model.extract_target_features(task.gallery.load_image(task.queries[3].reference)[None])
        query = model.extract_query_features(reference, [evaluator.process_caption(task.sentences[3])])[0]
        for name in names:
            tokens, embeds = model.extract_target_features(task.gallery.load_image(name)[None])
            winner = (tokens[0] @ query).argmax()
            expected = model.token_attention(embeds)[0, winner].numpy()
            np.testing.assert_allclose(maps[name].values, expected, atol=1e-6)
            assert maps[name].preprocess is preprocess
            score = float((tokens[0] @ query).max())
            assert score == pytest.approx(float(scores[task.gallery.index_of[name]]), abs=1e-5)
