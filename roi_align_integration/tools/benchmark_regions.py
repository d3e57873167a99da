"""Do regions raise recall? Trains with each region objective, its controls and baselines, over paired seeds.

Without --data-path on generated scenes with a small model: objects before a cluttered background, as in photographs,
a frozen ViT, cached features, data and weights varying together with the seed. With it on CIRR. Every finished run is
appended to a CSV file, and what stands there is not run again, so that the table can be made over several sittings. A
run that was interrupted goes on where it was.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from threading import Lock

REPOSITORY = Path(__file__).resolve().parents[2]
TOOLS = REPOSITORY / "roi_align_integration" / "tools"
sys.path[:0] = [str(REPOSITORY / "src"), str(TOOLS)]

from sprc.core import interrupts  # noqa: E402

if __name__ == "__main__":
    interrupts.end_at_once()  # while the packages below load

from machine import machine_name  # noqa: E402
from make_demo_dataset import DemoSettings, make_demo_dataset  # noqa: E402
from region_arms import ARMS, WINNER, BoxSource, Weight, box_file_of, image_paths  # noqa: E402
from region_table import (  # noqa: E402
    METRICS,
    Row,
    against,
    append_rows,
    legend,
    longer_table,
    markdown,
    plot,
    read_rows,
    trials_table,
)

from sprc.core.command_line import HelpFormatter, non_negative_int, positive_int, run_main, user_path  # noqa: E402
from sprc.core.errors import InputError  # noqa: E402
from sprc.core.files import made_and_held, read_bytes, read_json, write_atomically  # noqa: E402
from sprc.core.launch import alone_environment  # noqa: E402
from sprc.core.reading import read_csv  # noqa: E402
from sprc.training.config import TrainConfig  # noqa: E402
from sprc.training.run_inputs import file_fingerprint  # noqa: E402

DATA = REPOSITORY / "roi_align_integration" / "data" / "benchmark_regions"
CSV = REPOSITORY / "roi_align_integration" / "docs" / "benchmark_regions.csv"
# Tuned on seeds that no reported run has.
REPORT_SEEDS, TUNE_SEEDS = tuple(range(8)), (100,)
LEARNING_RATES = (2e-3, 1e-3, 3e-3)
EPOCHS = {"tune": 85, "report": 85, "longer": 127, "quick": 61}
# SPRC knows so few triplets by heart before the end: more steps bring nothing.
DEMO = {
    "images": 4000, "triplets": 3000, "val_images": 240, "val_triplets": 4000, "test_images": 6, "test_triplets": 2,
}  # fmt: skip
SCENES = ("cluttered", "plain")  # difficulties; the first is that of the committed rows
WARMUP = 0.1
# Objective -> what it is set against in a table of its own.
CONTROLS = {
    WINNER: ["none", "both", "permuted", "whole", "grid"],
    "both": ["none", "both-permuted", "both-whole", "both-grid"],
}


@dataclass(frozen=True)
class Job:
    """One run: an arm with a setting and a seed. `stage` is report, tune, longer or quick."""

    stage: str
    arm: str
    seed: int
    learning_rate: float
    weight: Weight | None
    epochs: int

    @property
    def key(self) -> tuple:
        return self.stage, self.arm, self.seed, self.learning_rate, str(self.weight or "")

    @property
    def name(self) -> str:
        return "-".join(str(part).replace(" ", "_") for part in self.key if part != "")


def trials(arm: str) -> list[tuple[float, Weight | None]]:
    """The settings that an arm is tuned over, as many for every arm: learning rates, or weights of its region loss."""
    if ARMS[arm].objective is None:
        return [(rate, None) for rate in LEARNING_RATES]
    return [(LEARNING_RATES[0], weight) for weight in ARMS[arm].weights]


def chosen_setting(arm: str, rows: list[Row]) -> tuple[float, Weight | None]:
    """The trial of the best mean recall@1 at the last step of the tuning runs; the first where there are none."""

    def score(trial: tuple[float, Weight | None]) -> float:
        found = [r.recall_at1 for r in rows if r.stage == "tune" and r.arm == arm and r.step == r.steps
                 and r.setting == (trial[0], str(trial[1] or ""))]  # fmt: skip
        return sum(found) / len(found) if found else -1.0

    return max(trials(arm), key=score)


def plan(args: argparse.Namespace, rows: list[Row]) -> list[Job]:
    """The runs that are asked for and are not in the CSV file, seed by seed, so that a part of them is paired."""
    jobs = []
    for seed in args.seeds:
        for arm in args.arms:
            settings = trials(arm) if args.stage == "tune" else [chosen_setting(arm, rows)]
            if args.data_path is not None:
                settings = [(args.learning_rate, weight) for _, weight in settings]
            jobs += [Job(args.stage, arm, seed, *setting, args.num_epochs) for setting in settings]
    done = {row.key for row in rows if row.step == row.steps}
    return [job for job in jobs if job.key not in done]


class Demo:
    """Generated scenes: a dataset, its boxes and its feature cache for every seed."""

    most_between = 6  # epochs between validations, at most

    def __init__(self, args: argparse.Namespace):
        self.folder, self.device, self.difficulty = args.folder / "demo", args.device, args.difficulty

    def prepare(self, seed: int) -> None:
        """Make the dataset and the feature cache of a seed where they are not there."""
        make_demo_dataset(self.root(seed), DemoSettings(**DEMO, seed=seed, difficulty=self.difficulty))
        fill_cache(TrainConfig(**self.settings(seed)))

    def root(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}"

    def true_boxes(self, seed: int) -> Path:
        return self.root(seed) / "boxes" / "cirr_boxes_train.json"

    def settings(self, seed: int) -> dict:
        return {
            "dataset": "CIRR",
            "data_path": self.root(seed),
            "backbone": str(TOOLS / "benchmark_model.yaml"),
            "weights": "random",
            "batch_size": 64,
            "num_workers": 0,
            "feature_cache": str(self.folder / "features"),
            "device": self.device,
        }


class Cirr:
    """CIRR itself, or another dataset in its layout: one for all seeds, with upstream's settings."""

    most_between = 7

    def __init__(self, args: argparse.Namespace):
        self.args = args

    def prepare(self, seed: int) -> None:
        fill_cache(TrainConfig(**self.settings(seed)))

    def root(self, seed: int) -> Path:
        return self.args.data_path

    def true_boxes(self, seed: int) -> Path:
        return self.args.box_file

    def settings(self, seed: int) -> dict:
        return {
            "dataset": "CIRR",
            "data_path": self.args.data_path,
            "backbone": self.args.backbone,
            "weights": self.args.weights,
            "feature_cache": str(self.args.folder / "features"),
            "device": self.args.device,
            "batch_size": self.args.batch_size,
            "micro_batch": self.args.micro_batch,
            "num_workers": self.args.num_workers,
        }


