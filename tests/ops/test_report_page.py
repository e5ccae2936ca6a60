"""The report's page in a real browser: what a person sees, hears and reaches, and what it may not do."""

import json
import shutil
from datetime import UTC, datetime
from typing import Any

import pytest

from ops.report.layout import document_of
from ops.report.page import page
from tests.ops.reports import cycle_log, explanation, flips, holding, poisoned, report
from tests.support.tools import run, tool

# Debian's name, and others'.
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

Facts = dict[str, dict[str, Any]]

DRY_RUN = report(
    "dry-run",
    candidates=5_000,
    checked=5_000,
    running=4_860,
    transition=4,
    dead=134,
    absent=1,
    unknown=1,
    skipped={"fresh_heartbeat": 2, "on_hold": 1},
    flips=flips(100),
    unrecorded=1,
    duration_ms=2_140,
)
BREAKER = report(
    candidates=9,
    checked=5,
    running=1,
    dead=4,
    deferred=4,
    breaker_open=True,
    deadline_hit=True,
    skipped={"breaker_open": 4},
    flips=flips(4, blocked=True),
    targets_failed=["eu-west-1"],
    restarts={"pending": 3, "blocked": 1, "refused": 1, "uncertain": 1, "unrecovered": 1},
    duration_ms=44_900,
)
DAY = [
    line
    for minute in range(60)
    for line in cycle_log(
        str(minute),
        f"2026-01-15T11:{minute:02}:07.123+00:00",
        [("workspace flipped", 1, "stopped, confirmed by a second probe")] if minute == 20 else [],
        checked=5,
        running=5,
        flipped=int(minute == 20),
        breaker_open=minute == 30,
        duration_ms=400 + minute,
    )
]
PAGES = {
    "dry-run": json.dumps(DRY_RUN),
    "few": json.dumps(report(candidates=5, checked=5, running=5)),
    "breaker": json.dumps(BREAKER),
    "day": "\n".join(DAY),
    "explanation": json.dumps(explanation()),
    "hold": json.dumps(holding()),
    "hostile": json.dumps(poisoned(DRY_RUN | {"flips": flips(3), "targets_empty": ["a"]})),
    "hostile-explanation": json.dumps(poisoned(explanation())),
}
# Were some markup to get into the page in spite of it all, it could do nothing.
INTRUDER = (
    "<script>window.tampered=true</script><img src='https://example.com/'><p style='color: red'>got in</p></main>"
)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Facts]:
    """What the browser sees of each page: on a light desktop and a dark phone."""
    if BROWSER is None:
        pytest.skip("there is no Chromium on this machine")
    where = tmp_path_factory.mktemp("pages")
    now = datetime(2026, 1, 15, 12, tzinfo=UTC)
    files = []
    for name, text in PAGES.items():
        html = page(document_of(text, "out.json"), source="out.json", now=now)
        files.append(where / f"{name}.html")
        files[-1].write_text(html, encoding="utf-8")
    files.append(where / "intruded.html")
    files[-1].write_text((where / "few.html").read_text().replace("</main>", INTRUDER), encoding="utf-8")
    command = [tool("browser", "python"), "-m", "tests.ops.tools.browser", "--browser", BROWSER, *map(str, files)]
    answer: dict[str, Facts] = json.loads(run(command))
    return answer


@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wrong_with_the_page(seen: dict[str, Facts], name: str) -> None:
    """By axe-core's rules (roles, names, contrast …); and no sideways scrolling, request, script or error."""
    for view, facts in seen[name].items():
        assert facts["violations"] == [], view
        assert (facts["overflow"], facts["clipped"]) == (0, []), view
        assert (facts["requests"], facts["said"], facts["scripts"]) == ([], [], 0), view


def test_hostile_texts_do_nothing(seen: dict[str, Facts]) -> None:
    for name in ("hostile", "hostile-explanation"):
        for facts in seen[name].values():
            assert not facts["tampered"]
            assert "<script>window.tampered=true</script>" in facts["text"]


def test_markup_that_got_in_could_do_nothing(seen: dict[str, Facts]) -> None:
    for facts in seen["intruded"].values():
        assert "got in" in facts["text"]
        assert not facts["tampered"]
        assert facts["requests"] == []
        assert len([one for one in facts["said"] if "Content Security Policy" in one]) >= 3


def test_the_page_is_light_or_dark_as_the_reader_likes_and_light_on_paper(seen: dict[str, Facts]) -> None:
    light, dark = (seen["dry-run"][view]["colours"] for view in ("desktop light", "phone dark"))
    assert (brightness(light["ground"]) > 200, brightness(light["text"]) < 100) == (True, True)
    assert (brightness(dark["ground"]) < 50, brightness(dark["text"]) > 200) == (True, True)
    assert brightness(seen["dry-run"]["desktop light"]["printed"]["text"]) < 100


def brightness(colour: str) -> float:
    """Return the mean of a colour's red, green and blue."""
    parts = [float(one) for one in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return sum(parts) / 3


def test_the_keyboard_reaches_everything_in_order(seen: dict[str, Facts]) -> None:
    order = seen["day"]["desktop light"]["focus"]
    assert all(one["seen"] for one in order), "whoever has the focus shows it"
    assert [one["name"] for one in order] == [
        "Skip to the findings",
        "Where the time went",
        "What was flipped, and why",
        "Doubts, and what else to look at in the end",
        "Cycle by cycle",
        "All cycles (60)",
    ]


def test_a_screen_reader_finds_its_way(seen: dict[str, Facts]) -> None:
    tree = seen["dry-run"]["desktop light"]["tree"]
    for said in (
        'heading "100 or more workspaces would be taken offline, to be restarted" [level=1]',
        'navigation "On this page"',
        'region "What would be flipped, and why"',
        'table "Workspaces that are flipped or adopted"',
        'columnheader "Instance"',
        'rowheader "00000000-0000-4000-8000-000000000100"',
    ):
        assert said in tree
    for view, facts in seen["dry-run"].items():
        assert facts["rows"] == facts["rows_with_roles"], f"a table stays one: {view}"
