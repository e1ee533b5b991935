from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from energylens import catalog
from energylens.errors import ArtefactError, InputError, UnknownNameError
from energylens.records import (
    Attention,
    Engine,
    Experts,
    FeedForward,
    Llm,
    StateSpace,
    Vision,
)

# Rows whose published count is not that of what is served; the reason is in count_exempt.
EXEMPT = {"Qwen/Qwen3-Omni-30B-A3B-Instruct"}

DATA = Path(
    os.environ.get("ENERGYLENS_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the catalog of whoever runs the tests out of them."""
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path))
    return tmp_path


# ------------------------------------------------------------------------------- the rows


def test_the_published_parameters_of_every_row_are_recounted_from_its_architecture() -> None:
    off = {
        row.id: f"{row.counted_parameters:.4g} counted, {row.total_parameters:.4g} published"
        for row in catalog.llms().values()
        if abs(row.counted_parameters / row.total_parameters - 1.0) > 0.03
    }
    assert off.keys() == EXEMPT, off


def test_a_count_in_front_of_a_gpu_type_is_told_where_it_goes() -> None:
    for name in ("8xH100", "8 H100", "8x H100"):
        with pytest.raises(UnknownNameError, match="say H100-SXM-80GB, and the count as --max-gpu"):
            catalog.gpu(name)
    assert catalog.llm("Llama-3.3-70B").id == "meta-llama/Llama-3.3-70B-Instruct"


def test_rows_are_exempt_from_the_count_only_with_a_reason_and_in_the_docs() -> None:
    exempt = {row.id for row in catalog.llms().values() if row.count_exempt}
    assert exempt == EXEMPT
    page = Path(__file__).resolve().parents[1] / "docs" / "catalog.md"
    assert all(name in page.read_text(encoding="utf-8") for name in exempt)


def test_the_published_active_parameters_of_every_mixture_are_recounted() -> None:
    # Makers round to a billion, and some count the input embedding and the vision tower, some
    # not even the output matrix: the published figure must lie between, give or take half a
    # billion or five per cent.
    for row in catalog.llms().values():
        if row.experts:
            vision = row.vision.parameters if row.vision else 0
            lowest = row.computing_parameters - row.embedding_parameters
            highest = row.computing_parameters + row.embedding_parameters + vision
            slack = max(0.05 * row.active_parameters, 0.5e9)
            assert lowest - slack <= row.active_parameters <= highest + slack, row.id
        else:
            assert row.active_parameters == row.total_parameters, row.id


def test_the_layers_of_every_row_add_up() -> None:
    for row in catalog.llms().values():
        mixers = [part.layers for part in (row.attention, row.state_space) if part]
        channels = [part.layers for part in (row.feed_forward, row.experts) if part]
        assert max(mixers + channels) <= row.layers, row.id
        if row.family in ("dense", "moe") and "Nemotron-Super" not in row.id:
            assert sum(mixers) == sum(channels) == row.layers, row.id


def test_every_row_states_its_source_and_date_and_a_known_precision() -> None:
    for row in catalog.llms().values():
        assert row.source, row.id
        assert row.date, row.id
        assert row.native_precision in catalog.precisions(), row.id


def test_every_gpu_states_dense_figures_in_si_units_with_their_source() -> None:
    for row in catalog.gpus().values():
        socket = row.id.startswith(("EPYC", "Xeon"))
        assert 10e9 < row.memory_bytes < 450e9, row.id
        assert 200e9 < row.memory_bandwidth_bytes_per_s < 10e12, row.id
        # a sparse figure lies outside
        assert (4e12 if socket else 50e12) < row.bf16_flop_per_s < 3e15, row.id
        for narrow, widest in ((row.fp8_flop_per_s, 2.1), (row.fp4_flop_per_s, 8.1)):
            assert narrow is None or 1 <= narrow / row.bf16_flop_per_s <= widest, row.id
        assert 50 <= row.tdp_w <= 1500, row.id
        assert row.link_bandwidth_bytes_per_s is not None, row.id
        assert row.source, row.id
        assert row.date, row.id


def test_the_bits_of_a_precision_are_those_in_its_name_and_its_scales() -> None:
    for row in catalog.precisions().values():
        stated = int("".join(filter(str.isdigit, row.id.split("a16")[0].split("-g")[0])))
        assert stated <= row.weight_bits <= stated + 0.5, row.id


