"""Evaluate a checkpoint from its configuration: data is checked first, then the model is loaded."""

from pathlib import Path

from sprc.benchmarks.benchmark import Metrics, RetrievalTask, Validation
from sprc.core.machine_faults import explained
from sprc.core.runtime import choose_runtime
from sprc.data.feature_cache_build import use_feature_cache
from sprc.data.image_check import check_images
from sprc.data.image_set import ImageSet
from sprc.retrieval.evaluation import Evaluator
from sprc.retrieval.loading import load_weights, preprocess_of
from sprc.retrieval.options import EvaluationConfig


def validate(config: EvaluationConfig) -> tuple[Validation, Metrics]:
    """Rank the validation split with a checkpoint -> what was ranked, and its metrics in percent.

    Raises InputError for a file that is missing or wrong, and if memory runs out.
    """
    with explained(memory_fix(config)):
        validation = open_validation(config)
        return validation, load_evaluator(config, validation.galleries).evaluate(validation)


def submit(config: EvaluationConfig, folder: Path) -> tuple[RetrievalTask, list[Path]]:
    """Write the files for the benchmark's test server into a folder, and check them -> the task, and their paths.

    Raises InputError as `validate`, and for a file that cannot be written.
    """
    with explained(memory_fix(config)):
        task = config.benchmark.test_task(preprocess_of(config)).with_boxes(config.boxes)
        scores = load_evaluator(config, [task.gallery]).score(task)
        return task, config.benchmark.write_submission(task, scores, folder / config.blip_model_name)


def open_validation(config: EvaluationConfig) -> Validation:
    """What a configuration ranks, with the boxes that it names. Raises InputError for a missing or wrong file."""
    return config.benchmark.validation(preprocess_of(config)).with_boxes(config.boxes)


def load_evaluator(config: EvaluationConfig, galleries: list[ImageSet]) -> Evaluator:
    """The checkpoint's model in eval mode, once the images of all galleries are checked; with their features cached if
    the configuration says so.
    """
    check_images(*galleries)
    runtime = choose_runtime(config.device, config.precision)
    model, process_caption = load_weights(config, config.model_path, runtime.device)
    use_feature_cache(config, model, runtime.device, *galleries)
    return Evaluator(model, process_caption, config.scoring, runtime)


def memory_fix(config: EvaluationConfig) -> str:
    """What to say if an evaluation's memory runs out."""
    return f"{config.batch_size} images at a time are too much for the memory: lower `batch_size`"
