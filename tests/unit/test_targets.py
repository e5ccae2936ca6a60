"""The setting EC2_TARGETS: Regions and accounts, read and checked."""

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from handler.errors import SettingsError
from handler.settings import Settings
from handler.targets import MOST_TARGETS, Target, targets_from

ROLE = "arn:aws:iam::210987654321:role/reconciler"
EXTERNAL_ID = "an:external/id-1"
CANARY = "canary+7"


def read(value: Any) -> tuple[Target, ...]:
    return targets_from(value if isinstance(value, str) else json.dumps(value))


def refused(value: Any) -> str:
    with pytest.raises(SettingsError) as refusal:
        read(value)
    return str(refusal.value)


def test_without_the_setting_nothing_is_listed() -> None:
    base = {"DATABASE_URL": "postgresql://role:word@db.example/platform"}
    assert Settings.from_env(base).ec2_targets == ()
    assert Settings.from_env(base | {"EC2_TARGETS": ""}).ec2_targets == ()
    assert Settings.from_env(base | {"EC2_TARGETS": '[{"region": "eu-west-1"}]'}).ec2_targets == (Target("eu-west-1"),)


def test_a_target_is_a_region_perhaps_with_a_role_in_another_account() -> None:
    whole = {"region": "us-gov-west-1", "role_arn": ROLE, "external_id": EXTERNAL_ID, "may_be_empty": True}
    assert read([{"region": "eu-west-1"}, whole, {"region": "eu-west-1", "role_arn": ROLE}]) == (
        Target("eu-west-1"),
        Target("us-gov-west-1", ROLE, EXTERNAL_ID, may_be_empty=True),
        Target("eu-west-1", ROLE),
    )


def test_a_targets_name_is_its_region_and_its_account_if_that_is_another() -> None:
    assert Target("eu-west-1").name == "eu-west-1"
    assert Target("eu-west-1", ROLE).name == "eu-west-1/210987654321"


@pytest.mark.parametrize(
    "arn",
    [
        "arn:aws-cn:iam::210987654321:role/reconciler",
        "arn:aws-us-gov:iam::210987654321:role/team/x+y=z,a.b@c-d_e",
        f"arn:aws:iam::210987654321:role/{'n' * 64}",
    ],
)
def test_a_role_of_each_partition_with_or_without_a_path_is_taken(arn: str) -> None:
    assert read([{"region": "eu-west-1", "role_arn": arn}])[0].role_arn == arn


@pytest.mark.parametrize(
    "region", ["eu-central-1", "ap-southeast-10", "us-gov-east-1", "eusc-de-east-1", "us-isob-east-1"]
)
def test_a_region_of_today_or_tomorrow_is_taken(region: str) -> None:
    assert read([{"region": region}])[0].region == region