def fill_cache(config: TrainConfig) -> None:
    """Build the feature cache before runs that read it at the same time."""
    import torch

    from lavis.models import load_model
    from sprc.benchmarks.dataset_catalog import open_galleries, open_triplets
    from sprc.core.runtime import choose_runtime
    from sprc.data.feature_cache_build import use_feature_cache
    from sprc.data.image_check import check_images
    from sprc.data.preprocess import build_preprocess

    torch.manual_seed(0)
    device = choose_runtime(config.device).device
    model = load_model(config.blip_model_name, config.backbone, is_eval=True, device=device, weights=config.weights)
    preprocess = build_preprocess(config.transform, config.target_ratio, model.config.vision.image_size)
    datasets = open_triplets(config, preprocess), *open_galleries(config, preprocess).values()
    check_images(*datasets)
    use_feature_cache(config, model, device, *datasets)


def validated_every(epochs: int, most: int) -> int:
    """The epochs between validations, up to `most`, with which both epoch 0 and the last one end in a validation."""
    return max(n for n in range(1, most + 1) if (epochs - 1) % n == 0)


def job_settings(job: Job, source: Demo | Cirr, folder: Path) -> dict:
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
    }
    if isinstance(source, Demo):
        settings |= {"schedule_epochs": job.epochs, "warmup": WARMUP}
    if box_file is not None:
        settings |= {"use_region_loss": True, "region_objective": arm.objective, "max_regions": arm.max_regions,
                     "box_file": box_file, "loss_region": job.weight.start,
                     "loss_region_until": job.weight.until}  # fmt: skip
    return settings


def train_job(folder: Path) -> None:
    """In a process of its own: train as `settings.json` in the folder says, or go on with it."""
    from sprc.training.resuming import find_run
    from sprc.training.run import run_training

    settings = read_json(folder / "settings.json", dict, "remove the folder", paths=True)["config"]
    paths = ("data_path", "output_folder", "box_file")
    config = TrainConfig(**settings | {name: Path(settings[name]) for name in paths if settings.get(name)})
    run_training(config, find_run(config))


