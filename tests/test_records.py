"""Records: a site's name and its parts say the same, and no other name passes."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, is_dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import records
from unmask.errors import ConfigError, UnmaskError, listed
from unmask.records import ModelSource, Question, Site

sites = st.builds(Site, layer=st.integers(0, 10_000), point=st.sampled_from(records.LAYER_POINTS)) | st.builds(
    Site, layer=st.none(), point=st.sampled_from(("embed", "normalized"))
)


@settings(deadline=None)
@given(sites)
def test_parsing_a_name_gives_the_site_back(site: Site) -> None:
    assert Site.parse(site.name) == site


@settings(deadline=None)
@given(st.from_regex(r"blocks.\d{1,3}.hook_resid_(pre|post)\n?", fullmatch=True) | st.text(max_size=40))
def test_whatever_parses_is_the_name_of_what_it_parsed_to(name: str) -> None:
    try:
        site = Site.parse(name)
    except ConfigError as error:
        assert repr(name) in str(error)
    else:
        assert site.name == name


def test_names_are_transformerlens_names() -> None:
    assert Site(20, "resid_pre").name == "blocks.20.hook_resid_pre"
    assert Site(0, "resid_post").name == "blocks.0.hook_resid_post"
    assert Site(3, "z").name == "blocks.3.attn.hook_z"
    assert Site(3, "pattern").name == "blocks.3.attn.hook_pattern"
    assert Site(None, "embed").name == "hook_embed"
    assert Site(None, "normalized").name == "ln_final.hook_normalized"


def test_sites_sort_as_a_pass_reaches_them() -> None:
    found = [Site(None, "normalized"), Site(1, "resid_pre"), Site(0, "mlp_out"), Site(None, "embed"), Site(0, "z")]
    names = ["hook_embed", "blocks.0.attn.hook_z", "blocks.0.hook_mlp_out", "blocks.1.hook_resid_pre"]
    assert [site.name for site in sorted(found)] == [*names, "ln_final.hook_normalized"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "blocks.20.hook_resid_middle",
        "blocks.20.hook_embed",
        "blocks.{layer}.hook_resid_pre",
        "blocks.20.hook_normalized",
        "blocks.20.hook_z",
        "blocks.-1.hook_resid_pre",
        "blocks.x.hook_resid_pre",
        "blocks.007.hook_resid_pre",
        "blocks.٣.hook_resid_pre",
        "blocks.3.hook_resid_pre\n",
        " blocks.3.hook_resid_pre",
        "Blocks.3.hook_resid_pre",
        "blocksx3.hook_resid_pre",
        "blocks.3.hook_resid_prepost",
    ],
)
def test_an_unknown_site_is_named_beside_the_two_known_forms(name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Site.parse(name)
    message = str(caught.value)
    assert f"site {name!r} is not known" in message
    assert "blocks.L.hook_resid_pre" in message
    assert "blocks.L.hook_resid_post" in message


@settings(deadline=None)
@given(st.lists(sites, max_size=8))
def test_sites_sort_by_depth_as_numbers_not_as_names(found: list[Site]) -> None:
    layers = [site.depth[0] for site in sorted(found)]
    assert layers == sorted(layers)


def test_every_record_is_frozen_and_takes_no_new_attribute() -> None:
    kinds = [kind for kind in vars(records).values() if is_dataclass(kind) and isinstance(kind, type)]
    assert {Question, Site, ModelSource} <= set(kinds)
    for kind in kinds:
        record = object.__new__(kind)
        for name in [field.name for field in fields(kind)]:
            with pytest.raises(FrozenInstanceError):
                setattr(record, name, 1)
        assert not hasattr(record, "__dict__"), kind


def test_an_error_is_one_sentence_of_what_and_one_of_how_to_mend() -> None:
    error = UnmaskError("layer 9 is too deep.", mend="Choose from 0, 1. ")
    assert str(error) == "layer 9 is too deep. Choose from 0, 1."
    assert (error.what, error.mend) == ("layer 9 is too deep", "Choose from 0, 1")
    assert str(UnmaskError("nothing helps")) == "nothing helps."
    assert listed((1, "b")) == "1, b"
