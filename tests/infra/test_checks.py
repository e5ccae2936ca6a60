"""SAM, cfn-lint and checkov find nothing wrong with the template."""

import json
from typing import Any

import pytest

from tests.support.cloudformation import REGION
from tests.support.tools import run, tool

TEMPLATE = "infra/template.yaml"
TARGET = "infra/target.yaml"


def test_sam_finds_the_template_valid() -> None:
    said = run([tool("deploy", "sam"), "validate", "--lint", "--template", TEMPLATE, "--region", REGION])
    assert "valid SAM Template" in said


def test_cfn_lint_finds_nothing() -> None:
    assert run([tool("deploy", "cfn-lint"), TEMPLATE, TARGET]) == ""


@pytest.fixture(scope="module")
def checkov() -> Any:
    options = ["--framework", "cloudformation", "--skip-download", "--output", "json", "--soft-fail"]
    return json.loads(run([tool("checkov", "checkov"), "--file", TEMPLATE, TARGET, *options]))


def test_checkov_finds_nothing(checkov: Any) -> None:
    assert checkov["summary"]["passed"] > 20
    assert checkov["summary"]["parsing_errors"] == 0
    assert checkov["results"]["failed_checks"] == []


def test_every_skipped_check_has_a_reason_and_is_needed(checkov: Any, template: Any) -> None:
    skipped = {
        (one["resource"].rpartition(".")[2], one["check_id"]): one["check_result"]["suppress_comment"]
        for one in checkov["results"]["skipped_checks"]
    }
    assert all(skipped.values())
    wanted = {
        (name, one["id"])
        for name, resource in template["Resources"].items()
        for one in resource.get("Metadata", {}).get("checkov", {}).get("skip", [])
        if "EventInvokeConfig" not in name  # the translation copies the function's metadata
    }
    assert skipped.keys() == wanted
