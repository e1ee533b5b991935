"""Tables of others by a mapping: units, separators, long and nested tables, drafted mappings."""

import json
import os
import re
from pathlib import Path

import pytest

from energylens.cli import main
from energylens.errors import ArtefactError, EnergyLensError, TableError
from energylens.importers import guess, quantities, table
from energylens.importers.collecting import Unusable
from energylens.importers.mapping import condition, parse_mapping

CASES = (
    Path(
        os.environ.get("ENERGYLENS_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
    ).parent
    / "cases"
    / "tables"
)
NOTHING = {"assume_input_tokens": {}, "assume_vision_tokens": {}}
HEAD = {
    "constants": {"source": "published", "gpu": "H100", "input_tokens": 100, "batch_size": 4},
    "columns": {"llm": "model", "output_tokens": "gen", "energy_per_request_j": "energy"},
}
QWEN = "Qwen/Qwen3-8B"


def read(tmp_path, text, mapping=None, name="t.csv", **more):
    path = tmp_path / name
    if isinstance(text, bytes):
        path.write_bytes(text)
    else:
        path.write_text(text, encoding="utf-8")
    document = HEAD if mapping is None else mapping
    return table.read(path, mapping=parse_mapping(document, "m.toml"), **(NOTHING | more))


def columns(**changes):
    return HEAD | {"columns": HEAD["columns"] | changes}


def joules(imported):
    return imported.dataset.energy_per_request_j.tolist()


# ---------------------------------------------------------------------------------- quantities


@pytest.mark.parametrize(
    ("cell", "decimal", "value", "unit"),
    [
        ("1,234.5 W", ".", 1234.5, "W"),
        ("12 ms", ".", 12, "ms"),
        ("1.303,5 kWh", ",", 1303.5, "kWh"),
        ("1 234 567,25", ",", 1234567.25, None),
        ("1'234.5", ".", 1234.5, None),
        ("55.4%", ".", 55.4, "%"),
        ("12.5 ± 0.3 J", ".", 12.5, "J"),
        ("2.5e3", ".", 2500, None),
        ("01:00:30", ".", 3630, "s"),
        (7, ".", 7, None),
        ("3 Watts", ".", 3, "W"),
        ("0.2 J/token", ".", 0.2, "J/token"),
    ],
)
def test_a_cell_is_a_number_and_its_unit(cell, decimal, value, unit):
    found = quantities.quantity(cell, "x", decimal)
    assert found.value == value
    assert (found.unit.name if found.unit else None) == unit


@pytest.mark.parametrize("cell", ["", "-", "N/A", "[N/A]", None, float("nan"), "nan"])
def test_a_cell_may_say_that_nothing_is_known(cell):
    assert quantities.quantity(cell, "x") is None


@pytest.mark.parametrize(
    "cell", ["abc", "-5", "1,23", "12 3", "1.2.3", "12 parsecs", "5 mj", True, [1], 10**400, "1e99"]
)
def test_what_is_no_quantity_makes_its_row_unusable(cell):
    with pytest.raises(Unusable):
        quantities.quantity(cell, "x")


def test_the_decimal_sign_is_told_by_the_numbers_or_asked_for():
    assert quantities.decimal_sign(["1,303 W", "15.21"], "t") == "."
    assert quantities.decimal_sign(["1.303", "15,21"], "t") == ","
    assert quantities.decimal_sign(["1.234.567"], "t") == ","
    assert quantities.decimal_sign(["1.303", "7", None, "x"], "t") == "."
    with pytest.raises(TableError, match=r"does not show whether '1,303 W' is a decimal"):
        quantities.decimal_sign(["1,303 W", "794 W"], "t")
    with pytest.raises(TableError, match=r"decimal comma .* and with a decimal point"):
        quantities.decimal_sign(["1,5", "1.5"], "t")


# ------------------------------------------------------------------------------ how it is written


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (f"model;gen;energy\n{QWEN};200;12,5\n{QWEN};200;1.300,25\n", "t.csv"),
        (f"model\tgen\tenergy\n{QWEN}\t200\t12.5\n{QWEN}\t200\t1,300.25\n", "t.tsv"),
        (
            f"| model | gen | energy |\n|:---|---:|---|\n| {QWEN} | 200 | 12.5 |\n"
            f"| {QWEN} | 200 | 1,300.25 |\n",
            "t.txt",
        ),
        (f"model|gen|energy\n{QWEN}|200|12.5\n{QWEN}|200|1300.25\n", "t.txt"),
        (f",model,gen,energy\n0,{QWEN},200,12.5\n1,{QWEN},200,1300.25\n", "t.csv"),
        (f'model, gen, energy\n{QWEN}, 200, "12.5 J"\n{QWEN}, 200, "1,300.25 J"\n', "t.csv"),
        (f"model;gen;energy\n{QWEN};200;12,5\n{QWEN};200;1300,25\n".encode("utf-16"), "t.csv"),
        (
            json.dumps(
                [
                    {"model": QWEN, "gen": 200, "energy": 12.5},
                    {"model": QWEN, "gen": "200", "energy": "1.30025 kJ"},
                ]
            ),
            "t.json",
        ),
        (
            json.dumps({"model": [QWEN] * 2, "gen": [200, 200], "energy": [12.5, 1300.25]}),
            "t.json",
        ),
    ],
    ids=["semicolon", "tab", "markdown", "pipe", "index", "blanks", "utf-16", "json", "columns"],
)
def test_separators_decimals_and_json_are_told_by_the_file(tmp_path, text, name):
    assert joules(read(tmp_path, text, name=name)) == [12.5, 1300.25]


