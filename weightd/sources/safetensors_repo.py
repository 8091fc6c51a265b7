"""Which files make up a model that is named by its directory or by its safetensors index; the same for every source.

A directory is `model.safetensors.index.json` with its shards if that is there, else `model.safetensors`; and with
them those of SIBLINGS that exist. The layout is the one that huggingface_hub and transformers write.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol, TypeVar

import msgspec

from weightd.core.errors import ManifestError, SizeMismatch, SourceNotFound, WeightdError
from weightd.core.manifest import FileSpec, check_path
from weightd.sources.protocols import Reader

INDEX: Final = "model.safetensors.index.json"
SINGLE: Final = "model.safetensors"
WEIGHTS: Final = (".safetensors", ".gguf")
MAX_INDEX: Final = 64 << 20
"""Bytes; an index line takes about 100, so this is over 600,000 tensors."""
MAX_SHARDS: Final = 10_000
PROBES: Final = 8
"""Questions to one source at the same time."""
SIBLINGS: Final = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "adapter_config.json",
    "quantize_config.json",
    "hf_quant_config.json",
    "LICENSE",
    "LICENSE.txt",
    "README.md",
)

T = TypeVar("T")
U = TypeVar("U")


class Folder(Protocol):
    """A directory of some source."""

    async def find(self, path: str, *, optional: bool = False) -> FileSpec | None:
        """The file of that name, or None. An `optional` one is also absent where the source refuses to say (403)."""
        ...

    async def read(self, file: FileSpec) -> bytes:
        """The whole of a small file."""
        ...

    def missing(self, path: str, why: str) -> WeightdError:
        """The error for a file that has to be there and is not."""
        ...


class _Index(msgspec.Struct):
    weight_map: dict[str, str]


async def whole_directory(folder: Folder) -> list[FileSpec]:
    """The files of a directory that cannot be listed. Raises SourceNotFound when it holds no model."""
    index = await folder.find(INDEX, optional=True)
    if index is not None:
        return await of_index(folder, index)
    single = await folder.find(SINGLE)
    if single is None:
        raise folder.missing(SINGLE, f"neither it nor {INDEX} is in the directory")
    return [single, *await siblings(folder)]


async def of_index(folder: Folder, index: FileSpec) -> list[FileSpec]:
    """The index, its shards and their siblings. Raises SourceNotFound that names a missing shard."""
    if index.size > MAX_INDEX:
        raise ManifestError(f"the index has {index.size} bytes, over {MAX_INDEX}", file=index.path)
    try:
        shards = parse_index(await folder.read(index))
    except ManifestError as e:
        raise e.about(file=index.path) from None

    async def shard(path: str) -> FileSpec:
        found = await folder.find(path)
        if found is None:
            raise folder.missing(path, f"the index {index.path} names it")
        return found

    found = {f.path: f for f in await siblings(folder)}
    return list(({f.path: f for f in await bounded(shard, shards)} | found | {index.path: index}).values())


async def siblings(folder: Folder) -> list[FileSpec]:
    """Those of SIBLINGS that exist."""
    found = await bounded(lambda path: folder.find(path, optional=True), SIBLINGS)
    return [f for f in found if f is not None]


def parse_index(text: bytes) -> list[str]:
    """The shards that an index names, checked and sorted. Raises ManifestError."""
    try:
        names = sorted(set(msgspec.json.decode(text, type=_Index).weight_map.values()))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ManifestError(
            f"not a safetensors index: {e}", remedy="It must be a JSON object with a 'weight_map' of names."
        ) from None
    if not names or len(names) > MAX_SHARDS:
        raise ManifestError(f"the index names {len(names)} shards; 1 to {MAX_SHARDS} are possible")
    for name in names:
        if not check_path(name).endswith(".safetensors"):
            raise ManifestError(f"the index names {name[:200]!r}, which is no .safetensors file")
    return names


def format_of(paths: Iterable[str]) -> str:
    """ "safetensors" if any file is of that format, else "raw"."""
    return "safetensors" if any(p.endswith(".safetensors") for p in paths) else "raw"


async def bounded(work: Callable[[T], Awaitable[U]], items: Iterable[T]) -> list[U]:
    """`work` on every item, PROBES at a time, results in order; the first failure cancels the rest and is raised."""
    waiting = enumerate(items)
    results: dict[int, U] = {}

    async def some() -> None:
        for index, item in waiting:
            results[index] = await work(item)

    tasks = [asyncio.ensure_future(some()) for _ in range(PROBES)]
    try:
        await asyncio.gather(*tasks)
        return [results[i] for i in range(len(results))]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def read_whole(reader: Reader, size: int) -> bytes:
    """All bytes of a small file, in this thread, through the one path that checks every answer."""
    data = bytearray(size)
    try:
        if size:
            reader.start(0, size)
            with memoryview(data) as view:
                done = 0
                while done < size:
                    done += reader.readinto(view[done:])
            reader.finish()
    finally:
        reader.close()
    return bytes(data)


async def read_in_thread(reader: Reader, size: int) -> bytes:
    """`read_whole`, aborted when the caller is cancelled. In a thread of its own: an origin that sends slowly takes
    none of those in which others ask."""
    thread = ThreadPoolExecutor(1, "weightd-read")
    try:
        return await asyncio.get_running_loop().run_in_executor(thread, read_whole, reader, size)
    except asyncio.CancelledError:
        reader.abort()
        raise
    finally:
        thread.shutdown(wait=False)


def check_size(found: int, given: int | None, where: str, path: str) -> None:
    """Raises SizeMismatch when a size was given and is another."""
    if given is not None and found != given:
        raise SizeMismatch(
            f"{where} has {found} bytes, {given} are given",
            file=path,
            remedy="Correct the size in models.json, or the source.",
        )


def not_found(where: str, path: str, why: str) -> WeightdError:
    """For implementations of Folder.missing."""
    return SourceNotFound(
        f"{where} has no {path}: {why}", file=path, remedy="Check the address, or name a single file in it."
    )