def test_mxfp4_holds_only_experts_in_four_bits_and_widens_them() -> None:
    row = catalog.precision("mxfp4")
    assert (row.scope, row.weight_bits, row.compute_bits) == ("experts", 4.25, 16)
    assert row.weight_only


def test_every_gpu_and_llm_that_was_promised_is_there() -> None:
    names = """A40 A100-SXM-40GB A100-SXM-80GB A100-PCIe-40GB A100-PCIe-80GB H100 H100-PCIe H200
        B200 GH200 L4 L40S V100 MI250 MI300X Gaudi2 Gaudi3"""
    assert all(catalog.gpu(name) for name in names.split())


# -------------------------------------------------------------------------- finding by name


@pytest.mark.parametrize(
    ("name", "row_id"),
    [
        ("meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("META-LLAMA/llama-3.1-8b-instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("meta-llama/Meta-Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("a-copier/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("TheBloke/CodeLlama-34B-Instruct-AWQ", "codellama/CodeLlama-34b-Instruct-hf"),
        ("mistralai/Mixtral-8x22B-Instruct-v0.1-pp1", "mistralai/Mixtral-8x22B-Instruct-v0.1"),
    ],
)
def test_an_llm_is_found_by_id_alias_or_short_name_in_any_case(name: str, row_id: str) -> None:
    assert catalog.llm(name).id == row_id


@pytest.mark.parametrize(
    ("name", "row_id"),
    [
        ("H100", "H100-SXM-80GB"),
        ("nvidia h100 80gb hbm3", "H100-SXM-80GB"),
        ("H100 80GB HBM3", "H100-SXM-80GB"),
        ("Nvidia H100 GPU", "H100-SXM-80GB"),
        ("A100-SXM4-40GB", "A100-SXM-40GB"),
        ("A100-80GB", "A100-SXM-80GB"),
        ("NVIDIA A100-SXM4-80GB", "A100-SXM-80GB"),
        ("Nvidia GH200 GPU", "GH200-96GB"),
        ("AMD Instinct MI300X", "MI300X"),
    ],
)
def test_a_gpu_is_found_as_result_files_spell_it(name: str, row_id: str) -> None:
    assert catalog.gpu(name).id == row_id


@pytest.mark.parametrize(
    ("name", "row_id"),
    [
        ("bfloat16", "bf16"),
        ("BF16", "bf16"),
        ("fp16/bf16", "bf16"),
        ("float16", "fp16"),
        ("float8", "fp8"),
        ("AWQ-4bit", "awq-int4"),
        ("GPTQ-4bit", "gptq-int4"),
        ("HQQ-4bit", "hqq-int4"),
        ("w4a16", "int4"),
        ("w8a8", "int8"),
    ],
)
def test_a_precision_is_found_as_result_files_spell_it(name: str, row_id: str) -> None:
    assert catalog.precision(name).id == row_id


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8",
            ("Qwen/Qwen3-235B-A22B-Instruct-2507", "fp8-block"),
        ),
        ("Qwen/Qwen3-8B", ("Qwen/Qwen3-8B", None)),
        (
            "nvidia/NVIDIA-Nemotron-Nano-12B-v2-VL-BF16",
            ("nvidia/NVIDIA-Nemotron-Nano-12B-v2-VL-BF16", "bf16"),
        ),
        ("Codestral-22B-v0.1_4bits64gs_HQQ", ("mistralai/Codestral-22B-v0.1", "hqq-int4")),
        (
            "neuralmagic/Meta-Llama-3.1-8B-Instruct-quantized.w8a8",
            ("meta-llama/Llama-3.1-8B-Instruct", "int8"),
        ),
        ("openai/gpt-oss-120b", ("openai/gpt-oss-120b", None)),
    ],
)
def test_the_precision_in_a_name_is_told_from_the_llm(
    name: str, expected: tuple[str, str | None]
) -> None:
    assert catalog.split_precision(name) == expected