def test_a_separator_and_decimal_may_be_said(tmp_path):
    said = HEAD | {"file": {"separator": "semicolon", "decimal": ","}}
    assert joules(read(tmp_path, f"model;gen;energy\n{QWEN};200;1,303\n", said)) == [1.303]
    said = HEAD | {"file": {"separator": ";", "decimal": "."}}
    assert joules(read(tmp_path, f"model;gen;energy\n{QWEN};200;1,303\n", said)) == [1303]
    with pytest.raises(TableError, match="may be separated by"):
        read(tmp_path, f"model;gen|energy\n{QWEN};200|5\n")


def test_nested_json_is_read_by_its_paths(tmp_path):
    pytest.importorskip("jmespath")
    runs = [{"out": {"mean": n}, "energy": {"total kJ": n / 10}} for n in (100, 200)]
    document = {"meta": {"model": QWEN}, "results": {"runs": runs}}
    mapping = columns(
        llm={"root": "meta.model"},
        output_tokens="out.mean",
        energy_per_request_j={"column": 'energy."total kJ"', "scale": 1000},
    )
    mapping["file"] = {"rows": "results.runs[]"}
    imported = read(tmp_path, json.dumps(document), mapping, "t.json")
    assert joules(imported) == [10000, 20000]
    assert imported.dataset.cases.output_tokens.tolist() == [100, 200]
    astray = mapping | {"columns": mapping["columns"] | {"output_tokens": "out.median"}}
    with pytest.raises(TableError, match=r"unknown column 'out\.median'"):
        read(tmp_path, json.dumps(document), astray, "t.json")
    with pytest.raises(ArtefactError, match="is no JMESPath"):
        read(tmp_path, json.dumps(document), mapping | {"file": {"rows": "results["}}, "t.json")
    with pytest.raises(TableError, match="gives no list of rows there; it gives an object"):
        read(tmp_path, json.dumps(document), mapping | {"file": {"rows": "results"}}, "t.json")


# -------------------------------------------------------------------------------- what it says


