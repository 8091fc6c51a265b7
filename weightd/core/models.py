"""Named models: name → source, files, size, format, sha256, from the configuration or a models.json."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from weightd.core.digest import Digest, parse_digest
from weightd.core.errors import ConfigError, WeightdError
from weightd.core.manifest import check_path
from weightd.core.period import parse_period
from weightd.core.policy import Policy, Rule
from weightd.core.refs import Ref, parse_ref

FORMATS = ("safetensors", "raw")


class NamedFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of a named model; `path` is relative to the model's source."""

    path: str
    size: int | None = None
    sha256: str | None = None


class NamedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`source` is a ref by URL. Without `files` the source is resolved as that ref would be.

    `files` names the files below `source`, which then is a directory, each as a path or as a NamedFile. `sha256` is
    the digest of a model of one file, `size` the sum over files in bytes. `policy` and `keep_idle` (as "10m") say when
    it is in shared memory; without them the defaults of all models do.
    """

    source: str
    files: tuple[str | NamedFile, ...] = ()
    size: int | None = None
    format: str | None = None
    sha256: str | None = None
    policy: Policy | None = None
    keep_idle: str | None = None

    def named_files(self) -> tuple[NamedFile, ...]:
        """`files`, every entry in its long form."""
        return tuple(NamedFile(f) if isinstance(f, str) else f for f in self.files)


class ModelsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of a models.json."""

    models: dict[str, NamedModel] = {}


def parse_models(text: bytes, where: str) -> dict[str, NamedModel]:
    """A models.json, checked. Raises ConfigError that names `where` and the key."""
    try:
        models = msgspec.json.decode(text, type=ModelsFile).models
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ConfigError(f"{where}: {e}", remedy="See config.example.toml for the keys of a model.") from None
    check_models(models, where)
    return models


def check_models(models: dict[str, NamedModel], where: str) -> None:
    """What types alone cannot say. Raises ConfigError."""
    for name, model in models.items():
        try:
            _check_model(name, model)
        except WeightdError as e:
            raise ConfigError(f"{where}: model {name!r}: {e}") from None


def _check_model(name: str, model: NamedModel) -> None:
    if parse_ref(name).scheme != "name":
        raise ConfigError("a model's name may not be a URL")
    if parse_ref(model.source).scheme == "name":
        raise ConfigError("source must be a URL, not another model's name")
    if model.format is not None and model.format not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, not {model.format!r}")
    _check_rule(model)
    files = model.named_files()
    if model.sha256 is not None:
        if len(files) > 1:
            raise ConfigError("sha256 belongs to each of several files, not to the model")
        parse_digest(model.sha256)
    for file in files:
        check_path(file.path)
        if file.sha256 is not None:
            parse_digest(file.sha256)
        if file.size is not None and file.size < 0:
            raise ConfigError(f"file {file.path!r}: a negative size")


def _check_rule(model: NamedModel) -> None:
    if model.keep_idle is None:
        return
    if model.policy is Policy.HOT:
        raise ConfigError("keep_idle means nothing for a hot model, which stays in shared memory")
    try:
        parse_period(model.keep_idle)
    except ValueError as e:
        raise ConfigError(f"keep_idle: {e}") from None


def rule_of(model: NamedModel, keep_idle: Mapping[Policy, float | None]) -> Rule:
    """`keep_idle` is what holds for models of a policy that say nothing themselves."""
    policy = model.policy or Policy.WARM
    given = keep_idle.get(policy) if model.keep_idle is None else parse_period(model.keep_idle) or None
    return Rule(policy, None if policy is Policy.HOT else given)


def expected_digest(model: NamedModel, file: NamedFile) -> Digest | None:
    """The digest that the configuration gives for a file, from the file or, if it is the only one, the model."""
    text = file.sha256 or (model.sha256 if len(model.files) <= 1 else None)
    return None if text is None else parse_digest(text)


def source_ref(model: NamedModel) -> Ref:
    """The parsed `source`."""
    return parse_ref(model.source)
