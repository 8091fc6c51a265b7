"""Which files of a listing are the model."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightd.core.errors import SelectionAmbiguous
from weightd.core.selection import FORMATS, SMALL, format_of, matches, narrowed, select

CONFIG = ["LICENSE", "README.md", "config.json", "tokenizer.json", "tokenizer.model", "modeling_x.py"]


class Listed(NamedTuple):
    path: str
    size: int = 1000


def chosen(paths: str, include: str = "", exclude: str = "") -> set[str]:
    return {f.path for f in select([Listed(p) for p in paths.split()], include.split(), exclude.split())}


def weights(paths: str) -> set[str]:
    """What is chosen beside a usual configuration, which always is."""
    found = chosen(f"{' '.join(CONFIG)} .gitattributes {paths}")
    assert found >= set(CONFIG)
    return found - set(CONFIG)


@pytest.mark.parametrize(
    ("there", "wanted"),
    [
        ("model.safetensors pytorch_model.bin tf_model.h5 flax_model.msgpack rust_model.ot", "model.safetensors"),
        ("pytorch_model.bin tf_model.h5", "pytorch_model.bin"),
        ("model.safetensors m-Q4_K_M.gguf", "model.safetensors"),
        ("m-Q4_K_M.gguf pytorch_model.bin", "m-Q4_K_M.gguf"),
        ("consolidated.00.pth consolidated.01.pth params.json", "consolidated.00.pth consolidated.01.pth params.json"),
        ("model.safetensors original/consolidated.00.pth original/params.json", "model.safetensors"),
        ("model.safetensors onnx/model.onnx onnx/config.json openvino/openvino_model.bin", "model.safetensors"),
        ("model.safetensors optimizer.pt rng_state_0.pth training_args.bin runs/x/events.out.1", "model.safetensors"),
        ("model.safetensors checkpoint-500/model.safetensors", "model.safetensors"),
        ("model.safetensors images/a.png plot.JPG paper.pdf", "model.safetensors"),
        ("model.safetensors .cache/x.json", "model.safetensors"),
        ("adapter_model.bin adapter_model.safetensors", "adapter_model.safetensors"),
        ("model.fp16.safetensors model.safetensors", "model.safetensors"),
        ("model.fp16.safetensors", "model.fp16.safetensors"),
    ],
)
def test_weights_in_one_format(there: str, wanted: str) -> None:
    assert weights(there) == set(wanted.split())


SHARDS = "model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json"


@pytest.mark.parametrize(
    "besides",
    [
        "",
        "model.safetensors",
        "consolidated.safetensors",
        "consolidated-00001-of-00002.safetensors consolidated.safetensors.index.json",
        "pytorch_model-00001-of-00002.bin pytorch_model-00002-of-00002.bin pytorch_model.bin.index.json",
        "model.fp16-00001-of-00002.safetensors model.safetensors.index.fp16.json",
    ],
)
def test_shards_go_before_their_doubles(besides: str) -> None:
    left = weights(f"{SHARDS} {besides}") - {"model.safetensors.index.fp16.json"}
    assert left == set(SHARDS.split())


def test_an_index_without_its_weights_leads_nowhere() -> None:
    assert weights("model.safetensors pytorch_model.bin pytorch_model.bin.index.json") == {"model.safetensors"}


def test_mistral_alone() -> None:
    assert weights("consolidated.safetensors params.json") == {"consolidated.safetensors", "params.json"}


def test_a_pipeline_has_a_format_in_each_directory() -> None:
    found = chosen(
        "model_index.json unet/config.json unet/diffusion_pytorch_model.safetensors unet/diffusion_pytorch_model.bin"
        " unet/diffusion_pytorch_model.fp16.safetensors vae/diffusion_pytorch_model.bin sd_v1.safetensors sd_v1.ckpt"
    )
    assert found == {
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.bin",
    }


def test_what_is_whole_again_says_nothing_of_the_format_of_a_module() -> None:
    found = chosen("model_index.json model.bin consolidated.safetensors unet/model.safetensors")
    assert found == {"model_index.json", "model.bin", "unet/model.safetensors"}


def test_sentence_transformers() -> None:
    found = chosen("modules.json model.safetensors pytorch_model.bin 1_Pooling/config.json 2_Dense/pytorch_model.bin")
    assert found == {"modules.json", "model.safetensors", "1_Pooling/config.json", "2_Dense/pytorch_model.bin"}


def test_several_quantizations_are_a_question() -> None:
    there = "a-Q4_K_M.gguf a-Q8_0-00001-of-00002.gguf a-Q8_0-00002-of-00002.gguf mmproj-F16.gguf config.json"
    with pytest.raises(SelectionAmbiguous, match="2 GGUF models") as e:
        chosen(there)
    assert "a-Q8_0.gguf" in e.value.message
    assert "?include=a-Q4_K_M*" in e.value.remedy
    assert chosen(there, include="a-Q4_K_M*") == {"a-Q4_K_M.gguf"}
    assert chosen(there, exclude="*Q8_0*") == {"a-Q4_K_M.gguf", "mmproj-F16.gguf", "config.json"}


def test_shards_of_one_quantization_are_one_model() -> None:
    there = "Q8_0/a-Q8_0-00001-of-00002.gguf Q8_0/a-Q8_0-00002-of-00002.gguf mmproj-F16.gguf"
    assert chosen(there) == set(there.split())


def test_large_files_of_no_known_format_are_left_out() -> None:
    files = [Listed("model.safetensors", 1 << 40), Listed("corpus.txt", SMALL + 1), Listed("vocab.txt", SMALL)]
    assert [f.path for f in select(files)] == ["model.safetensors", "vocab.txt"]


def test_patterns() -> None:
    there = "a/x.bin a/b/y.bin z.bin [1].bin"
    assert chosen(there, include="*.bin", exclude="a/b/") == {"a/x.bin", "z.bin", "[1].bin"}
    assert chosen(there, include="a/") == {"a/x.bin", "a/b/y.bin"}
    assert chosen(there, include="Z.BIN") == set()
    assert chosen(there, include="[[]1].bin z.*") == {"[1].bin", "z.bin"}
    assert not matches("x", [])


def test_an_index_says_which() -> None:
    files = [Listed(p) for p in ["m/a.safetensors", "m/old.safetensors", "m/c.json", "b.safetensors", "m/i.json"]]
    assert [f.path for f in narrowed(files, "m/i.json", ["a.safetensors", "sub/x.safetensors"])] == [
        *("m/a.safetensors", "m/c.json", "b.safetensors", "m/i.json")
    ]


names = st.sampled_from(
    [
        "model",
        "pytorch_model",
        "consolidated",
        "model-00001-of-00002",
        "model.fp16",
        "a-Q4",
        "a-Q8",
        "config",
        "tokenizer",
        "optimizer",
    ]
)
endings = st.sampled_from(
    [
        ".safetensors",
        ".bin",
        ".gguf",
        ".pth",
        ".json",
        ".safetensors.index.json",
        ".bin.index.json",
        ".png",
        ".onnx",
        ".txt",
    ]
)
folders = st.sampled_from(["", "original/", "unet/", "a/b/", "onnx/", ".git/"])
paths = st.builds(lambda f, n, e: f + n + e, folders, names, endings) | st.sampled_from(
    ["model_index.json", "modules.json", "LICENSE"]
)
listings = st.lists(paths, unique=True).map(lambda found: [Listed(p) for p in found])
patterns = st.lists(st.sampled_from(["*.json", "unet/", "model*", "*.gguf", "[", "?"]), max_size=3)


@given(listings, patterns, patterns)
def test_properties(files: list[Listed], include: list[str], exclude: list[str]) -> None:
    try:
        found = select(files, include, exclude)
    except SelectionAmbiguous:
        assert not include
        assert sum(f.path.endswith(".gguf") for f in files) > 1
        return
    assert found == [f for f in files if f in found]
    assert not any(matches(f.path, exclude) for f in found)
    assert set(select(files[::-1], include, exclude)) == set(found)
    if include:
        assert found == [f for f in files if matches(f.path, include) and not matches(f.path, exclude)]
        return
    formats = {format_of(f.path) for f in found} - {""}
    assert formats <= FORMATS.keys()
    if not {"model_index.json", "modules.json"} & {f.path for f in files}:
        assert len(formats) <= 1
    assert select(found, (), exclude) == found
