"""The demo's command line, and which workspaces it says an event is about."""

import pytest

from sandbox import demo
from tests.support.tools import ROOT


@pytest.mark.parametrize(
    ("file", "whose"),
    [("install.json", "is for the installer"), ("sqs-state-changes.json", "is for the function that takes")],
)
def test_an_event_of_another_function_is_answered_in_words_before_anything_starts(
    file: str, whose: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        demo.main(["--event", str(ROOT / "events" / file)])
    assert whose in capsys.readouterr().err


@pytest.mark.parametrize("other", [["--explain", "healthy"], ["--json", "out.json"]], ids=" ".join)
def test_to_watch_goes_with_nothing_that_has_an_end(other: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        demo.main(["--watch", *other])
    assert "not allowed with argument" in capsys.readouterr().err
