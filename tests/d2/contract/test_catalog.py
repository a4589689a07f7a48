from __future__ import annotations

import pytest

from vss2.d2.data import DatasetCatalog, Metadata, MetadataCatalog

NAME = "contract_catalog_set"


@pytest.fixture(autouse=True)
def _clean():
    yield
    DatasetCatalog.pop(NAME, None)
    MetadataCatalog.pop(NAME, None)


def test_get_calls_the_function_each_time():
    calls = []
    DatasetCatalog.register(NAME, lambda: calls.append(1) or [{"n": len(calls)}])
    assert calls == []
    assert DatasetCatalog.get(NAME) == [{"n": 1}]
    assert DatasetCatalog.get(NAME) == [{"n": 2}]


def test_register_refuses_a_taken_name_and_what_is_no_function():
    DatasetCatalog.register(NAME, lambda: [])
    with pytest.raises(AssertionError, match=NAME):
        DatasetCatalog.register(NAME, lambda: [])
    with pytest.raises(AssertionError):
        DatasetCatalog.register("another_" + NAME, [{}])
    assert "another_" + NAME not in DatasetCatalog


def test_unknown_data_set_lists_the_known_ones():
    DatasetCatalog.register(NAME, lambda: [])
    with pytest.raises(KeyError, match=NAME):
        DatasetCatalog.get("no_such_set")


def test_list_remove_pop_in_keys():
    DatasetCatalog.register(NAME, lambda: [])
    assert NAME in DatasetCatalog
    assert NAME in DatasetCatalog.list()
    assert NAME in DatasetCatalog.keys()  # noqa: SIM118 - keys() is part of the contract
    DatasetCatalog.remove(NAME)
    assert NAME not in DatasetCatalog
    DatasetCatalog.register(NAME, lambda: [1])
    assert DatasetCatalog.pop(NAME)() == [1]
    assert NAME not in DatasetCatalog.list()
    with pytest.raises(KeyError):
        DatasetCatalog.remove(NAME)


def test_metadata_is_made_at_first_sight_and_remembered():
    assert NAME not in MetadataCatalog
    metadata = MetadataCatalog.get(NAME)
    assert isinstance(metadata, Metadata)
    assert metadata.name == NAME
    assert MetadataCatalog.get(NAME) is metadata
    assert NAME in MetadataCatalog.list()
    MetadataCatalog.remove(NAME)
    assert MetadataCatalog.get(NAME) is not metadata
    assert MetadataCatalog.pop(NAME).name == NAME
    with pytest.raises(AssertionError):
        MetadataCatalog.get("")


def test_metadata_may_be_set_once():
    metadata = MetadataCatalog.get(NAME)
    metadata.stuff_classes = ["sky", "sea"]
    metadata.stuff_classes = ["sky", "sea"]
    with pytest.raises(AssertionError, match="cannot be set to a different value"):
        metadata.stuff_classes = ["sky"]
    assert metadata.stuff_classes == ["sky", "sea"]


def test_metadata_missing_attribute_names_the_present_ones():
    metadata = MetadataCatalog.get(NAME).set(ignore_label=255)
    with pytest.raises(AttributeError, match="ignore_label"):
        _ = metadata.stuff_colors
    assert not hasattr(metadata, "stuff_colors")


def test_metadata_get_set_as_dict():
    metadata = MetadataCatalog.get(NAME)
    assert metadata.set(ignore_label=255, evaluator_type="vss") is metadata
    assert metadata.get("ignore_label") == 255
    assert metadata.get("stuff_colors") is None
    assert metadata.get("stuff_colors", []) == []
    copied = metadata.as_dict()
    assert copied == {"name": NAME, "ignore_label": 255, "evaluator_type": "vss"}
    copied["ignore_label"] = 0
    assert metadata.ignore_label == 255