def test_a_misspelt_llm_is_answered_with_the_nearest_and_how_to_add_one() -> None:
    with pytest.raises(UnknownNameError) as caught:
        catalog.llm("Llama-3.1-8B-Instrct")
    assert "Did you mean meta-llama/Llama-3.1-8B-Instruct" in str(caught.value)
    assert "energylens llm add config.json" in str(caught.value)


def test_a_misspelt_gpu_or_precision_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="H100"):
        catalog.gpu("H1000")
    with pytest.raises(UnknownNameError, match="fp8"):
        catalog.precision("fp7")


def test_no_two_rows_share_an_id_or_an_alias() -> None:
    for rows in (catalog.llms(), catalog.gpus(), catalog.precisions()):
        names = [name.lower() for row in rows.values() for name in (row.id, *row.aliases)]
        assert len(names) == len(set(names))


def test_the_catalog_cannot_be_changed_from_outside() -> None:
    with pytest.raises(TypeError):
        catalog.llms()["mine"] = catalog.llm("Qwen3-8B")  # type: ignore[index]


def test_importing_the_catalog_reads_no_file() -> None:
    code = "import sys, energylens.catalog; print('tomllib' in sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600
    )
    assert out.stdout.strip() == "False"


# ------------------------------------------------------------------------ the user's catalog

SMALL = Llm(
    id="my/llm",
    layers=2,
    hidden_size=64,
    vocabulary_size=100,
    total_parameters=60_000,
    active_parameters=60_000,
    attention=Attention(layers=2, heads=4, kv_heads=2, head_size=16),
    feed_forward=FeedForward(layers=2, size=128),
    aliases=("mine",),
    source="a file",
    date="2026-01-01",
)


def test_a_row_of_the_users_own_is_found_at_once_and_kept_beside_others(home: Path) -> None:
    with pytest.raises(UnknownNameError):
        catalog.llm("my/llm")
    path = catalog.add_llm(SMALL)
    assert path == home / "llms.toml"
    assert catalog.llm("mine") == SMALL
    other = dataclasses.replace(SMALL, id="my/other", aliases=())
    catalog.add_llm(other)
    assert catalog.llm("my/llm") == SMALL
    assert catalog.llm("other") == other
    assert [entry.name for entry in home.iterdir()] == ["llms.toml"]


def test_adding_a_row_again_replaces_it(home: Path) -> None:
    catalog.add_llm(SMALL)
    catalog.add_llm(dataclasses.replace(SMALL, vocabulary_size=200))
    assert catalog.llm("my/llm").vocabulary_size == 200
    assert (home / "llms.toml").read_text().count("[[llm]]") == 1


def test_comments_in_the_users_file_survive_the_next_row(home: Path) -> None:
    (home / "llms.toml").write_text("# mine\n")
    catalog.add_llm(SMALL)
    catalog.add_llm(dataclasses.replace(SMALL, id="my/other", aliases=()))
    assert (home / "llms.toml").read_text().startswith("# mine\n")
    assert catalog.llm("my/llm") == SMALL


def test_a_row_of_the_users_own_wins_over_a_packaged_one() -> None:
    mine = dataclasses.replace(SMALL, id="Qwen/Qwen3-8B", aliases=())
    catalog.add_llm(mine)
    assert catalog.llm("Qwen3-8B") == mine
    alias = dataclasses.replace(SMALL, aliases=("Qwen3-14B",))
    catalog.add_llm(alias)
    assert catalog.llm("Qwen3-14B") == alias


def test_a_short_name_that_two_rows_share_leads_to_neither() -> None:
    catalog.add_llm(SMALL)
    catalog.add_llm(dataclasses.replace(SMALL, id="your/llm", aliases=()))
    with pytest.raises(UnknownNameError, match=r"my/llm|your/llm"):
        catalog.llm("llm")


def test_a_row_may_name_a_packaged_one_that_it_is_like(home: Path) -> None:
    (home / "llms.toml").write_text(
        '[[llm]]\nid = "my/tuned"\nlike = "Qwen/Qwen3-8B"\nvocabulary_size = 152000\n'
    )
    row, model = catalog.llm("tuned"), catalog.llm("Qwen/Qwen3-8B")
    assert (row.vocabulary_size, row.attention) == (152000, model.attention)
    assert row.aliases == ()
    assert row.source == ""


