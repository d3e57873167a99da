"""Builds the lists of `ivf`, in bounded memory, and measures how much they find."""

import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sprc.core.errors import InputError
from sprc.core.files import atomic_path, atomic_writer, made_and_held, sync_file
from sprc.index.engine import Engine, search
from sprc.index.exact import ExactEngine
from sprc.index.faiss_engine import import_faiss
from sprc.index.gallery import Gallery
from sprc.index.ivf import (
    ID_BYTES,
    LISTS,
    NAME,
    RANGES,
    RECALL_AT,
    TRAINED,
    IvfEngine,
    IvfHead,
    list_bytes,
    open_lists,
    print_of,
    write_head,
)

logger = logging.getLogger(__name__)

SEED = 0
SAMPLE_A_LIST, SAMPLE_BYTES = 40, 2**28  # tokens to train on, and their bound in float32
ROUNDS = 8  # of k-means
AT_ONCE_BYTES = 2**25  # tokens in float32 that are held at a time
BITS, BLOCK = 4, 32  # of a number, and codes that are scanned together
ORDER = np.arange(16).reshape(2, 8).T.reshape(-1)  # 0, 8, 1, 9, 2, 10 and so on
AIM = 0.9965  # of the recall on the queries that choose `probes`; others may then find a little less


def build_ivf(gallery: Gallery, queries: np.ndarray, exact: Engine | None = None) -> IvfHead:
    """Make the lists of a gallery, choose how many a query looks at, and measure the recall -> what they say.

    `queries` (B, E), L2-normalised float32, B of 2 at least, are as those that will be asked: one half chooses, the
    recall is of the other. `exact` is an exact engine (default: on the CPU). What was there before stays until all is
    whole. Raises InputError if faiss is not installed, the disk is full, or another process builds the index.
    """
    import_faiss()
    if len(queries) < 2:
        raise InputError(f"{len(queries)} queries measure no recall: give 2 at least")
    with made_and_held(gallery.path, wait=False), atomic_path(gallery.data_folder / NAME) as folder:
        folder.mkdir()
        _require_space(gallery, folder)
        _write_lists(gallery, folder)
        head = _measured(gallery, folder, queries, exact or ExactEngine(gallery))
        write_head(folder, head)
        shutil.rmtree(gallery.data_folder / NAME, ignore_errors=True)  # a folder takes the name of no other
    logger.info(f"IVF: {head}")
    return head


def list_count(tokens: int) -> int:
    """A power of two near sqrt(tokens), for which there is enough to train on."""
    wanted = min(np.sqrt(tokens), tokens / SAMPLE_A_LIST)
    return 2 ** max(0, round(np.log2(max(1, wanted))))


