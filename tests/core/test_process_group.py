"""Several processes on the CPU: the losses and gradients of one with the whole batch, and whole runs of two."""

import ipaddress
import os
import re
import signal
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from training_flags import command, rows_of, start_pair, training_flags, with_regions
from training_step import assert_same_step, gradients_of, make_model, make_samples, weights_of
from warm import warm_context

import blip_fine_tune_2
from lavis.models import load_model
from lavis.models.blip2_models.region import OBJECTIVES
from sprc.benchmarks.benchmark import RetrievalTask
from sprc.core.errors import InputError
from sprc.core.process_group import ALONE, World
from sprc.core.runtime import Runtime
from sprc.data.triplets import Query
from sprc.retrieval.evaluation import Evaluator
from sprc.retrieval.options import Scoring
from sprc.training.gradients import Gradients
from sprc.training.run_state import read_state

# Shards of five triplets, of unequal size: the second rank of the last one has a single image, which has no box.
SHARDS = {2: ([0, 1, 2], [3, 4]), 3: ([0, 2], [3, 4], [1])}
CASES = [(objective, micro_batch) for objective in (None, *OBJECTIVES) for micro_batch in (None, 1)]


def shard_of(samples: dict, rows: list[int]) -> dict:
    taken = {name: [value[row] for row in rows] for name, value in samples.items() if name != "statistics"}
    return {name: torch.stack(rows) if isinstance(rows[0], torch.Tensor) else rows for name, rows in taken.items()}


def run_rank(rank: int, size: int, folder: str, yaml: str) -> None:
    """One process: every case, the result of each in a file."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    world, results = World(rank, size), []
    for objective, micro_batch in CASES:
        model = make_model(yaml, objective)
        gradients = Gradients(model, micro_batch=micro_batch, world=world)
        losses = gradients(shard_of(make_samples(), SHARDS[size][rank]), weights_of(objective))
        results.append(({name: loss.detach() for name, loss in losses.items()}, gradients_of(model)))
    rows = torch.arange(3.0 * rank).view(rank, 3)  # none on rank 0
    told = {
        "gathered": world.gather(rows), "collected": world.collect(rank), "shared": world.share(f"from {rank}"),
        "largest": world.largest(rank, -rank),
    }  # fmt: skip
    torch.save((results, told), f"{folder}/rank-{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.integration
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_have_the_gradients_of_one_process_with_the_whole_batch(small_yaml, tmp_path, size):
    warm_context()
    mp.start_processes(run_rank, (size, str(tmp_path), small_yaml), nprocs=size, start_method="forkserver")
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(size)]
    order = [row for shard in SHARDS[size] for row in shard]
    for number, (objective, micro_batch) in enumerate(CASES):
        model = make_model(small_yaml, objective)
        losses = Gradients(model)(shard_of(make_samples(), order), weights_of(objective))
        print(f"{size} ranks, {objective}, micro-batch {micro_batch}: {losses}")
        for results, _ in ranks:
            assert_same_step(results[number], (losses, gradients_of(model)))
    for _, told in ranks:
        expected = torch.cat([torch.arange(3.0 * rank).view(rank, 3) for rank in range(size)])
        assert torch.equal(told["gathered"], expected)
        assert told["collected"] == list(range(size))
        assert told["shared"] == "from 0"
        assert told["largest"] == [size - 1, 0]


def evaluate_rank(rank: int, folder: str, yaml: str, size: int) -> None:
    """One process: the scores of every task of `retrieval_tasks`."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size)
    runtime = Runtime(torch.device("cpu"), torch.float32, world=World(rank, size))
    torch.save(scores_of(yaml, folder, runtime), f"{folder}/scores-{rank}.pt")
    dist.destroy_process_group()


def scores_of(yaml: str, folder: str, runtime: Runtime) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = load_model("blip2_cir_align_prompt", yaml)
    evaluator = Evaluator(model, str, Scoring(batch_size=3, num_workers=0, save_memory=True), runtime)
    return [evaluator.score(task) for task in retrieval_tasks()]


def retrieval_tasks() -> list[RetrievalTask]:
    """Galleries in which a rank of two has no reference at its places, and one in which it has no image at all."""
    generator = torch.Generator().manual_seed(1)
    images = [(f"image-{i}", torch.rand(3, 56, 56, generator=generator)) for i in range(6)]

    def task(count: int, references: list[int]) -> RetrievalTask:
        queries = [Query(images[i][0], "make it red") for i in references]
        return RetrievalTask(Gallery(images[:count]), queries, ["make it red"] * len(queries))

    return [task(6, [0, 2, 4, 2]), task(5, [1, 3]), task(1, [0]), task(6, [5])]


class Gallery(list):
    """Images as a dataset gives them."""

    def on_device(self, images: torch.Tensor, device: torch.device) -> torch.Tensor:
        return images.to(device)