def test_a_gpu_of_the_users_own_is_found(home: Path) -> None:
    (home / "gpus.toml").write_text(
        '[[gpu]]\nid = "X1"\nmemory_bytes = 1e9\nmemory_bandwidth_bytes_per_s = 1e9\n'
        "bf16_flop_per_s = 1e12\ntdp_w = 10\n"
    )
    assert catalog.gpu("x1").tdp_w == 10


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[llm]\n", "cannot be read as TOML"),
        ("[[gpu]]\n", r"may hold \[\[llm\]\] tables and nothing else"),
        ("llm = 3\n", r"may hold \[\[llm\]\] tables and nothing else"),
        ("llm = [3]\n", "number 1: must be a table"),
        ('[[llm]]\nid = "a"\nlayer = 3\n', r"number 1 \(a\): unknown key 'layer'"),
        ('[[llm]]\nid = "a"\n', r"number 1 \(a\): Llm needs the key 'layers'"),
        ('[[llm]]\nid = "a"\nlike = "nobody"\n', "like must name an earlier row"),
        ('[[llm]]\nid = "a"\nlike = "Qwen/Qwen3-8B"\nlayers = "3"\n', "layers must be of type"),
        ('[[llm]]\nid = "a"\nlike = "Qwen/Qwen3-8B"\nlayers = 3.5\n', "layers must be of type"),
        ('[[llm]]\nid = "a"\nlike = "Qwen/Qwen3-8B"\nlayers = true\n', "layers must be of type"),
        ('[[llm]]\nid = "a"\nlike = "Qwen/Qwen3-8B"\nlayers = -1\n', "layers must be a finite"),
        ('[[llm]]\nid = "a"\nlike = "Qwen/Qwen3-8B"\naliases = [1]\n', "aliases must be of type"),
        ('[[llm]]\nid = "a"\nlike = "Qwen/Qwen3-8B"\nvision = 1\n', "vision must be of type"),
        (
            '[[llm]]\nid = "a"\nlike = "Qwen/Qwen3-8B"\n'
            '[[llm]]\nid = "a"\nlike = "Qwen/Qwen3-8B"\n',
            r"number 2 \(a\): the id is already taken",
        ),
    ],
)
def test_a_corrupt_user_file_is_named_with_the_entry(home: Path, text: str, says: str) -> None:
    (home / "llms.toml").write_text(text)
    with pytest.raises(ArtefactError, match=says) as caught:
        catalog.llm("Qwen/Qwen3-8B")
    assert str(home / "llms.toml") in str(caught.value)


def test_a_corrupt_user_file_is_not_overwritten(home: Path) -> None:
    (home / "llms.toml").write_text("[[llm]\n")
    with pytest.raises(ArtefactError):
        catalog.add_llm(SMALL)
    assert (home / "llms.toml").read_text() == "[[llm]\n"


@pytest.mark.parametrize(
    "name",
    [
        "Qwen/Qwen3-8B",
        "meta-llama/Llama-4-Maverick-17B-128E",
        "deepseek-ai/DeepSeek-V2-Lite",
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        "Qwen/Qwen3-Omni-30B-A3B-Instruct",
        "tiiuae/falcon-mamba-7b",
    ],
)
def test_a_packaged_row_survives_writing_and_reading(name: str) -> None:
    row = dataclasses.replace(catalog.llm(name), id="my/copy", aliases=())
    catalog.add_llm(row)
    assert catalog.llm("my/copy") == row


sizes = st.integers(1, 10**9)
names = st.text(
    st.characters(exclude_categories=["C", "Zl", "Zp", "Zs"]), min_size=1, max_size=12
).filter(lambda name: bool(name.strip()))


@settings(max_examples=60, deadline=None)
@given(
    name=names,
    alias=names,
    source=st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    kv_heads=st.floats(0.1, 1e6),
    size=sizes,
)
def test_any_row_survives_writing_and_reading(
    name: str, alias: str, source: str, kv_heads: float, size: int
) -> None:
    row = dataclasses.replace(
        SMALL,
        id=name,
        aliases=(alias,),
        source=source,
        tied_embeddings=True,
        attention=Attention(
            layers=size,
            heads=size,
            kv_heads=kv_heads,
            head_size=size,
            window_tokens=size,
            window_layers=size,
        ),
        experts=Experts(layers=1, experts=size, active_experts=1, size=size, shared_size=3),
        state_space=StateSpace(layers=1, inner_size=size, state_size=size, heads=2),
        vision=Vision(
            parameters=size, layers=1, hidden_size=2, patch_pixels=14, patches_per_token=4.0
        ),
        count_exempt=source or None,
    )
    catalog.add_llm(row)
    assert catalog.llms()[name] == row


