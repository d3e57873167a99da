"""Where the model looks: of each image, the attention of the target token that gives it its score."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Subset

from lavis.models import Blip2QformerCirAlignPrompt
from sprc.benchmarks.benchmark import RetrievalTask
from sprc.data.batches import make_loader
from sprc.data.preprocess import Preprocess
from sprc.report.heat_maps import HeatMap
from sprc.retrieval.evaluation import Evaluator


def winning_token_maps(
    model: Blip2QformerCirAlignPrompt, query: Tensor, target_tokens: Tensor, image_embeds: Tensor
) -> Tensor:
    """Of N images, the attention of the token whose cosine with the query is the largest -> (N, g, g), float32.

    Takes a query feature (E,), and of the images the target tokens (N, Q, E) and the `ln_vision` output (N, P + 1, D),
    as `extract_query_features` and `extract_target_features` give them. Rows run from top to bottom of the input frame.
    """
    winners = (target_tokens.float() @ query.float()).argmax(dim=1)  # (N, Q, E) x (E,) -> (N, Q) -> (N,)
    attention = model.token_attention(image_embeds)  # (N, Q, g, g)
    return attention[torch.arange(len(winners), device=winners.device), winners]


@torch.no_grad()
def heat_maps(
    evaluator: Evaluator, preprocess: Preprocess, task: RetrievalTask, number: int, names: Sequence[str]
) -> dict[str, HeatMap]:
    """Name -> heat map of images of the gallery for query `number` of a task.

    The images pass the model once more. Raises InputError that names an image that cannot be read.
    """
    model, runtime, gallery = evaluator.model, evaluator.runtime, task.gallery
    reference = task.queries[number].reference
    wanted = [*dict.fromkeys([reference, *names])]
    images = Subset(gallery, [gallery.index_of[name] for name in wanted])
    parts = []
    with runtime.autocast(runtime.scoring):
        for _, loaded in make_loader(images, evaluator.scoring.batch_size, 0, runtime.device):
            parts.append(model.extract_target_features(gallery.on_device(loaded, runtime.device)))
        tokens, embeds = map(torch.cat, zip(*parts, strict=True))
        query = model.extract_query_features(embeds[:1], [evaluator.process_caption(task.sentences[number])])[0]
        maps = winning_token_maps(model, query, tokens, embeds).cpu().numpy()  # (N, g, g)
    found = {name: HeatMap(values, preprocess) for name, values in zip(wanted, maps, strict=True)}
    return {name: found[name] for name in names}