def run_job(job: Job, source: Demo | Cirr, args: argparse.Namespace) -> list[Row]:
    """Train in a process of its own -> its rows. Raises InputError that names the log where it fails."""
    folder, start = args.folder / "runs" / job.name, time.perf_counter()
    settings = job_settings(job, source, folder)
    boxes = None if ARMS[job.arm].objective is None else file_fingerprint(source.true_boxes(job.seed))
    write_settings(folder / "settings.json", {"config": settings, "boxes": boxes})
    environment = alone_environment() | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // args.workers))}
    with (folder / "log.txt").open("ab") as log:
        command = [sys.executable, __file__, "--train-job", str(folder)]
        status = subprocess.run(command, env=environment, stdout=log, stderr=log).returncode
    if status:
        raise InputError(f"{job.name} failed, status {status}: see {folder / 'log.txt'}")
    return job_rows(job, settings, folder, time.perf_counter() - start)


def write_settings(path: Path, settings: dict) -> None:
    """Raises InputError where the folder is that of a run with other settings."""
    text = json.dumps(settings, default=str)
    if path.is_file() and read_bytes(path, "remove its folder") != text.encode():
        raise InputError(f"{path.parent} is of a run with other settings: remove it, or give another --folder")
    write_atomically(path, text)


def job_rows(job: Job, settings: dict, folder: Path, seconds: float) -> list[Row]:
    """A row for every validation of a finished run."""
    (run_folder,) = {path.parent for path in folder.glob("*/training_state.pt")}
    steps = steps_of_an_epoch(settings)
    validations = [row for _, row in read_csv(run_folder / "validation_metrics.csv", f"remove {folder}")]
    shared = {"stage": job.stage, "arm": job.arm, "seed": job.seed, "learning_rate": job.learning_rate}
    shared |= {"loss_region": str(job.weight or ""), "steps": job.epochs * steps, "seconds": round(seconds)}
    shared |= {"machine": machine_name(settings["device"]), "date": date.today().isoformat()}
    return [
        Row(**shared, step=(int(v["epoch"]) + 1) * steps, **{metric: round(float(v[metric]), 3) for metric in METRICS})
        for v in validations
    ]


def steps_of_an_epoch(settings: dict) -> int:
    captions = Path(settings["data_path"]) / "cirr" / "captions" / "cap.rc2.train.json"
    return len(read_json(captions, list, "download it again")) // TrainConfig(**settings).batch_size


