"""The runs of a comparison of region losses: each trains in a process of its own, and its rows go to the CSV file."""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from datetime import date
from pathlib import Path
from threading import Lock

from machine import machine_name
from region_arms import ARMS, BIAS, Arm, BoxSource, Weight, box_file_of, image_paths
from region_datasets import Source
from region_plan import Job
from region_table import METRICS, Row, append_rows, read_rows

from sprc.core.errors import InputError
from sprc.core.files import made_and_held, read_bytes, read_json, write_atomically
from sprc.core.launch import alone_environment
from sprc.core.reading import read_csv
from sprc.training.config import LAST_FILE, TrainConfig
from sprc.training.run_inputs import file_fingerprint

SEEN_FILE = "seen.json"  # the metrics of an arm that is `seen`
SCRIPT = Path(__file__).with_name("benchmark_regions.py")  # it takes --train-job


def validated_every(epochs: int, most: int) -> int:
    """The epochs between validations, up to `most`, with which both epoch 0 and the last one end in a validation."""
    return max(n for n in range(1, most + 1) if (epochs - 1) % n == 0)


def job_settings(job: Job, source: Source, folder: Path) -> dict:
    """The settings of a run, as keywords of `TrainConfig`."""
    arm, root = ARMS[job.arm], source.root(job.seed)
    folder.mkdir(parents=True, exist_ok=True)
    boxes = BoxSource(job.seed, image_paths(root))
    box_file = box_file_of(job.arm, source.true_boxes(job.seed), boxes, folder)
    settings = source.settings(job.seed) | {
        "validation_frequency": validated_every(job.epochs, source.most_between),
        "seed": job.seed,
        "num_epochs": job.epochs,
        "learning_rate": job.learning_rate,
        "blip_model_name": arm.model,
        "output_folder": folder,
        **arm.options,
    }
    settings |= source.schedule(job.epochs)
    if box_file is not None:
        settings |= {"box_file": box_file, "max_regions": arm.max_regions} | region_settings(arm, job.weight)
    return settings


def region_settings(arm: Arm, weight: Weight) -> dict:
    """What an arm does with its boxes."""
    if arm.objective == BIAS:
        return {"region_bias": weight.start, "region_bias_until": weight.until}
    return {"use_region_loss": True, "region_objective": arm.objective,
            "loss_region": weight.start, "loss_region_until": weight.until}  # fmt: skip


def warm_up_settings(job: Job, source: Source, settings: dict) -> dict:
    """The settings of the training before a run, whose arm has one: the run's own but for what `WarmUp` has."""
    warm_up = ARMS[job.arm].warm_up
    own = {"num_epochs": warm_up.epochs, "learning_rate": warm_up.faster * job.learning_rate,
           "validation_frequency": warm_up.epochs, "save_training": True,
           "output_folder": settings["output_folder"] / "warm_up"}  # fmt: skip
    if warm_up.objective is not None:
        own |= {"use_region_loss": True, "region_objective": warm_up.objective,
                "box_file": source.true_boxes(job.seed)}  # fmt: skip
    return settings | own | source.schedule(warm_up.epochs)


def train_job(folder: Path) -> None:
    """In a process of its own: train as `settings.json` in the folder says, or continue."""
    saved = read_json(folder / "settings.json", dict, "remove the folder", paths=True)
    config = saved["config"]
    if "warm_up" in saved:
        config |= {"weights": str(train(saved["warm_up"]) / "saved_models" / LAST_FILE)}
    run = train(config)
    if "seen" in saved:
        metrics = validate_seen(TrainConfig(**config), run, Path(saved["seen"]))
        write_atomically(folder / SEEN_FILE, json.dumps(metrics))


def validate_seen(config: TrainConfig, run: Path, box_file: Path) -> dict[str, float]:
    """The metrics of a run's last weights, with the boxes of the images that are ranked."""
    from sprc.retrieval.evaluate_checkpoint import validate
    from sprc.retrieval.options import EvaluationConfig

    shared = {field.name for field in fields(EvaluationConfig)} - {"box_file", "max_regions"}
    settings = {name: value for name, value in vars(config).items() if name in shared}
    return validate(EvaluationConfig(**settings, model_path=last_weights(config, run), box_file=box_file))[1]


def last_weights(config: TrainConfig, run: Path) -> Path:
    """A checkpoint of what a run ended with, made of its state if it kept none."""
    from lavis.models import load_model
    from lavis.models.checkpoint import save_model
    from sprc.training.run_state import read_state

    path = run / "saved_models" / LAST_FILE
    if not path.is_file():
        model = load_model(config.blip_model_name, config.backbone, weights=config.weights)
        model.load_state_dict(model.state_dict() | read_state(run)["model"])
        path.parent.mkdir(exist_ok=True)
        save_model(model, config.plan.num_epochs - 1, path)
    return path


def train(settings: dict) -> Path:
    """Train with these settings, or continue -> the run's folder."""
    from sprc.training.resuming import find_run
    from sprc.training.run import run_training

    config = TrainConfig(**settings)
    return run_training(config, find_run(config))[1]


