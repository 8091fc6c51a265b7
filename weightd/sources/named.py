"""Models that the configuration names: name → source, files, sizes, digests."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

import msgspec

from weightd.core.errors import ConfigError, ManifestError, ModelNotFound, SizeMismatch, WeightdError
from weightd.core.manifest import FileSpec, Manifest, agreed_digest, make_manifest
from weightd.core.models import NamedFile, NamedModel, expected_digest, source_ref
from weightd.core.refs import Ref
from weightd.sources import safetensors_repo as repo
from weightd.sources import urls
from weightd.sources.protocols import Source


async def resolve_named(ref: Ref, models: Mapping[str, NamedModel], source: Source) -> Manifest:
    """Ask the model's own source; what the configuration says must hold. Raises ModelNotFound for an unknown name."""
    model = models.get(ref.text)
    if model is None:
        raise _unknown(ref, models)
    try:
        files, revision = await _files(ref, model, source)
        _check(model, files)
        format = model.format or repo.format_of(f.path for f in files)
        return make_manifest(ref.shown, format, files, revision)
    except WeightdError as e:
        raise _named(e, ref) from None


async def _files(ref: Ref, model: NamedModel, source: Source) -> tuple[list[FileSpec], str]:
    """And what the source calls all of them, where they are what it says that they are; else ""."""
    below = source_ref(model)
    listed = model.named_files()
    if listed:
        base = urls.as_directory(urls.encode(below.text))

        async def stat(file: NamedFile) -> FileSpec:
            size = model.size if file.size is None and len(listed) == 1 else file.size
            url = urls.child(base, file.path)
            return await source.stat(ref, file.path, url, size=size, digest=expected_digest(model, file))

        return await repo.bounded(stat, listed), ""
    if below.scheme in ("http", "https") and urls.shape(below.text) is urls.Shape.FILE:
        # The one file that the URL is: a given size also serves where the origin does not tell one.
        alone = NamedFile(urls.name(below.text))
        digest = expected_digest(model, alone)
        return [await source.stat(ref, alone.path, below.text, size=model.size, digest=digest)], ""
    found = await source.resolve(below)
    return _with_digest(model, list(found.files)), "" if model.sha256 else found.revision


def _with_digest(model: NamedModel, files: list[FileSpec]) -> list[FileSpec]:
    if model.sha256 is None:
        return files
    if len(files) > 1:
        raise ConfigError(
            f"sha256 is given for a model of {len(files)} files",
            remedy="List the files in models.json, each with its own sha256.",
        )
    file = files[0]
    digest = agreed_digest(expected_digest(model, NamedFile(file.path)), file.digest, file.path)
    return [msgspec.structs.replace(file, digest=digest)]


def _check(model: NamedModel, files: list[FileSpec]) -> None:
    total = sum(f.size for f in files)
    if model.size is not None and total != model.size:
        raise SizeMismatch(
            f"the files have {total} bytes together, {model.size} are given",
            remedy="Correct the size in models.json, or the source.",
        )
    if model.format == "safetensors" and repo.format_of(f.path for f in files) != "safetensors":
        raise ManifestError(
            "format is given as safetensors, but no file is a .safetensors", remedy='Use format "raw", or mend files.'
        )


def _named(e: WeightdError, ref: Ref) -> WeightdError:
    """The user asked by name: the error speaks of that; the message tells the address."""
    e.ref = ref.shown
    return e


def _unknown(ref: Ref, models: Mapping[str, NamedModel]) -> WeightdError:
    near = difflib.get_close_matches(ref.text, models, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else "Add it to models.json, or use a URL."
    return ModelNotFound("no model of that name is configured", ref=ref.shown, remedy=hint)
