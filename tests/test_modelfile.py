from __future__ import annotations

import copy
import json

import numpy as np
import pytest

from energylens import files, modelfile
from energylens.cases import Cases
from energylens.errors import ArtefactError
from energylens.fitting import FitOptions, fit, from_datasheet
from energylens.formula import NAMES, STRUCTURE


@pytest.fixture(scope="module")
def dataset(draw_cases, make_dataset):
    cases = Cases.of(draw_cases(60, gpus=("H100", "A100-SXM-80GB")))
    return make_dataset(cases, noise_ratio=0.1, power_w=500.0)


@pytest.fixture(scope="module")
def model(dataset):
    return fit(dataset, FitOptions(loss="huber"))


@pytest.fixture
def document(model):
    return copy.deepcopy(modelfile.to_json(model))


def resealed(document):
    """A document changed with intent: its seal fits again."""
    content = {key: value for key, value in document.items() if key != "seal"}
    return {**content, "seal": modelfile._seal(content)}


def refused(document, name="m.json"):
    with pytest.raises(ArtefactError) as caught:
        modelfile.from_json(document, name)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("m.json")
    return str(caught.value)


# ------------------------------------------------------------------------------ round trip


@pytest.mark.parametrize(
    "options",
    [
        FitOptions(),
        FitOptions(per=()),
        FitOptions(per=("llm", "precision"), loss="huber"),
        FitOptions(measured_power=True, prior="none"),
        FitOptions(extend=("length", "routing")),
    ],
    ids=["gpu", "pooled", "llm", "power", "extended"],
)
def test_a_model_comes_back_from_its_file_exactly(dataset, tmp_path, options):
    model = fit(dataset, options)
    path = tmp_path / "model.json"
    modelfile.save(model, path)
    again = modelfile.load(path)
    assert modelfile.to_json(again) == modelfile.to_json(model)
    assert again.scope == model.scope
    assert again.sources == {"measured": 60}
    assert np.array_equal(
        again.predict_energy_j(dataset.cases), model.predict_energy_j(dataset.cases)
    )
    for one, other in zip(
        again.interval_energy_j(dataset.cases), model.interval_energy_j(dataset.cases), strict=True
    ):
        assert np.array_equal(one, other)
    assert np.array_equal(
        again.sample_energy_j(dataset.cases, 3, 0), model.sample_energy_j(dataset.cases, 3, 0)
    )


def test_the_model_of_the_datasheet_can_be_kept_too(tmp_path):
    modelfile.save(from_datasheet(), tmp_path / "m.json")
    assert modelfile.load(tmp_path / "m.json").pooled.rows == 0


def test_the_file_names_its_data_its_version_and_its_formula(model, document):
    assert document["format"] == "energylens-model"
    assert document["version"] == 4
    assert document["structure"] == STRUCTURE
    assert document["dataset_digest"] == model.dataset_digest
    assert document["sources"] == {"measured": 60}
    assert document["options"]["loss"] == "huber"
    assert list(document["pooled"]["theta"]) == list(NAMES)
    assert set(document["groups"]) == {"A100-SXM-80GB", "H100-SXM-80GB"}


def test_other_spacing_and_order_are_the_same_model(document):
    text = json.dumps(dict(reversed(document.items())), separators=(", ", " :  "))
    again = modelfile.from_json(files.parse_json(text, "m.json"), "m.json")
    assert modelfile.to_json(again) == document


# ---------------------------------------------------------------- corrupt, foreign, from later


@pytest.mark.parametrize("foreign", [None, 3, "model", [], {}, {"format": "energylens-plan"}])
def test_another_file_is_told_from_a_model(foreign):
    assert "is not an energy model" in refused(foreign)


