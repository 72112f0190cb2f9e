"""Which file of a STAC item is the scene."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin, urlsplit
from urllib.request import url2pathname

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from geoseg import stac
from geoseg.errors import OptionsError
from geoseg.verbs.batch import batch, listed
from tests.conftest import make_scene
from tests.oracles import model_folder
from tests.test_cli import METRES, geoseg

COG = "image/tiff; application=geotiff; profile=cloud-optimized"
NAMES = st.text(st.characters(exclude_characters="/\0\\", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..")
)
PATHS = st.lists(st.one_of(NAMES, st.just(".."), st.just(".")), max_size=4).flatmap(
    lambda folders: NAMES.map(lambda name: "/".join([*folders, name]))
)


def item(number: int | str = 0, links: tuple[dict[str, str], ...] = (), **assets: dict[str, Any] | str) -> dict[str, Any]:
    """An Item; an asset that is only an href is a COG."""
    full = {key: {"href": asset, "type": COG, "roles": ["data"]} if isinstance(asset, str) else asset for key, asset in assets.items()}
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "id": f"item-{number}",
        "geometry": None,
        "properties": {"datetime": "2026-05-01T10:00:00Z"},
        "links": [{"rel": "collection", "href": "../collection.json"}, *links],
        "assets": full,
    }


def own(href: str) -> tuple[dict[str, str]]:
    return ({"rel": "self", "href": href},)


def write(folder: Path, content: Any, name: str = "items.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def collection(*items: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "FeatureCollection", "features": list(items), **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stac")


@given(st.lists(PATHS, max_size=5))
def test_relative_links_resolve_as_urls_do(folder: Path, relative: list[str]) -> None:
    """Oracle: ``urljoin`` from the file's own address."""
    path = folder / "items.json"
    expected = [Path(url2pathname(urlsplit(urljoin(path.as_uri(), "./" + quote(each))).path)) for each in relative]
    write(folder, collection(*(item(number, image="./" + quote(each)) for number, each in enumerate(relative))))
    assert stac.scenes(path) == expected


@given(PATHS, st.sampled_from(["file://", "file://localhost", "FILE:"]))
def test_absolute_paths_and_file_urls(folder: Path, relative: str, scheme: str) -> None:
    there = Path(os.path.normpath(f"/data/{relative}"))
    assume(there.is_relative_to("/data"))
    path = write(folder, item(image=f"{scheme}/data/{quote(relative)}"))
    assert stac.scenes(path) == [there]
    path = write(folder, item(links=own(f"{scheme}/elsewhere/item.json"), image=f"/data/{quote(relative)}"))
    assert stac.scenes(path) == [there]


@given(
    st.dictionaries(
        NAMES,
        st.tuples(
            st.sampled_from([COG, "image/tiff", "IMAGE/TIFF; application=geotiff", "image/tiffany", "image/jp2", "application/json", None]),
            st.sampled_from([None, [], ["data"], ["visual", "overview"], ["thumbnail"], ["data-mask"]]),
            st.sampled_from([".tif", ".TIFF", ".jp2"]),
        ),
        max_size=4,
    )
)
def test_the_only_geotiff_with_pixels_is_the_scene(folder: Path, assets: dict[str, tuple[str | None, list[str] | None, str]]) -> None:
    """Either exactly one fits, or the refusal names them all; and the same asset is found when it is named."""
    described = {
        key: {"href": f"./{number}{suffix}"} | ({"type": kind} if kind else {}) | ({} if roles is None else {"roles": roles})
        for number, (key, (kind, roles, suffix)) in enumerate(assets.items())
    }
    path = write(folder, item() | {"assets": described})
    fitting = [
        key
        for key, (kind, roles, suffix) in assets.items()
        if ((kind or "").lower().split(";")[0] == "image/tiff" or (kind is None and suffix != ".jp2"))
        and (not roles or "data" in roles or "visual" in roles)
    ]
    if len(fitting) == 1:
        assert stac.scenes(path) == [folder / described[fitting[0]]["href"]]
    else:
        with pytest.raises(OptionsError) as refusal:
            stac.scenes(path)
        assert all(key in str(refusal.value) for key in assets)
        assert ("several" in str(refusal.value)) == bool(fitting)
    for key in assets:
        assert stac.scenes(path, key) == [folder / described[key]["href"]]


def test_items_know_where_they_are(folder: Path) -> None:
    local = item(links=own(str(folder / "a" / "item.json")), image="./image.tif")
    beside = item(links=own("./b/item.json"), image="image.tif")
    served = item(links=own("https://stac.example/items/1"), image="c/image.tif")
    path = write(folder, collection(local, beside, served), "found.GeoJSON")
    assert listed(path) == [folder / name / "image.tif" for name in "abc"]