# ------------------------------------------------------------------- names in public results


@pytest.mark.skipif(not DATA.is_dir(), reason="the public result files are not here")
def test_every_name_in_the_public_result_files_is_known() -> None:
    for path in sorted((DATA / "mlenergy-v3" / "models").glob("*.json")):
        document = json.loads(path.read_text())
        catalog.llm(document["model_id"])
        catalog.precision(document["weight_precision"])
        for entry in document["configurations"]:
            catalog.gpu(entry["gpu_model"])
    for path in sorted((DATA / "mlenergy-v2").glob("*/*/*/*/*/*.json")):
        catalog.llm(f"{path.parts[-3]}/{path.parts[-2]}")
        catalog.gpu(path.parts[-4])
    for name in ("power.csv", "tp_pp_latency_no_power.csv"):
        with (DATA / "argonne" / name).open(newline="") as file:
            for line in csv.DictReader(file):
                catalog.llm(line["model"])
                catalog.gpu(line["gpu"])
    with (DATA / "energy-code-eval" / "batching_a100.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            assert catalog.llm(line["base_model"]) == catalog.llm(line["model"])
            stated = catalog.split_precision(line["model"])[1]
            assert catalog.precision(line["quant"]).id == (stated or "bf16")
            catalog.gpu(line["gpu"])


@pytest.mark.parametrize(
    ("name", "version", "expected"),
    [
        ("vllm", "0.5.4", "vLLM V0"),
        ("vllm", "0.5.3.post1", "vLLM V0"),
        ("vllm", "0.6.0", "vLLM 0.6 to 0.8"),
        ("vllm", "v0.8.4", "vLLM 0.6 to 0.8"),
        ("vLLM", "0.11.1rc2+cu128", "vLLM V1"),
        ("vllm", "0.22", "vLLM 2026"),
        ("vllm", "", "unknown"),
        ("vllm", "main", "unknown"),
        ("sglang", "", "SGLang 2026"),
        ("sglang", "0.5.6", "SGLang 2026"),
        ("transformers", "5.2", "transformers"),
        ("llama.cpp", "b1", "unknown"),
        ("", "", "unknown"),
    ],
)
def test_an_engine_is_of_the_generation_that_holds_its_version(name, version, expected):
    assert catalog.generation(Engine(name=name, version=version)).id == expected


def test_engine_generations_say_where_their_times_come_from():
    for row in catalog.generations().values():
        assert row.source
        assert row.date
        assert 1e-7 < row.launch_s < 1e-3
        assert 1e-7 < row.sequence_s < 1e-2
        assert 0 < row.spread <= 1.5


# ------------------------------------------------------------------------- names, GPUs of one's own


@pytest.mark.parametrize(
    ("look", "name", "first"),
    [
        (catalog.llm, "meta-llama/Llama-3.3-80B-Instruct", "meta-llama/Llama-3"),
        (catalog.llm, "Llama-3.9-70B", "meta-llama/Llama-3"),
        (catalog.llm, "Qwen/Qwen3-9B", "Qwen/Qwen3-"),
        (catalog.gpu, "H100-SXM-81GB", "H100-SXM"),
    ],
)
def test_suggestions_are_of_the_same_family(look, name, first):
    with pytest.raises(UnknownNameError) as caught:
        look(name)
    said = str(caught.value)
    assert f"Did you mean {first}" in said
    assert "CodeLlama" not in said


@pytest.mark.parametrize(
    ("name", "gpu", "watts"),
    [
        ("NVIDIA H20", "H20-SXM-96GB", 400),
        ("NVIDIA H800", "H800-SXM-80GB", 700),
        ("NVIDIA A800-SXM4-80GB", "A800-SXM-80GB", 400),
        ("NVIDIA L40", "L40", 300),
        ("NVIDIA A10G", "A10G", 300),
        ("NVIDIA GeForce RTX 5090", "RTX-5090", 575),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "RTX-PRO-6000-Server", 600),
        ("AMD Instinct MI250X", "MI250X", 560),
        ("AMD Instinct MI300A", "MI300A", 550),
    ],
)
def test_gpu_types_are_found_by_what_the_driver_calls_them(name, gpu, watts):
    row = catalog.gpu(name)
    assert (row.id, row.tdp_w) == (gpu, watts)
    assert row.source


