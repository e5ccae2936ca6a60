"""Another cycle saves a doubt right after the flip: it had seen the instance dead before."""

from tests.contract.steps import doubt, flipped, save, soon
from tests.contract.subjects import Subject
from tests.unit.builders import instance, uuid


def test_a_doubt_is_forgotten_while_its_workspaces_restart_is_open(subject: Subject) -> None:
    store = flipped(subject, 1, 2, 3)
    subject.update(uuid(2), status="online")
    subject.update(uuid(3), instance_id=instance(4))
    save(store, doubt(1), doubt(2), doubt(3, instance_id=instance(4)))
    store.doubts.tend(soon())
    assert [one[0] for one in subject.doubts()] == [uuid(2), uuid(3)]