def test_a_name_with_percent_signs_is_taken_as_written_where_such_a_file_is(tmp_path: Path) -> None:
    path = write(tmp_path, collection(item(1, image="cover%2050.tif"), item(2, image="%" + 300 * "x")))
    assert stac.scenes(path)[0] == tmp_path / "cover 50.tif"
    (tmp_path / "cover%2050.tif").touch()
    assert stac.scenes(path)[0] == tmp_path / "cover%2050.tif"
    write(tmp_path, item(image=(tmp_path / "cover%2050.tif").as_uri()))
    assert stac.scenes(path) == [tmp_path / "cover%2050.tif"]


@pytest.mark.parametrize(
    "href",
    ["https://x.example/a.tif", "HTTP://x.example/a.tif", "s3://bucket/a.tif", "gs://b/a.tif", "file://server/share/a.tif", "file:a.tif"],
)
def test_what_is_not_on_this_machine_is_refused(folder: Path, href: str) -> None:
    with pytest.raises(OptionsError, match=r"'item-7': .* is not on this machine, and geoseg contacts no network; fetch it first"):
        stac.scenes(write(folder, collection(item(image="a.tif"), item(7, image=href))))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", r"expected value|Invalid JSON"),
        ("[" * 100_000, r"Invalid JSON"),
        ("[]", "expected a STAC Item or ItemCollection"),
        ("{}", "Unable to extract tag"),
        ('{"type": "Collection", "id": "flight"}', "'Collection' found using 'type'"),
        (json.dumps(collection({"type": "Feature", "id": "x"})), r"features\.0\.assets: Field required"),
        (json.dumps(collection(item(image={"type": COG}))), r"features\.0\.assets\.image\.href: Field required"),
        (json.dumps(collection(item(image=""))), r"features\.0\.assets\.image\.href: String should have at least 1"),
        (json.dumps(collection(item(image="a.tif"), item(5))), "'item-5' has no asset .*it has none at all"),
        (json.dumps(collection(item(image="a.tif"), links=[{"rel": "next", "href": "?page=2"}])), "is one page of several"),
    ],
)
def test_what_is_no_list_of_items_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "items.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(OptionsError, match=message):
        listed(path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionsError, match="cannot be read"):
        listed(tmp_path / "none.json")
    (tmp_path / "latin.json").write_bytes(b'{"type": "\xe9"}')
    with pytest.raises(OptionsError, match=r"latin\.json"):
        listed(tmp_path / "latin.json")


def test_an_asset_is_named_for_stac_items_that_have_it(tmp_path: Path) -> None:
    path = write(tmp_path, item(image="a.tif", dsm="b.tif"))
    assert listed(path, "dsm") == [tmp_path / "b.tif"]
    with pytest.raises(OptionsError, match="has no asset 'rgb'; name one of image, dsm with --asset"):
        listed(path, "rgb")
    with pytest.raises(OptionsError, match="this is no list of STAC items"):
        listed(tmp_path / "scenes.csv", "image")


def test_two_items_of_one_file_are_one_scene_and_no_items_none(tmp_path: Path) -> None:
    path = write(tmp_path, collection(item(1, image="a.tif"), item(2, image="./x/../a%2Etif")))
    assert len(set(listed(path))) == 1
    write(tmp_path, collection())
    with pytest.raises(OptionsError, match="no scene was given"):
        batch(listed(path), out=tmp_path)


def test_the_command_line_takes_stac_items(tmp_path: Path) -> None:
    photo = make_scene(tmp_path / "a photo.tif", np.full((3, 90, 120), 99, np.uint8), transform=METRES)
    model = model_folder(tmp_path / "tiny")
    twice = collection(item(1, image=photo.as_uri(), dsm="dsm.tif"), item(2, image=str(photo), dsm="dsm.tif"))
    path = write(tmp_path, twice)
    refused = geoseg("batch", "--manifest", path, "--out", tmp_path / "out")
    assert (refused.returncode, refused.stderr.count("several GeoTIFFs (image, dsm)")) == (2, 1)
    done = geoseg("batch", "--manifest", path, "--asset", "image", "--out", tmp_path / "out", "-m", model, "--no-quicklook")
    assert done.returncode == 0, done.stderr
    assert "1 scenes: 1 done." in done.stdout
    assert geoseg("batch", photo, "--asset", "image", "--out", tmp_path / "out").returncode == 2