def _require_space(gallery: Gallery, folder: Path) -> None:
    maker = gallery.maker
    needed = len(gallery) * maker.tokens * (maker.width // 4 + 12)  # codes, numbers of tokens and of lists
    free = shutil.disk_usage(folder).free
    if needed > 0.95 * free:
        raise InputError(f"an IVF needs {needed / 1e9:.3g} GB, {folder} has {free / 1e9:.3g} GB free: free some space")


def _write_lists(gallery: Gallery, folder: Path) -> None:
    """Train, find the list of every token, and then write each token to its place in the file of all lists."""
    faiss, index = import_faiss(), _trained(gallery)
    with atomic_writer(folder / TRAINED) as file:
        file.write(faiss.serialize_index(index).tobytes())
    assigned = folder / "assigned.bin"  # (tokens,) int32
    counts = _assign(gallery, index, assigned)
    ranges = _ranges(counts, index.code_size)
    with atomic_writer(folder / RANGES) as file:
        np.save(file, ranges)
    with open(folder / LISTS, "w+b") as file:
        _fill(gallery, index, np.memmap(assigned, np.int32, "r"), ranges, file.fileno())
        _pack(ranges, index.code_size, file.fileno())
        sync_file(file.fileno())
    assigned.unlink()


def _ranges(counts: np.ndarray, code_size: int) -> np.ndarray:
    """(L, 3) int64: how many tokens each list holds, has room for, and where its codes, and then numbers, begin."""
    room = -(-counts // BLOCK) * BLOCK
    ends = np.cumsum(room * (code_size + ID_BYTES))
    return np.stack([counts, room, np.concatenate([[0], ends[:-1]])], axis=1).astype(np.int64)


def _trained(gallery: Gallery):
    """An empty index whose centres and codes come from a sample of the tokens."""
    faiss, width = import_faiss(), gallery.maker.width
    total = len(gallery) * gallery.maker.tokens
    lists = list_count(total)
    sample = _sample(gallery, min(total, SAMPLE_A_LIST * lists, SAMPLE_BYTES // (4 * width)))
    logger.info(f"IVF: training {lists} lists on {len(sample)} tokens")
    pairs = width // 2 if width % 2 == 0 else width
    index = faiss.IndexIVFPQFastScan(
        faiss.IndexFlatIP(width), width, lists, pairs, BITS, faiss.METRIC_INNER_PRODUCT, BLOCK
    )
    index.by_residual = True
    index.cp.niter, index.cp.seed, index.cp.spherical = ROUNDS, SEED + 1, True
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # faiss would print a warning
    index.train(np.resize(sample, (max(len(sample), 2**BITS), width)))
    return index


def _sample(gallery: Gallery, count: int) -> np.ndarray:
    """(count, E) float32: random tokens, in the order of the disk."""
    total, tokens = len(gallery) * gallery.maker.tokens, gallery.maker.tokens
    chosen = np.sort(np.random.default_rng(SEED).choice(total, count, replace=False))
    return gallery.stored[gallery.rows[chosen // tokens], chosen % tokens].astype(np.float32)


def _parts(gallery: Gallery, name: str) -> Iterator[tuple[int, np.ndarray]]:
    """(number of the first token, tokens (n, E) float32) of a part after the other, with a bar and an estimate."""
    maker, begun = gallery.maker, time.monotonic()
    at_once = max(1, AT_ONCE_BYTES // (4 * maker.tokens * maker.width))  # images
    with tqdm(total=len(gallery), desc=f"IVF: {name}", unit="image", dynamic_ncols=True) as bar:
        for start in range(0, len(gallery), at_once):
            images = gallery.tokens(start, start + at_once)
            yield start * maker.tokens, np.asarray(images, np.float32).reshape(-1, maker.width)
            bar.update(len(images))
            if start == 0:
                minutes = (time.monotonic() - begun) * len(gallery) / len(images) / 60
                logger.info(f"IVF: {name}: about {minutes:.1f} minutes for {len(gallery)} images")


def _assign(gallery: Gallery, index, path: Path) -> np.ndarray:
    """Write the list of every token, int32 -> (L,) how many each list has."""
    counts = np.zeros(index.nlist, np.int64)
    with open(path, "wb") as file:
        for _, tokens in _parts(gallery, "lists of the tokens"):
            chosen = index.quantizer.assign(tokens, 1)[:, 0]
            counts += np.bincount(chosen, minlength=index.nlist)
            file.write(chosen.astype(np.int32).tobytes())
    return counts


def _fill(gallery: Gallery, index, assigned: np.ndarray, ranges: np.ndarray, handle: int) -> None:
    """Write codes and numbers of all tokens to their places."""
    os.truncate(handle, list_bytes(ranges, index.code_size))
    filled = np.zeros(len(ranges), np.int64)
    for start, tokens in _parts(gallery, "codes"):
        chosen = assigned[start : start + len(tokens)].astype(np.int64)
        order = np.argsort(chosen, kind="stable")
        codes, numbers = _codes(index, tokens, chosen)[order], order + start
        lists, firsts, counts = np.unique(chosen[order], return_index=True, return_counts=True)
        for number, first, count in zip(lists, firsts, counts, strict=True):
            part, (_, room, offset) = slice(first, first + count), ranges[number]
            os.pwrite(handle, codes[part].tobytes(), offset + filled[number] * index.code_size)
            place = offset + room * index.code_size + filled[number] * ID_BYTES
            os.pwrite(handle, numbers[part].tobytes(), place)
        filled[lists] += counts


def _codes(index, tokens: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """(n, code size) uint8, of tokens (n, E) in the lists that were chosen for them."""
    pointer = import_faiss().swig_ptr
    codes = np.empty((len(tokens), index.code_size), np.uint8)
    index.encode_vectors(len(tokens), pointer(tokens), pointer(chosen), pointer(codes))
    return codes


def _pack(ranges: np.ndarray, code_size: int, handle: int) -> None:
    """Put the codes of every list in the order in which faiss scans them."""
    for count, _, offset in ranges.tolist():
        codes = np.frombuffer(os.pread(handle, count * code_size, offset), np.uint8)
        os.pwrite(handle, packed(codes.reshape(count, code_size)).tobytes(), offset)


def packed(codes: np.ndarray) -> np.ndarray:
    """(n, C) uint8, two numbers of 4 bits a byte -> (blocks, C, 32): the same byte of 32 codes side by side.

    A byte of a block holds the numbers of two codes, those that one instruction looks up in the two halves of a
    register; the order within a half is that of faiss's `pq4` layout.
    """
    count, size = codes.shape
    blocks = np.zeros((-(-count // BLOCK) * BLOCK, size), np.uint8)
    blocks[:count] = codes
    blocks = blocks.reshape(-1, BLOCK, size).transpose(0, 2, 1)  # (blocks, C, 32)
    halves = [half[..., ORDER] | (half[..., ORDER + 16] << 4) for half in (blocks & 15, blocks >> 4)]
    return np.concatenate(halves, axis=-1)


def _measured(gallery: Gallery, folder: Path, queries: np.ndarray, exact: Engine) -> IvfHead:
    """Choose the number of lists that a query looks at by every other query; the recall is of the rest."""
    k, index = min(RECALL_AT, len(gallery)), open_lists(folder)
    best = [{match.position for match in row} for row in search(gallery, exact, queries, k)]
    for probes in _steps(index.nlist):
        engine = IvfEngine.of_lists(gallery, index, probes)
        if _recall(gallery, engine, queries[::2], best[::2], k) >= AIM:
            break
    recall = _recall(gallery, engine, queries[1::2], best[1::2], k)
    sha256 = print_of(folder)
    return IvfHead(gallery.digest, index.nlist, probes, recall, len(best[1::2]), sha256)


def _steps(lists: int) -> list[int]:
    """1, 2, 3, then four steps from each power of two to the next (4, 5, 6, 7, 8, 10 and so on), and all lists."""
    steps = {quarter * 2**power // 4 for power in range(lists.bit_length() + 1) for quarter in (4, 5, 6, 7)}
    return [*sorted(step for step in steps if step < lists), lists]


def _recall(gallery: Gallery, engine: Engine, queries: np.ndarray, best: list[set[int]], k: int) -> float:
    found = search(gallery, engine, queries, k)
    return float(
        np.mean([len(row & {match.position for match in hits}) / k for row, hits in zip(best, found, strict=True)])
    )
