"""The series of releases, and their plot."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from tasks.release import BootKind, Latency, Release, UpstreamRelease
from tasks.restore import PLOTTED, drawn
from tasks.restore.plot import HEIGHT, SERIES, WIDTH
from tasks.store import Store
from tests.test_release import a_release

SVG = "{http://www.w3.org/2000/svg}"


def release(build: int) -> Release:
    return a_release().model_copy(update={"upstream": UpstreamRelease(build=build)})


def latency(after_idle_s: float, warm_s: float, kind: BootKind = BootKind.RESTORED) -> Latency:
    return Latency(stage="staging", kind=kind, health_s=0.4, after_idle_s=after_idle_s, warm_s=warm_s)


def dots(plot: str, build: str) -> dict[str, float]:
    """What each dot of a build says -> how high it is."""
    circles = ElementTree.fromstring(plot).iter(f"{SVG}circle")
    assert all(0 < float(c.attrib["cx"]) < WIDTH and 0 < float(c.attrib["cy"]) < HEIGHT for c in circles)
    titled = ((c.findtext(f"{SVG}title") or "", c) for c in ElementTree.fromstring(plot).iter(f"{SVG}circle"))
    return {title: HEIGHT - float(c.attrib["cy"]) for title, c in titled if title.startswith(build)}


def test_every_cycle_is_a_dot_in_each_series_and_the_slower_is_the_higher(store: Store) -> None:
    store.save_release(release(11401))
    for each in (latency(4.2, 0.06, BootKind.COLD), latency(0.5, 0.05), latency(0.4, 0.07)):
        store.add_latency(release(11401).id, each)
    height = dots(drawn(store), "b11401")
    assert len(height) == 3 * len(SERIES)
    by_seconds = sorted(height, key=lambda title: float(title.split()[-2]))
    assert sorted(height, key=lambda title: height[title]) == by_seconds


def test_the_latest_releases_are_plotted_in_the_order_of_their_builds(store: Store) -> None:
    for build in reversed(range(1, PLOTTED + 3)):
        store.save_release(release(build))
        store.add_latency(release(build).id, latency(0.5, 0.05))
    store.save_release(release(999))  # never probed
    words = [text.text or "" for text in ElementTree.fromstring(drawn(store)).iter(f"{SVG}text")]
    tags = [word for word in words if re.fullmatch(r"b\d{1,3}", word)]
    assert tags == [f"b{n}" for n in range(3, PLOTTED + 3)]


def test_there_is_a_plot_before_anything_was_measured(store: Store) -> None:
    assert ElementTree.fromstring(drawn(store)).tag == f"{SVG}svg"


def test_a_series_only_grows(store: Store) -> None:
    first, second = latency(0.5, 0.05), latency(0.4, 0.07)
    for each in (first, second):
        store.add_latency(release(1).id, each)
    store.forget(release(1))
    assert store.latencies(release(1).id) == [first, second]
    assert store.latencies(release(2).id) == []