def test_a_gpu_that_is_added_is_found_by_its_names(tmp_path, monkeypatch):
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path))
    mine = dataclasses.replace(catalog.gpu("H100"), id="H100-64", aliases=("NVIDIA H100 64",))
    path = catalog.add_gpu(mine)
    assert path == tmp_path / "gpus.toml"
    assert catalog.gpu("nvidia h100 64") == mine


def test_llms_that_are_added_at_once_are_all_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path))
    rows = [dataclasses.replace(SMALL, id=f"my/llm-{n}", aliases=()) for n in range(12)]
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(catalog.add_llm, rows))
    assert {row.id for row in rows} <= set(catalog.llms())


@pytest.mark.parametrize("name", ["evil\x1b[31m", "two\nlines"])
def test_names_that_would_reach_a_terminal_as_escapes_are_refused(name):
    with pytest.raises(InputError, match="names must be printable text"):
        dataclasses.replace(SMALL, id=name)


@pytest.mark.parametrize(
    "text",
    [
        "[[gpu]]\nid='x'\ntdp_w=" + "9" * 400,
        "[[gpu]]\nid='x'\ntdp_w=" + "9" * 5000,
        "gpu=" + "[" * 5000 + "]" * 5000,
        "gpu=" + "{a=" * 2000 + "1" + "}" * 2000,
    ],
)
def test_a_catalog_that_no_parser_should_meet_is_refused_in_one_sentence(
    text, tmp_path, monkeypatch
):
    monkeypatch.setenv("ENERGYLENS_HOME", str(tmp_path))
    (tmp_path / "gpus.toml").write_text(text)
    with pytest.raises(ArtefactError) as caught:
        catalog.gpu("H100")
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("spelt", "gpu"),
    [
        ("NVIDIA RTX 6000 Ada Generation", "RTX-6000-Ada"),
        ("NVIDIA RTX 5000 Ada Generation", "RTX-5000-Ada"),
        ("NVIDIA RTX A6000", "A6000"),
        ("NVIDIA RTX A5000", "A5000"),
        ("NVIDIA RTX A4000", "A4000"),
        ("NVIDIA GB10", "GB10"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L20", "L20"),
        ("Tesla T4", "T4"),
        ("NVIDIA H100 NVL", "H100-NVL-94GB"),
        ("NVIDIA H200 NVL", "H200-NVL-141GB"),
        ("NVIDIA B300 SXM6 AC", "B300"),
        ("NVIDIA GB300", "GB300"),
        ("NVIDIA GeForce RTX 3090 Ti", "RTX-3090-Ti"),
        ("NVIDIA GeForce RTX 4080", "RTX-4080"),
        ("NVIDIA GeForce RTX 5080", "RTX-5080"),
        ("AMD Instinct MI100", "MI100"),
        ("AMD INSTINCT MI250 (MCM) OAM AC MBA", "MI250"),
        ("AMD Instinct MI325X", "MI325X"),
        ("AMD Instinct MI350X", "MI350X"),
        ("AMD Instinct MI355X", "MI355X"),
        ("HL-225H", "Gaudi-2"),
        ("HL-325L", "Gaudi-3"),
    ],
)
def test_gpus_are_found_as_their_drivers_spell_them(spelt: str, gpu: str) -> None:
    assert catalog.gpu(spelt).id == gpu


@pytest.mark.parametrize("name", ["TPU v4", "TPU v5e", "Trainium2", "Ascend 910B", "Apple M2 Max"])
def test_what_is_no_gpu_is_near_to_none(name: str) -> None:
    with pytest.raises(UnknownNameError, match="gpu add") as refused:
        catalog.gpu(name)
    assert "Did you mean" not in str(refused.value)