def run_all(jobs: list[Job], source: Demo | Cirr, args: argparse.Namespace) -> None:
    """Run the jobs, `--workers` at a time, and append the rows of each as it ends."""
    lock, done = Lock(), []

    def run_one(job: Job) -> None:
        with made_and_held(args.folder / "runs" / job.name):
            rows = [row for row in read_rows(args.csv) if row.key == job.key]
            if not any(row.step == row.steps for row in rows):  # nor has another process since this one began
                rows = run_job(job, source, args)
                append_rows(args.csv, rows)
        with lock:
            done.append(job)
            last = rows[-1]
            print(f"{len(done)}/{len(jobs)} {job.name}: R@1 {last.recall_at1:.2f}, R@5 {last.recall_at5:.2f},"
                  f" Rsubset@1 {last.group_recall_at1:.2f}, {last.seconds:.0f} s", flush=True)  # fmt: skip

    for seed in dict.fromkeys(job.seed for job in jobs):
        source.prepare(seed)
    with ThreadPoolExecutor(args.workers) as pool:
        futures = [pool.submit(run_one, job) for job in jobs]
        try:
            for future in futures:
                future.result()
        except BaseException as error:
            print(f"{str(error) or 'interrupted'}; waiting for the runs under way", file=sys.stderr)
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def write_report(args: argparse.Namespace) -> None:
    """The tables and the plot of one stage's rows, on the screen and in files; of --tune and --longer tables alone."""
    everything = read_rows(args.csv)
    rows = [row for row in everything if row.stage == args.stage]
    if args.stage == "longer":
        return print(f"{longer_table(everything)}\n\n{markdown(rows)}\n\nrows {args.csv}")
    if args.stage == "tune":
        return print(f"{trials_table(rows)}\n\n{legend(rows)}\nrows {args.csv}")
    tables = [markdown(rows), *(against(rows, arm, controls) for arm, controls in CONTROLS.items()), legend(rows)]
    text = "\n\n".join(table for table in tables if table) + "\n"
    table, picture = args.folder / f"{args.stage}.md", args.csv.with_suffix(".png")
    write_atomically(table, text)
    drawn = find_spec("matplotlib") is not None
    if drawn:
        plot(rows, picture)
    plotted = f"plot {picture}" if drawn else "no plot without matplotlib: pip install matplotlib"
    return print(f"{text}\nrows {args.csv}\ntable {table}\n{plotted}")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], formatter_class=HelpFormatter)
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), help="rows of the table (default: all)")
    parser.add_argument("--seeds", nargs="+", type=int, help="paired seeds (default: 0 to 7; to tune 100)")
    stage = parser.add_mutually_exclusive_group()
    stage.add_argument("--tune", dest="stage", action="store_const", const="tune", help="try the settings of every arm")
    stage.add_argument("--longer", dest="stage", action="store_const", const="longer", help="half as many steps more")
    stage.add_argument(
        "--quick", dest="stage", action="store_const", const="quick", help="three arms, three seeds: 15 minutes"
    )
    parser.add_argument("--table", action="store_true", help="run nothing: the table and plot of what there is")
    where = f"{CSV.relative_to(REPOSITORY)}; of --quick, other scenes and CIRR in --folder"
    parser.add_argument("--csv", type=user_path, help=f"rows of finished runs (default: {where})")
    parser.add_argument("--difficulty", choices=SCENES, default=SCENES[0], help="scenes with or without clutter")
    parser.add_argument(
        "--folder", type=user_path, help="data, features and runs; kept (default: below roi_align_integration/data)"
    )
    parser.add_argument("--workers", type=positive_int, help="runs at a time (default: CPU cores, or 1 with CUDA)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    real, cirr = parser.add_argument_group("on CIRR"), TrainConfig(dataset="CIRR")
    real.add_argument("--data-path", type=user_path, help="folder of CIRR; without it the scenes are generated")
    real.add_argument("--box-file", type=user_path, help="boxes of its training images")
    real.add_argument("--backbone", default="pretrain", help="as in blip_fine_tune_2.py")
    real.add_argument("--weights", help="as in blip_fine_tune_2.py")
    real.add_argument("--num-epochs", type=positive_int, help="epochs of every run")
    real.add_argument("--batch-size", type=positive_int, default=cirr.batch_size, help="triplets in a step")
    real.add_argument("--micro-batch", type=positive_int, help="triplets of a step in memory at a time")
    real.add_argument(
        "--num-workers", type=non_negative_int, default=cirr.num_workers, help="processes that load images"
    )
    real.add_argument("--learning-rate", type=float, default=cirr.learning_rate, help="peak of the schedule")
    parser.add_argument("--train-job", type=user_path, help=argparse.SUPPRESS)  # in a process of its own
    return parser


def complete(args: argparse.Namespace) -> argparse.Namespace:
    """Fill in what depends on other flags. Raises InputError for flags that do not go together."""
    import torch

    args.stage = args.stage or "report"
    cuda = args.device.startswith("cuda") or (args.device == "auto" and torch.cuda.is_available())
    args.workers = args.workers or (1 if cuda else os.cpu_count() or 1)
    if (args.data_path is None) != (args.box_file is None):
        raise InputError("give --data-path and --box-file together, or neither for generated scenes")
    quick = args.stage == "quick"
    few = ["none", WINNER, "permuted"] if quick else ["none", WINNER] if args.stage == "longer" else list(ARMS)
    args.arms = args.arms or few
    args.seeds = args.seeds or (TUNE_SEEDS if args.stage == "tune" else REPORT_SEEDS[: 3 if quick else None])
    epochs = EPOCHS[args.stage] if args.data_path is None else TrainConfig(dataset="CIRR").num_epochs
    args.num_epochs = args.num_epochs or epochs
    scenes = args.difficulty if args.data_path is None else "cirr"
    args.folder = args.folder or DATA / scenes
    committed = scenes == SCENES[0] and not quick
    args.csv = args.csv or (CSV if committed else args.folder / "rows.csv")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run what is missing, and report. Raises InputError for wrong flags, a wrong CSV file, or a run that fails."""
    args = build_parser().parse_args(argv)
    if args.train_job:
        return train_job(args.train_job)
    args = complete(args)
    source = Demo(args) if args.data_path is None else Cirr(args)
    if not args.table:
        run_all(plan(args, read_rows(args.csv)), source, args)
    return write_report(args)


if __name__ == "__main__":
    run_main(main)