@pytest.mark.parametrize(
    ("source", "row", "value"),
    [
        ({"column": "e", "multiply_by": "osl"}, "0.192,1024,10,2", 0.192 * 1024),
        ({"column": "e", "multiply_by": "output_tokens"}, "0.5,1024,10,2", 512.0),
        ({"column": "e", "divide_by": ["n", "gpus_used"]}, "600 Wh,1024,10,2", 600 * 3600 / 20),
        ({"column": "e", "multiply_by": "n", "divide_by": "batch_size"}, "5 W,1024,8 s,2", 10.0),
        ({"column": "e", "unit": "kWh", "divide_by": "n"}, "0.01,1024,10,2", 3600.0),
        ({"min": ["e", "n"]}, "7,1024,10,2", 7.0),
        ({"max": ["e", "n"]}, "7,1024,10,2", 10.0),
    ],
)
def test_joules_of_a_request_from_what_a_table_has(tmp_path, source, row, value):
    mapping = columns(energy_per_request_j=source, output_tokens="osl")
    imported = read(tmp_path, f"model,e,osl,n,gpus_used\n{QWEN},{row}\n", mapping)
    assert joules(imported) == pytest.approx([value], rel=1e-12)


@pytest.mark.parametrize(
    ("header", "row", "source", "words"),
    [
        ("energy_wh", "5", "energy_wh", r"says Wh, and .* is in J: say scale = 3600"),
        ("J_out_tok", "5", "J_out_tok", "joules a token"),
        ("energy (mj)", "5", "energy (mj)", "may be in MJ or mJ"),
        ("energy", "5 W", "energy", "its energy is in W; energy_per_request_j is in J"),
        ("energy", "5 s", "energy", "its energy is in s"),
        ("energy", "5 kWh", {"column": "energy", "scale": 10}, "states its unit, kWh: leave scale"),
        ("energy", "5 kWh", {"column": "energy", "unit": "J"}, "is in kWh, not in J"),
        ("energy", "5", {"column": "energy", "unit": "ergs"}, "'ergs' is no unit known here"),
        ("energy", "5", {"column": "energy", "divide_by": "zero"}, "its zero is 0"),
    ],
)
def test_a_unit_is_never_passed_over(tmp_path, header, row, source, words):
    text = f"model,gen,zero,{header}\n{QWEN},200,0,{row}\n"
    with pytest.raises(EnergyLensError, match=words):
        read(tmp_path, text, columns(energy_per_request_j=source))


def test_a_unit_in_the_name_of_a_column_may_be_overruled(tmp_path):
    mapping = columns(energy_per_request_j={"column": "energy_wh", "scale": 1})
    assert joules(read(tmp_path, f"model,gen,energy_wh\n{QWEN},200,5\n", mapping)) == [5]
    mapping = columns(energy_per_request_j={"column": "energy_wh", "unit": "Wh"})
    assert joules(read(tmp_path, f"model,gen,energy_wh\n{QWEN},200,5\n", mapping)) == [18000]


LONG = (
    "model,gpu_name,run,metric,value,unit\n"
    f"{QWEN},H100,1,energy,0.5,kWh\n{QWEN},H100,1,co2,80,g\n{QWEN},H100,1,duration,00:10:00,\n"
    f"{QWEN},H100,2,energy,0.6,kWh\n{QWEN},H100,2,co2,90,g\n"
)


