"""`[models.<name>]`, or `models = "models.json"`"""

from __future__ import annotations

from weightd.core.models import NamedModel, check_models, parse_models
from weightd.daemon.config_reader import Reader


def read_models(reader: Reader) -> dict[str, NamedModel]:
    """By name. Raises ConfigError."""
    raw = reader.raw("models")
    if raw is None:
        return {}
    if isinstance(raw, str):
        return _from_file(reader, raw)
    if not isinstance(raw, dict):
        raise reader.fault(("models",), "must be the path of a models.json, or tables [models.<name>]")
    models = {name: reader.typed(("models", name), NamedModel, one) for name, one in raw.items()}
    for name, model in models.items():
        check_models({name: model}, reader.at(("models", name)))
    return models


def _from_file(reader: Reader, name: str) -> dict[str, NamedModel]:
    file = reader.base / name
    try:
        text = file.read_bytes()
    except OSError as e:
        raise reader.fault(("models",), f"{file} cannot be read: {e.strerror}") from None
    return parse_models(text, str(file))
