"""Which files of a repository or prefix that can be listed are the model: pure, from names and sizes alone.

By default: everything small that is no picture and no training state, and the weights in one format. Where a model is
made of several (diffusers' `model_index.json`, sentence-transformers' `modules.json`), each directory has one format of
its own. Layouts are those that huggingface_hub, transformers, diffusers and llama.cpp write.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final, NamedTuple, Protocol, TypeVar

from weightd.core.errors import SelectionAmbiguous

INDEX: Final = "model.safetensors.index.json"
SMALL: Final = 128 << 20
"""Bytes. A larger file that is no weights of a known format is left out; the largest tokenizers have 40 MB."""
FORMATS: Final[Mapping[str, tuple[str, ...]]] = {
    "safetensors": (".safetensors",),
    "gguf": (".gguf",),
    "bin": (".bin",),
    "pt": (".pt", ".pth"),
}
"""The first that is there is taken."""

_MODULAR = ("model_index.json", "modules.json")
_OTHER_FORMATS = (
    *(".h5", ".msgpack", ".ot", ".onnx", ".onnx_data", ".onnx.data", ".tflite", ".pb", ".nemo", ".npz", ".ckpt"),
    *(".mlmodel", ".engine", ".plan", ".zip", ".tar", ".gz", ".tgz", ".7z", ".parquet", ".arrow", ".distcp", ".pkl"),
)
_MEDIA = (
    *(".png", ".jpg", ".jpeg", ".gif", ".webp", ".svg", ".bmp", ".ico", ".avif", ".pdf", ".mp3", ".wav", ".flac"),
    *(".ogg", ".mp4", ".webm", ".mov", ".mkv", ".ipynb"),
)
_FOLDERS = (
    *("original", "onnx", "openvino", "coreml", "metal", "tensorrt", "runs", "logs", "wandb", "*.mlpackage"),
    *("*.mlmodelc", "checkpoint-[0-9]*", "global_step[0-9]*", "__pycache__"),
)
_TRAINING = (
    *(
        "optimizer*.pt",
        "optimizer*.bin",
        "scheduler*.pt",
        "scheduler*.bin",
        "scaler.pt",
        "rng_state*",
        "random_states*",
    ),
    *("training_args.bin", "trainer_state.json", "events.out.tfevents.*", "*_optim_states.pt", "openvino_model.*"),
    *("*.imatrix", "imatrix*.gguf", "imatrix.dat"),
)
_SHARD = re.compile(r"[-_.]?\d{4,6}[-_]of[-_]\d{4,6}")
_VARIANT = re.compile(r"\.(fp16|bf16|fp32|fp8|int8|int4|non_ema|ema)(?=[.-])")
_INDEX = re.compile(r"(?P<stem>.+)\.(?P<format>safetensors|bin)\.index(?:\.[a-z0-9_]+)?\.json")


class Listed(Protocol):
    """A file as a listing has it: its path below the root, "/"-separated, and its bytes."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...


F = TypeVar("F", bound=Listed)