def test_a_long_table_is_refused_filtered_or_pivoted(tmp_path):
    mapping = columns(output_tokens="run", energy_per_request_j={"column": "value", "unit": "unit"})
    with pytest.raises(TableError, match=r"long table: .*'metric'.* \(co2, duration, energy\)"):
        read(tmp_path, LONG, mapping)
    kept = read(tmp_path, LONG, mapping | {"where": {"metric": "energy"}})
    assert joules(kept) == [1.8e6, 2.16e6]
    assert "[where] keeps 2 of 5 rows." in kept.notes
    mapping = columns(output_tokens="run", energy_per_request_j="energy", ttft_s="duration")
    pivot = {"names": "metric", "values": "value", "units": "unit"}
    wide = read(tmp_path, LONG, mapping | {"file": {"pivot": pivot}})
    assert joules(wide) == [1.8e6, 2.16e6]
    assert wide.dataset.cases.ttft_s[0] == 600
    with pytest.raises(TableError, match="gives 'energy' a second time"):
        read(tmp_path, LONG + f"{QWEN},H100,1,energy,1,kWh\n", mapping | {"file": {"pivot": pivot}})
    with pytest.raises(
        TableError, match=r"no row has the metric .* there are co2, duration, energy"
    ):
        read(tmp_path, LONG, columns() | {"where": {"metric": "joules"}})


def test_rows_are_kept_by_cells_and_bounds(tmp_path):
    text = f"model,gen,energy,ok\n{QWEN},100,5,true\n{QWEN},200,6,false\n{QWEN},300,7,\n"
    for where, kept in (
        ({"gen": [100, 300]}, [5, 7]),
        ({"gen": {"above": 150}}, [6, 7]),
        ({"gen": {"above": 150, "below": 250}}, [6]),
        ({"ok": {"not": ["false", ""]}}, [5]),
        ({"ok": True}, [5]),
    ):
        assert joules(read(tmp_path, text, HEAD | {"where": where})) == kept
    where = {"gen": condition("gen", ["200"], "--where")}
    assert joules(read(tmp_path, text, where=where)) == [6]


def test_what_the_file_does_not_state_is_marked(tmp_path):
    imported = read(tmp_path, f"model,gen,energy\n{QWEN},200,5\n", declared={"engine": "vllm"})
    data = imported.dataset
    assert data.assumed.tolist() == ["input_tokens batch_size tensor_parallel boundary"]
    assert data.declared.tolist() == ["gpu engine"]
    assert data.origin.tolist() == ["t.csv"]
    assert any(
        note.startswith("Assumed, for the file does not state it") for note in imported.notes
    )
    known = HEAD | {"declared": {"tensor_parallel": 2, "boundary": "active_gpus"}}
    data = read(tmp_path, f"model,gen,energy\n{QWEN},200,5\n", known).dataset
    assert data.assumed.tolist() == ["input_tokens batch_size"]
    with pytest.raises(ArtefactError, match="energy_per_request_j is a column of the file"):
        read(tmp_path, f"model,gen,energy\n{QWEN},200,5\n", declared={"energy_per_request_j": 5})


def test_gpus_without_degrees_are_refused(tmp_path):
    with pytest.raises(EnergyLensError, match="gpus cannot be right"):
        read(tmp_path, f"model,gen,energy,n\n{QWEN},200,5,4\n", columns(gpus="n"))


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"file": {"separator": "xx"}}, "one character"),
        ({"file": {"decimal": ";"}}, "decimal must be"),
        ({"file": {"pivot": {"names": "a"}}}, "must give the columns names and values"),
        ({"file": {"pivot": "a"}}, "pivot must be a table"),
        ({"file": {"rows": 3}}, "must be a JMESPath"),
        ({"where": {"a": {"nott": 3}}}, "unknown key 'nott'"),
        ({"where": {"a": {"above": "x"}}}, "must be numbers"),
        ({"where": {"a": []}}, "must be a text or number"),
        ({"columns": {"ttft_s": {"column": "a", "min": ["b"]}}}, "one of these"),
        ({"columns": {"ttft_s": {"min": []}}}, "must name a column, or several"),
        ({"columns": {"ttft_s": {"column": "a", "unit": 3}}}, "must be text"),
        ({"constants": {"gpu": "a"}, "declared": {"gpu": "b"}}, "not both"),
        (
            {
                "columns": {
                    "ttft_s": {"column": "a", "multiply_by": "tpot_s"},
                    "tpot_s": {"column": "b", "multiply_by": "ttft_s"},
                }
            },
            "is made of itself",
        ),
    ],
)
def test_a_mapping_that_means_nothing_is_refused(document, words):
    with pytest.raises(ArtefactError, match=words):
        parse_mapping(document, "m.toml")