def run_job(job: Job, source: Source, args: argparse.Namespace) -> list[Row]:
    """Train in a process of its own -> its rows. Raises InputError that names the log if it fails."""
    folder, start = args.folder / "runs" / job.name, time.perf_counter()
    trained = training_of(job)
    settings = job_settings(trained, source, args.folder / "runs" / trained.name)
    trainings = {"config": settings}
    if ARMS[job.arm].warm_up is not None:
        trainings["warm_up"] = warm_up_settings(job, source, settings)
    has_boxes = any("box_file" in training for training in trainings.values())
    boxes = file_fingerprint(source.true_boxes(job.seed)) if has_boxes else None
    if ARMS[job.arm].seen:
        trainings["seen"] = boxes_of_ranked(job, source, folder)
    write_settings(folder / "settings.json", trainings | {"boxes": boxes})
    environment = alone_environment() | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // args.workers))}
    with (folder / "log.txt").open("ab") as log:
        command = [sys.executable, str(SCRIPT), "--train-job", str(folder)]
        status = subprocess.run(command, env=environment, stdout=log, stderr=log).returncode
    if status:
        raise InputError(f"{job.name} failed, status {status}: see {folder / 'log.txt'}")
    return job_rows(job, settings, folder, time.perf_counter() - start)


def training_of(job: Job) -> Job:
    """The run whose weights a run has: its own, but for an arm that is `seen`."""
    arm = ARMS[job.arm]
    return replace(job, arm=arm.like) if arm.seen else job


def boxes_of_ranked(job: Job, source: Source, folder: Path) -> Path | None:
    """The box file of the images that an arm ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    boxes = BoxSource(job.seed, image_paths(source.root(job.seed), "val"))
    return box_file_of(job.arm, source.true_boxes(job.seed, "val"), boxes, folder)


def write_settings(path: Path, settings: dict) -> None:
    """Raises InputError if the folder is that of a run with other settings."""
    text = json.dumps(settings, default=str)
    if path.is_file() and read_bytes(path, "remove its folder") != text.encode():
        raise InputError(f"{path.parent} is of a run with other settings: remove it, or give another --folder")
    write_atomically(path, text)


def job_rows(job: Job, settings: dict, folder: Path, seconds: float) -> list[Row]:
    """A row for every validation of a finished run; of an arm that is `seen`, for the one with its boxes."""
    steps = steps_of_an_epoch(settings)
    validations = list(validations_of(job, folder))
    shared = {"stage": job.stage, "arm": job.arm, "seed": job.seed, "learning_rate": job.learning_rate}
    shared |= {"loss_region": str(job.weight or ""), "steps": job.epochs * steps, "seconds": round(seconds)}
    shared |= {"machine": machine_name(settings["device"]), "date": date.today().isoformat()}
    return [
        Row(**shared, step=(int(v["epoch"]) + 1) * steps, **{metric: round(float(v[metric]), 3) for metric in METRICS})
        for v in validations
    ]


def validations_of(job: Job, folder: Path) -> Iterator[dict]:
    """The epoch and the metrics of each."""
    fix = f"remove {folder}"
    if ARMS[job.arm].seen:
        yield read_json(folder / SEEN_FILE, dict, fix) | {"epoch": job.epochs - 1}
        return
    (run_folder,) = {path.parent for path in folder.glob("*/training_state.pt")}
    yield from (row for _, row in read_csv(run_folder / "validation_metrics.csv", fix))


def steps_of_an_epoch(settings: dict) -> int:
    captions = Path(settings["data_path"]) / "cirr" / "captions" / "cap.rc2.train.json"
    return len(read_json(captions, list, "download it again")) // TrainConfig(**settings).batch_size


def run_all(jobs: list[Job], source: Source, args: argparse.Namespace) -> None:
    """Run the jobs, `--workers` at a time, and append the rows of each as it ends.

    What has the weights of other runs comes after them.
    """
    lock, done = Lock(), []

    def run_one(job: Job) -> None:
        with made_and_held(args.folder / "runs" / training_of(job).name):
            rows = [row for row in read_rows(args.csv) if row.key == job.key]
            if not any(row.is_last for row in rows):  # nor has another process since this one began
                rows = run_job(job, source, args)
                append_rows(args.csv, rows)
        with lock:
            done.append(job)
            last = rows[-1]
            print(f"{len(done)}/{len(jobs)} {job.name}: R@1 {last.recall_at1:.2f}, R@5 {last.recall_at5:.2f},"
                  f" Rsubset@1 {last.group_recall_at1:.2f}, {last.seconds:.0f} s", flush=True)  # fmt: skip

    for seed in dict.fromkeys(job.seed for job in jobs):
        source.prepare(seed)
    for seen in (False, True):
        run_together(run_one, [job for job in jobs if ARMS[job.arm].seen == seen], args.workers)


def run_together(run_one: Callable[[Job], None], jobs: list[Job], workers: int) -> None:
    """Call a function for every job, so many at a time. After an error those under way end, and no other begins."""
    with ThreadPoolExecutor(workers) as pool:
        futures = [pool.submit(run_one, job) for job in jobs]
        try:
            for future in futures:
                future.result()
        except BaseException as error:
            print(f"{str(error) or 'interrupted'}; waiting for the runs under way", file=sys.stderr)
            pool.shutdown(wait=True, cancel_futures=True)
            raise