def select(files: Sequence[F], include: Sequence[str] = (), exclude: Sequence[str] = ()) -> list[F]:
    """The files to fetch, in their order.

    With `include`: exactly those that match one of its patterns; else the default of this module. Never those that
    match `exclude`, which are left out before the default is chosen. Patterns are of the whole path, where `*` matches
    "/" too, and "dir/" all below it, as huggingface_hub has them. Raises SelectionAmbiguous where GGUF files are
    several models, one for each quantization, and nothing says which.
    """
    left = [f for f in files if not matches(f.path, exclude)]
    if include:
        return [f for f in left if matches(f.path, include)]
    return _default(left)


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether one of them does."""
    return any(fnmatchcase(path, f"{p}*" if p.endswith("/") else p) for p in patterns)


def narrowed(chosen: Sequence[F], index: str, shards: Collection[str]) -> list[F]:
    """What an index says goes before names: of the safetensors files beside it, those that it names. `index` is its
    path, `shards` are paths relative to its directory."""
    folder = index[: index.rfind("/") + 1]
    named = {folder + shard for shard in shards}
    return [
        f
        for f in chosen
        if f.path in named or _folder(f.path) != folder.rstrip("/") or format_of(f.path) != "safetensors"
    ]


def format_of(path: str) -> str:
    """The format of weights that a name says, a key of FORMATS, or ""."""
    return next((name for name, endings in FORMATS.items() if path.lower().endswith(endings)), "")


def _default(files: Sequence[F]) -> list[F]:
    usable = [f for f in files if _usable(f)]
    weights = [f for f in usable if format_of(f.path)]
    modular = any(f.path in _MODULAR for f in files)
    taken = {f.path for f in _of_one_format(weights, modular=modular)}
    rest = [f for f in usable if f.path in taken or not format_of(f.path)]
    return [f for f in rest if f.path in taken or _indexes_some(f.path, taken)]


def _usable(file: Listed) -> bool:
    *folders, name = file.path.split("/")
    if any(part.startswith(".") for part in (*folders, name)):
        return False
    if any(fnmatchcase(folder.lower(), pattern) for folder in folders for pattern in _FOLDERS):
        return False
    if name.lower().endswith(_OTHER_FORMATS + _MEDIA) or any(fnmatchcase(name, p) for p in _TRAINING):
        return False
    return bool(format_of(name)) or file.size <= SMALL


def _of_one_format(weights: Sequence[F], *, modular: bool) -> list[F]:
    groups: dict[str, list[F]] = defaultdict(list)
    for f in weights:
        groups[_folder(f.path) if modular else ""].append(f)
    found = []
    for folder, group in groups.items():
        modules = [f for f in group if folder or len(groups) == 1 or _of_module(f)] if modular else group
        if not modules:
            continue  # A whole pipeline in one file, beside its parts in their directories.
        format = next(name for name in FORMATS if any(format_of(f.path) == name for f in modules))
        same = [f for f in group if format_of(f.path) == format]
        if format == "gguf":
            _check_one_gguf(same)
        found.extend(_without_doubles(same))
    return found


def _of_module(file: Listed) -> bool:
    """Weights in the root of a modular model: those of a module have a module's name, others are the whole again."""
    return file.path.startswith(("model", "pytorch_model"))


def _without_doubles(weights: Sequence[F]) -> list[F]:
    by_folder: dict[str, list[F]] = defaultdict(list)
    for f in weights:
        by_folder[_folder(f.path)].append(f)
    return [f for group in by_folder.values() for f in _singled(group)]


def _singled(group: Sequence[F]) -> list[F]:
    """Of one directory: no file in another precision, no whole beside its shards, no copy in Mistral's own layout."""
    facts = {f.path: _Name.of(f.path) for f in group}
    plain = {n.stem for n in facts.values() if not n.variant}
    sharded = {n.stem for n in facts.values() if n.shard and not n.variant}
    others = any(not n.stem.startswith("consolidated") for n in facts.values())

    def double(n: _Name) -> bool:
        if n.stem.startswith("consolidated") and others:
            return True
        return n.stem in plain if n.variant else n.stem in sharded and not n.shard

    return [f for f in group if not double(facts[f.path])]


class _Name(NamedTuple):
    """A file of weights: what it is of, as what variant, and whether it is one of several shards."""

    stem: str
    variant: str
    shard: bool

    @classmethod
    def of(cls, path: str) -> _Name:
        name = path.rpartition("/")[2]
        variant = _VARIANT.search(name)
        bare = _VARIANT.sub("", name, count=1)
        whole = _SHARD.sub("", bare, count=1)
        return cls(whole.rpartition(".")[0], variant[1] if variant else "", whole != bare)


def _check_one_gguf(weights: Sequence[Listed]) -> None:
    sizes: dict[str, int] = defaultdict(int)
    for f in weights:
        if "mmproj" not in f.path.lower():
            sizes[_SHARD.sub("", f.path, count=1)] += f.size
    if len(sizes) < 2:
        return
    told = ", ".join(f"{name} ({size / 1e9:.1f} GB)" for name, size in sorted(sizes.items())[:30])
    more = f" and {len(sizes) - 30} more" if len(sizes) > 30 else ""
    example = min(sizes, key=lambda name: ("q4_k_m" not in name.lower(), name)).removesuffix(".gguf")
    raise SelectionAmbiguous(
        f"there are {len(sizes)} GGUF models to choose from: {told}{more}",
        remedy=f"Say which with ?include=, as in ?include={example}* ; ?include=*.gguf takes all.",
    )


def _indexes_some(path: str, taken: Collection[str]) -> bool:
    """Whether a file may stay that is no weights: an index of weights that are left out leads nowhere. One whose names
    are not those of its shards stays."""
    index = _INDEX.fullmatch(path)
    if index is None:
        return True
    stem, format = index["stem"], index["format"]
    of_format = {t for t in taken if format_of(t) == format}
    mine = {t for t in of_format if t.startswith(stem)}
    if taken and not of_format:
        return False
    return bool(mine - {f"{stem}.{format}"}) or not (mine or "consolidated" in stem)


def _folder(path: str) -> str:
    return path.rpartition("/")[0]