# -------------------------------------------------------------------------------- --guess

BENCH = (
    "Model;Hardware;TP;Concurrency;ISL;OSL;TTFT (ms);TPOT (ms);E2E latency;AvgPower;J_out_tok\n"
    f"{QWEN};H100;1;8;512;128;60;20,0;2,6;650 W;1,6504\n"
    f"{QWEN};H100;1;32;512;128;90;30,5;3,96;690 W;0,6671\n"
)


def test_a_mapping_is_drafted_from_names_and_sizes(tmp_path, capsys):
    path = tmp_path / "bench.csv"
    path.write_text(BENCH)
    out = tmp_path / "runs.csv"
    assert main(["import", "table", str(path), "--guess", "-o", str(out)]) != 0
    assert "say --yes if it is right" in capsys.readouterr().err
    assert not out.exists()
    assert not (tmp_path / "bench.toml").exists()
    assert main(["import", "table", str(path), "--guess", "--yes", "-o", str(out)]) == 0
    said = capsys.readouterr().err
    assert 'separator = ";"' in said
    assert 'decimal = ","' in said
    assert "137" in said or "211.25" in said
    drafted = table.table.read(out)
    assert drafted.energy_per_request_j.tolist() == pytest.approx([1.6504 * 128, 0.6671 * 128])
    assert drafted.cases.tpot_s.tolist() == pytest.approx([0.02, 0.0305])
    assert drafted.cases.request_latency_s.tolist() == pytest.approx([2.6, 3.96])
    assert drafted.cases.average_power_w.tolist() == [650, 690]
    # The mapping that was written reads the same.
    assert main(["import", "table", str(path), "-o", str(tmp_path / "again.csv")]) == 0
    assert (tmp_path / "again.csv").read_text() == out.read_text()
    assert main(["import", "table", str(path), "--guess", "--yes", "-o", str(out)]) != 0
    assert "there is a mapping already" in capsys.readouterr().err


def test_what_names_and_sizes_leave_open_is_asked(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(f"model,energy,latency\n{QWEN},5,200\n")
    draft = guess.draft(path)
    assert draft.missing == (
        "gpu",
        "batch_size",
        "input_tokens",
        "output_tokens",
        "energy_per_request_j",
    )
    assert any(question.startswith("energy_per_request_j") for question in draft.questions)
    assert any("in s or in ms?" in question for question in draft.questions)
    # With power, batch and a time in ms, 5 can only be joules.
    path.write_text(f"model,energy,latency_ms,power_w\n{QWEN},250,2000,500\n")
    said = {"gpu": "H100", "batch_size": 4, "input_tokens": 100, "output_tokens": 100}
    draft = guess.draft(path, said)
    assert not draft.missing
    assert draft.mapped.columns["energy_per_request_j"].column == "energy"
    assert draft.mapped.columns["request_latency_s"].unit == "ms"


def test_joules_of_a_whole_run_are_told_by_power_and_time(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "llm_name,gpu_type,batch,prompt_tokens,generated,requests,"
        "total energy (kWh),power,latency_s\n"
        f"{QWEN},H100,8,512,128,100,0.00434,500,2.5\n"
    )
    draft = guess.draft(path)
    source = draft.mapped.columns["energy_per_request_j"]
    assert source.divide_by == ("requests",)
    assert source.unit == "kWh"
    value = table.read(path, mapping=draft.mapped, **NOTHING).dataset.energy_per_request_j[0]
    assert value == pytest.approx(0.00434 * 3.6e6 / 100)


def test_a_nested_document_is_drafted_with_its_paths(tmp_path):
    pytest.importorskip("jmespath")
    runs = [
        {"load": {"concurrency": n}, "tokens": {"input_tokens": 512, "output_tokens": 128}}
        | {"energy_j": 100.0 / n}
        for n in (1, 2, 4)
    ]
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"model": QWEN, "gpu": "H100", "runs": runs}))
    draft = guess.draft(path)
    assert draft.missing == ()
    data = table.read(path, mapping=draft.mapped, **NOTHING).dataset
    assert data.energy_per_request_j.tolist() == [100, 50, 25]
    assert data.cases.batch_size.tolist() == [1, 2, 4]
    assert set(data.llm_ids) == {QWEN}


