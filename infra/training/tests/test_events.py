import json
from pathlib import Path

import pytest

from millrace_training import events
from millrace_training.failure import TrainingError
from tests.conftest import Sink

ASKED = events.Event("a-1", "/millrace/train-trigger", events.REQUESTED, time="2026-01-01T00:00:00Z")


def test_reply_ids_follow_the_rule_of_all_functions() -> None:
    # shared/events.ReplyID("/s", "1", "f")
    assert events.reply_id("/s", "1", "f") == "9de075eee1e0e1f4aca46e6822986160"
    completed, failed = (events.reply(ASKED, t, "m", {}).id for t in (events.COMPLETED, events.FAILED))
    assert completed != failed
    assert completed == events.reply(ASKED, events.COMPLETED, "m", {"other": 1}).id


def test_is_sent_in_binary_mode_until_it_is_taken(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events.time, "sleep", lambda _: None)
    sink.answers = [503, 429]
    asked = events.Event("a", "/s", events.REQUESTED, extensions={"partitionkey": "k"})
    events.send(events.reply(asked, events.COMPLETED, "modèle %", {"ä": 1}))
    assert len(sink.got) == 3
    assert sink.got[0] == sink.got[2]
    headers, body = sink.got[2]
    assert json.loads(body) == {"ä": 1}
    assert headers["ce-type"] == events.COMPLETED
    assert headers["ce-subject"] == "mod%C3%A8le %25"
    assert headers["ce-partitionkey"] == "k"
    assert headers["content-type"] == "application/json"


def test_is_given_up_when_it_is_refused(sink: Sink) -> None:
    sink.answers = [400]
    with pytest.raises(events.DeliveryError, match="answered 400"):
        events.send(events.reply(ASKED, events.FAILED, "m", {}))
    assert len(sink.got) == 1


def test_is_read_from_the_folder_of_a_job(tmp_path: Path) -> None:
    (tmp_path / "event").write_text(ASKED.structured())
    assert events.read(tmp_path) == ASKED


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "reading the event in"),
        ("[]", "is not a JSON object"),
        ('{"id":"1","source":"/s"}', "attribute type is required"),
        ('{"id":"","source":"/s","type":"t"}', "attribute id is required"),
        ('{"id":"1","source":"/s","type":"t"}', "the event is of type t, want dev.millrace.training.requested.v1"),
        (f'{{"id":"1","source":"/s","type":"{events.REQUESTED}","data":5}}', "data must be a JSON object"),
    ],
)
def test_says_what_is_wrong_with_an_event(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "event").write_text(text)
    with pytest.raises(TrainingError, match=message) as e:
        events.read(tmp_path)
    assert e.value.reason == "bad_request"