@pytest.mark.integration
def test_a_rank_without_references_or_images_takes_part_in_an_evaluation(small_yaml, tmp_path):
    warm_context()
    mp.start_processes(evaluate_rank, (str(tmp_path), small_yaml, 2), nprocs=2, start_method="forkserver")
    expected = scores_of(small_yaml, str(tmp_path), Runtime(torch.device("cpu"), torch.float32))
    main, other = (torch.load(tmp_path / f"scores-{rank}.pt") for rank in (0, 1))
    for scores, found in zip(expected, main, strict=True):
        torch.testing.assert_close(found, scores, atol=1e-6, rtol=0)
    assert [tuple(scores.shape) for scores in other] == [(0, 6), (0, 5), (0, 1), (0, 6)]


def test_alone_everything_is_given_back():
    rows = torch.ones(2, 3)
    assert ALONE.is_main
    assert ALONE.gather(rows) is rows
    assert ALONE.rows_of_all({"query": rows}) == [{"query": rows}]
    assert (ALONE.collect(5), ALONE.share(6), ALONE.largest(7, 8)) == ([5], 6, [7, 8])


# --- whole runs -------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_two_processes_train_as_one_and_go_on(warm, demo, still_yaml, tmp_path):
    cache = {"feature_cache": tmp_path / "cache", "cache_precision": "fp32"}
    constant = {"loss_region": 0.5}  # the objective's own weight falls with the epochs, of which `two` has one at first
    settings = {"learning_rate": 1e-3, "save_best": True} | with_regions(demo) | constant
    blip_fine_tune_2.main(training_flags(demo, still_yaml, tmp_path / "one", num_epochs=2, **settings))
    flags = training_flags(demo, still_yaml, tmp_path / "two", batch_size=4, **settings, **cache)
    two, two_more = (
        [rank.finished() for rank in start_pair(warm, *flags, *more)]
        for more in ([], ["--num-epochs", "2", "--resume", "auto"])
    )
    for finished in (*two, *two_more):
        assert finished.returncode == 0, finished.stderr
    assert [rank.stdout.count("best epoch") for rank in two] == [1, 0]  # one rank speaks
    for name in ("train", "validation"):
        expected, found = (torch.tensor(rows_of(tmp_path / folder, name)) for folder in ("one", "two"))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    (model,) = tmp_path.glob("two/*/saved_models/*")
    assert model.name == "tuned_clip_arithmetic.pt"
    with pytest.raises(InputError, match="trained by 2 processes, and these are 1"):
        blip_fine_tune_2.main([*flags, "--num-epochs", "3", "--resume", "auto"])


def listening(pid: int) -> set[str]:
    """The addresses on which a process listens for connections."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            inodes |= set(re.findall(r"socket:\[(\d+)\]", os.readlink(link)))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if columns[3] == "0A" and columns[9] in inodes:
                found.add(address_of(columns[1].split(":")[0]))
    return found


def address_of(digits: str) -> str:
    """The kernel's form of an address, words in the machine's byte order -> its usual form."""
    words = [bytes.fromhex(digits[i : i + 8])[::-1] for i in range(0, len(digits), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


def test_listening_sockets_are_found():
    with socket.create_server(("127.0.0.1", 0)), socket.create_server(("0.0.0.0", 0)):
        assert {"127.0.0.1", "0.0.0.0"} <= listening(os.getpid())


@pytest.mark.integration
def test_a_rank_that_dies_ends_the_job(warm, demo, still_yaml, tmp_path):
    settings = {"batch_size": 4, "num_epochs": 1000, "learning_rate": 1e-3} | with_regions(demo)
    flags = training_flags(demo, still_yaml, tmp_path, **settings)
    job = warm(*command(*flags, processes=2))
    job.wait_for_line("epoch 0: group_recall")
    children = subprocess.run(["ps", "--ppid", str(job.pid), "-o", "pid="], capture_output=True, text=True, check=True)
    ranks = [int(pid) for pid in children.stdout.split()]
    assert {address for rank in ranks for address in listening(rank)} <= {"127.0.0.1", "::1"}
    os.kill(ranks[-1], signal.SIGKILL)
    ended = job.finished(90)  # the other rank alone would wait for half an hour
    assert ended.returncode != 0
    assert "SIGKILL" in ended.stderr


@pytest.mark.integration
def test_sigterm_to_torchrun_saves_the_state(warm, demo, still_yaml, tmp_path):
    """It sends the signal on; its own status is 1, whatever its processes have ended with."""
    flags = training_flags(demo, still_yaml, tmp_path, batch_size=4, num_epochs=1000, learning_rate=1e-3)
    job = warm(*command(*flags, "--save-every", "epoch", processes=2))
    job.wait_for_line("epoch 1: group_recall")
    job.send_signal(signal.SIGTERM)
    ended = job.finished()
    assert ended.returncode != 0
    assert ended.stderr.count("stopped by SIGTERM; ") == 1
    (folder,) = tmp_path.iterdir()
    state = read_state(folder)
    assert (state["epoch"], state["step"]) >= (1, 5)  # all steps of the epochs that were printed