def test_how_a_file_is_written_may_be_said_on_the_command_line(tmp_path, capsys):
    path, out = tmp_path / "t.csv", tmp_path / "o.csv"
    path.write_text(f"model;gpu;batch;input;output;energy_j\n{QWEN};H100;8;500;200;1,200\n")
    words = ["import", "table", str(path), "--guess", "--yes", "-o", str(out)]
    assert main(words) == 1
    assert "does not show whether '1,200' is a decimal" in capsys.readouterr().err
    assert main([*words, "--decimal", "."]) == 0
    assert table.table.read(out).energy_per_request_j[0] == 1200
    assert main(["import", "table", str(path), "--decimal", ",", "-o", str(out)]) == 0
    assert table.table.read(out).energy_per_request_j[0] == 1.2
    assert main(["import", "table", str(path), "--separator", "xy", "-o", str(out)]) == 1
    assert "must be one character" in capsys.readouterr().err


def test_a_draft_alone_is_printed_and_nothing_is_written(tmp_path, capsys):
    path = tmp_path / "bench.csv"
    path.write_text(BENCH)
    assert main(["import", "table", str(path), "--guess"]) == 0
    printed = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [path]
    (tmp_path / "mine.toml").write_text(printed)
    words = ["import", "table", str(path), "--mapping", str(tmp_path / "mine.toml")]
    assert main([*words, "-o", str(tmp_path / "runs.csv")]) == 0
    capsys.readouterr()
    assert main(["import", "table", str(path), "--guess", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["mapping"], document["missing"]) == (printed, [])


def test_a_column_that_is_called_as_here_is_drafted_as_that(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "llm,gpu,batch_size,input_tokens,output_tokens,joules,energy_per_request_j,source\n"
        f"{QWEN},H100,8,500,200,7,240,measured\n"
    )
    draft = guess.draft(path)
    assert draft.mapped.columns["source"].column == "source"
    assert not draft.mapped.constants
    assert draft.mapped.columns["energy_per_request_j"].column == "energy_per_request_j"


def test_options_of_import_table_are_refused_elsewhere(capsys):
    assert main(["import", "argonne", "x.csv", "--guess", "-o", "y.csv"]) != 0
    assert "--guess is for import table" in capsys.readouterr().err
    assert main(["import", "argonne", "x.csv", "--gpu", "H100", "-o", "y.csv"]) != 0
    assert "leave --gpu out" in capsys.readouterr().err


# ------------------------------------------------------------------- tables that people publish


def published(name):
    path = CASES / name
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


def test_published_cells_with_units_and_thousands():
    data = table.read(published("inferencex-828.csv"), **NOTHING).dataset
    assert data.energy_per_request_j.tolist() == pytest.approx(
        [0.192 * 1024, 0.192 * 1024, 1.230 * 1024, 0.725 * 1024]
    )
    assert data.cases.average_power_w.tolist() == [794, 1205, 1275, 1382]
    assert data.cases.tensor_parallel.tolist() == [2, 4, 8, 8]


def test_a_published_long_table_is_refused_and_read_with_a_filter(tmp_path):
    path, naive = published("dfki-long-cut.csv"), published("dfki-long.toml")
    with pytest.raises(TableError, match="is a long table"):
        table.read(path, mapping=naive, **NOTHING)
    mapping = tmp_path / "m.toml"
    mapping.write_text(naive.read_text() + '[where]\nMetric = "Energy"\n')
    data = table.read(path, mapping=mapping, **NOTHING).dataset
    assert len(data) == 24
    assert data.energy_per_request_j[0] == pytest.approx(0.313152 * 36000)
    pivot = naive.read_text().replace('column = "Value"', 'column = "Energy"')
    pivot = '[file]\npivot = { names = "Metric", values = "Value" }\n' + pivot
    mapping.write_text(pivot)
    again = table.read(path, mapping=mapping, **NOTHING)
    assert sorted(joules(again)) == sorted(data.energy_per_request_j.tolist())


def test_what_a_published_table_lacks_is_marked_as_assumed():
    data = table.read(published("a800.csv"), **NOTHING).dataset
    assert len(data) == 15
    assert data.energy_per_request_j[0] == 4402.43
    for words in data.assumed:
        assert {"input_tokens", "tensor_parallel", "boundary"} <= set(words.split())


@pytest.mark.parametrize("header", ["Number of GPUs", "#GPUs", "# of GPUs", "NumGPUs", "GPUs"])
def test_counts_of_gpus_are_known_however_they_are_written(header: str) -> None:
    assert re.fullmatch(guess._NUMBERS["gpus"], guess.words_of(header))


@pytest.mark.parametrize(
    ("header", "factor", "said"),
    [
        ("Energy (Wh)", 1 / 3600, {"unit": "Wh"}),
        ("energy_wh_per_request", 1 / 3600, {"unit": "Wh"}),
        ("Wh/query", 1 / 3600, {"unit": "Wh"}),
        ("energy (mWh)", 1 / 3.6, {"unit": "mWh"}),
        ("energy_mWh_per_request", 1 / 3.6, {"unit": "mWh"}),
        ("energy_mwh", 1 / 3.6, {"unit": "mWh"}),  # of the two it may be, the one there can be
        ("energy_wh_per_batch", 8 / 3600, {"unit": "Wh", "divide_by": ("batch_size",)}),
        ("Energy per batch (J)", 8.0, {"divide_by": ("batch_size",)}),
        ("total_energy_kwh", 500 / 3.6e6, {"unit": "kWh", "divide_by": ("requests",)}),
        ("Wh per output token", 1 / 300 / 3600, {"multiply_by": ("output_tokens",)}),
        ("mWh/token (output)", 1 / 300 / 3.6, {"unit": "mWh/token"}),
        ("Wh per 1k output tokens", 1e3 / 300 / 3600, {"unit": "Wh/1k tokens"}),
        ("kWh per 1M output tokens", 1e6 / 300 / 3.6e6, {"unit": "kWh/1M tokens"}),
    ],
)
def test_a_draft_takes_the_unit_of_energy_by_its_name(tmp_path, header, factor, said):
    path = tmp_path / "mine.csv"
    names = f"model,gpu,batch_size,input_tokens,output_tokens,requests,{header}\n"
    rows = "".join(f"{QWEN},H100,8,512,300,500,{j * factor!r}\n" for j in (240.0, 110.0))
    path.write_text(names + rows)
    draft = guess.draft(path)
    source = draft.mapped.columns["energy_per_request_j"]
    assert {key: getattr(source, key) for key in said} == said
    assert draft.mapped.constants["source"] == "self_measured"
    (tmp_path / "mine.toml").write_text(draft.text)
    assert joules(table.read(path, **NOTHING)) == pytest.approx([240.0, 110.0])


def test_a_unit_before_what_it_is_of_is_not_passed_over(tmp_path):
    text = f"model,gen,energy_wh_per_request\n{QWEN},200,0.05\n"
    plain = HEAD | {
        "columns": {
            "llm": "model",
            "output_tokens": "gen",
            "energy_per_request_j": "energy_wh_per_request",
        }
    }
    with pytest.raises(TableError, match="Wh"):
        read(tmp_path, text, plain)