@pytest.mark.parametrize("version", [1, 2, 3, 5, 0, "3", None, True, 2.5])
def test_a_file_of_another_version_is_refused(document, version):
    document["version"] = version
    assert "model format version" in refused(document)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        (lambda d: d.pop("scope"), "scope"),
        (lambda d: d.update(more=1), "more"),
        (lambda d: d["pooled"].pop("theta"), "pooled.theta"),
        (lambda d: d["pooled"]["theta"].update(vision=-0.1), "pooled.theta.vision"),
        (lambda d: d["pooled"]["theta"].update(vision="1"), "pooled.theta.vision"),
        (lambda d: d["pooled"]["theta"].update(vision=float("nan")), "pooled.theta.vision"),
        (lambda d: d["pooled"].update(rows=-1), "pooled.rows"),
        (lambda d: d["pooled"].update(residuals_seen=[]), "pooled.residuals_seen"),
        (lambda d: d["pooled"].update(reach_doublings=0), "pooled.reach_doublings"),
        (lambda d: d["pooled"].update(within_ratio=-1), "pooled.within_ratio"),
        (lambda d: d["scope"]["ranges"].update(batch_size=[1.0]), "scope.ranges.batch_size"),
        (lambda d: d.update(per=["task"]), "per"),
        (lambda d: d.update(measured_power=1), "measured_power"),
        (lambda d: d["groups"].update(x={}), "groups.x"),
    ],
)
def test_what_is_not_as_it_must_be_is_named_by_its_place(document, change, where):
    change(document)
    assert f"is not a valid energy model: {where}" in refused(resealed(document))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["pooled"]["theta"].update(vision=0.123),
        lambda d: d.update(dataset_digest="0" * 64),
        lambda d: d["sources"].update(measured=61),
        lambda d: d.update(energylens_version="0.0.1"),
        lambda d: d.update(seal="0" * 64),
        lambda d: d["groups"].pop("H100-SXM-80GB"),
    ],
)
def test_a_file_that_was_changed_is_refused(document, change):
    change(document)
    assert "was changed or damaged" in refused(document)


def test_coefficients_of_another_formula_are_refused(document):
    document["structure"] = "2031.7"
    message = refused(resealed(document))
    assert "2031.7" in message
    assert STRUCTURE in message


@pytest.mark.parametrize("extensions", [["colour"], ["length"], ["length", "length"]])
def test_extensions_that_are_unknown_or_without_coefficients_are_refused(document, extensions):
    document["extensions"] = extensions
    refused(resealed(document))


def test_other_coefficients_than_the_twelve_are_refused(document):
    for part in (document["pooled"], document["groups"]["H100-SXM-80GB"]):
        spare = part["theta"].pop("vision")
        assert "must hold the 12 coefficients" in refused(resealed(document))
        part["theta"]["vision"] = spare
    document["pooled"]["theta"]["thirteenth"] = 1.0
    assert "must hold the 12 coefficients" in refused(resealed(document))


@pytest.mark.parametrize(
    "covariance", [[], [[]], [[1.0]], [[0.0] * 12] * 11, [[0.0] * 12] * 11 + [[0.0] * 11]]
)
def test_a_covariance_of_another_shape_is_refused(document, covariance):
    document["pooled"]["covariance"] = covariance
    assert "12 x 12 covariance" in refused(resealed(document))


def test_residuals_out_of_order_are_put_in_order(document):
    document["pooled"]["residuals_seen"].reverse()
    again = modelfile.from_json(resealed(document), "m.json")
    assert (np.diff(again.pooled.residuals_seen) >= 0).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x80\x81\x82", "is not UTF-8 text"),
        (b"{", "is not valid JSON"),
        (b"[1, 2", "is not valid JSON"),
        (b'{"format": NaN}', "NaN is not a number that JSON has"),
        (b'{"format": 1, "format": 2}', "the key 'format' is given twice"),
        (b"llm,gpu\n", "is not valid JSON"),
    ],
)
def test_a_file_that_is_no_json_is_refused(tmp_path, content, message):
    path = tmp_path / "m.json"
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=message):
        modelfile.load(path)


def test_a_torn_file_is_refused_wherever_it_is_torn(document):
    text = json.dumps(document)
    for cut in range(0, len(text), len(text) // 40):
        with pytest.raises(ArtefactError):
            modelfile.from_json(files.parse_json(text[:cut], "m.json"), "m.json")


def test_a_file_that_is_not_there_or_cannot_be_written_is_an_error_of_ours(model, tmp_path):
    with pytest.raises(ArtefactError, match="cannot be read"):
        modelfile.load(tmp_path / "absent.json")
    with pytest.raises(ArtefactError, match="cannot be written"):
        modelfile.save(model, tmp_path / "no folder" / "m.json")
    assert list(tmp_path.iterdir()) == []