IN: dict[str, Any] = {"region": "eu-west-1"}
OTHER: dict[str, Any] = {"region": "eu-west-1", "role_arn": ROLE}
NO_REGIONS: list[Any] = [
    *(None, 1, True, "", [], "eu", "eu-west", "EU-WEST-1", "eu-west-1 ", "eu-west-1\n", "eu-west-1.x.de/"),
]
NO_ROLES: list[Any] = [
    *(None, 1, "", "reconciler", ROLE.replace("role", "user"), ROLE.replace("aws", "gcp"), ROLE[:-11], ROLE + " "),
    *(ROLE.replace("2109", "210"), ROLE + "x" * 64, ROLE.replace("role/", "role/a b/"), ROLE + "\n"),
    ROLE.replace("210987654321", "٢10987654321"),
]
NO_EXTERNAL_IDS: list[Any] = [None, 1, "", "x", f"{CANARY} ", f"{CANARY}#", f"{CANARY}é", CANARY * 200]
NO_SWITCHES: list[Any] = [None, 0, 1, "true", []]
REFUSALS: list[tuple[Any, str, str]] = [
    # what is set, how the message begins, what it says
    ("{", "EC2_TARGETS: not JSON; expected ", '[{"region": "eu-west-1"}'),
    ("[" * 100_000, "EC2_TARGETS: not JSON; expected ", ""),
    ('[{"region": "eu-west-1", "region": "eu-west-2"}]', "EC2_TARGETS: not JSON", ""),
    ("[NaN]", "EC2_TARGETS: not JSON", ""),
    (f"[{'9' * 10_000}]", "EC2_TARGETS: not JSON", ""),
    ({}, "EC2_TARGETS: found a dict; expected ", f"a list of 1 to {MOST_TARGETS} targets"),
    ("null", "EC2_TARGETS: found nothing; expected ", ""),
    ([], "EC2_TARGETS: found 0 targets; expected ", f"a list of 1 to {MOST_TARGETS} targets"),
    ([IN] * (MOST_TARGETS + 1), f"EC2_TARGETS: found {MOST_TARGETS + 1} targets; expected ", ""),
    (["eu-west-1"], "EC2_TARGETS[0]: found 'eu-west-1'; expected ", "an object"),
    ([IN, None], "EC2_TARGETS[1]: found nothing; expected ", "an object"),
    ([{}], "EC2_TARGETS[0].region: found nothing; expected ", "a Region like eu-west-1"),
    ([IN | {"role": ROLE}], "EC2_TARGETS[0]: found the field 'role'; expected ", "region, role_arn, external_id"),
    ([IN | {"x" * 5000: 1}], "EC2_TARGETS[0]: found the field 'xxx", "…; expected "),
    *(([{"region": one}], "EC2_TARGETS[0].region: found ", "a Region like eu-west-1") for one in NO_REGIONS),
    *(
        ([IN, IN | {"role_arn": one}], "EC2_TARGETS[1].role_arn: found ", "arn:aws:iam::123456789012:role/name")
        for one in NO_ROLES
    ),
    *(
        ([OTHER | {"external_id": one}], "EC2_TARGETS[0].external_id: ", "2 to 1224 letters, digits")
        for one in NO_EXTERNAL_IDS
    ),
    ([IN | {"external_id": CANARY}], "EC2_TARGETS[0].external_id: found without role_arn; expected ", ""),
    *(([IN | {"may_be_empty": one}], "EC2_TARGETS[0].may_be_empty: found ", "true or false") for one in NO_SWITCHES),
    ([IN, OTHER, IN], "EC2_TARGETS[2]: found eu-west-1 again; expected ", "each Region and account once"),
    (
        [OTHER, OTHER | {"role_arn": ROLE + "-too", "may_be_empty": True}],
        "EC2_TARGETS[1]: found eu-west-1/210987654321 again; expected ",
        "",
    ),
]


@pytest.mark.parametrize(("value", "begins", "says"), REFUSALS, ids=str)
def test_what_cannot_be_meant_is_refused_by_its_place(value: Any, begins: str, says: str) -> None:
    message = refused(value)
    assert message.startswith(begins)
    assert says in message
    assert len(message) < 300
    assert message.isprintable()
    assert CANARY not in message


def test_the_most_targets_may_be_listed() -> None:
    roles = [f"arn:aws:iam::{number:012d}:role/reconciler" for number in range(MOST_TARGETS)]
    assert len(read([IN | {"role_arn": one} for one in roles])) == MOST_TARGETS


def test_no_external_id_is_shown() -> None:
    assert EXTERNAL_ID not in repr(Target("eu-west-1", ROLE, EXTERNAL_ID))


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from([ROLE, "eu-west-1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["region", "role_arn", "external_id", "may_be_empty"]) | st.text(), inner, max_size=4
        )
    ),
    max_leaves=8,
)


@given(anything.map(json.dumps) | st.text())
@example("\ud800")
@example('["\\ud800"]')
@example("[" + "1" * 5000 + "]")
def test_anything_is_a_list_of_targets_or_is_refused_by_name(text: str) -> None:
    try:
        targets = targets_from(text)
    except SettingsError as refusal:
        message = str(refusal)
        assert message.startswith("EC2_TARGETS")
        assert len(message) < 300
        assert message.isprintable()
    else:
        assert 1 <= len({one.name for one in targets}) == len(targets)
