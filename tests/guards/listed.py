"""The safety guards: what each prevents, where it is in the code, and the test that fails without it.

The table in docs/safety.md is made from this list.
"""

from dataclasses import dataclass

from tests.guards.removal import Arguments, Code, Removal, Sql


@dataclass(frozen=True, slots=True)
class Guard:
    """A guard, what happens without it, its place in the code, how to remove it, and the test that notices."""

    name: str
    prevents: str
    file: str
    function: str
    removal: Removal
    test: str


_ASKING = "handler/restarts/asking.py"
_AWS_ERRORS = "handler/net/aws_errors.py"
_BOUNDED = "handler/net/bounded.py"
_CONNECT = "handler/net/connect.py"
_CANDIDATES = "handler/store/candidates.py"
_CONTROL_PLANE = "handler/probes/control_plane/probe.py"
_COVERAGE = "handler/domain/coverage.py"
_CYCLE = "handler/cycle.py"
_DECIDE = "handler/domain/decide.py"
_DOUBTS = "handler/domain/doubts.py"
_EC2 = "handler/probes/ec2/probe.py"
_EC2_API = "handler/probes/ec2/api.py"
_EC2_SEARCH = "handler/probes/ec2/search.py"
_EC2_TARGETS = "handler/probes/ec2/targets.py"
_EVIDENCE = "handler/domain/evidence.py"
_FLIP = "handler/store/flip.py"
_FLIPS = "handler/flips.py"
_HOLDS = "handler/store/holds.py"
_HTTP = "handler/net/http.py"
_INVOCATION = "handler/invocation.py"
_LEASE = "handler/store/lease.py"
_LIFE = "handler/domain/restarts.py"
_LIMITS = "handler/net/limits.py"
_MEMORY = "handler/store/memory.py"
_MODEL = "handler/domain/model.py"
_PHASES = "handler/phases.py"
_PLATFORM = "handler/restarts/platform.py"
_REQUEST = "handler/request.py"
_RESTARTS = "handler/store/restarts.py"
_ROW_SECURITY = "handler/store/row_security.py"
_SECRETS = "handler/net/secrets.py"
_SHARDS = "handler/domain/shards.py"
_SESSION = "handler/store/session.py"
_REMEMBERING = "handler/remembering.py"
_STATE_CHANGES = "handler/domain/state_changes.py"
_SQLSTATE = "handler/store/sqlstate.py"
_STORED_DOUBTS = "handler/store/doubts.py"
_TELEMETRY = "handler/telemetry.py"
_TLS = "handler/net/tls.py"
_TRANSACTION = "handler/store/transaction.py"
_WATCHES = "handler/store/watches.py"
_WATCHING = "handler/restarts/watching.py"

_TEST_SHARDS = "tests/integration/test_shards.py::"
_TEST_SHARDS_CONTRACT = "tests/contract/test_shards.py::"
_TEST_APP = "tests/unit/test_app.py::"
_TEST_ANSWERS = "tests/integration/test_restart_answers.py::"
_TEST_BREAKER = "tests/integration/test_absence_and_breaker.py::"
_TEST_CACHES = "tests/integration/test_caches.py::"
_TEST_CLOCK_JUMPS = "tests/integration/test_clock_jumps.py::"
_TEST_COLLATION = "tests/integration/test_collation.py::"
_TEST_CONCURRENCY = "tests/integration/test_concurrency.py::"
_TEST_CONNECTIONS = "tests/integration/test_connections.py::"
_TEST_CONTROL_PLANE = "tests/integration/test_control_plane.py::"
_TEST_COVERAGE = "tests/unit/test_coverage.py::"
_TEST_CRASHES = "tests/integration/test_crashes.py::"
_TEST_GROWTH = "tests/integration/test_growth.py::"
_TEST_LARGE = "tests/integration/test_large_answers.py::"
_TEST_LEAKS = "tests/integration/test_leaks.py::"
_TEST_LIMITS = "tests/unit/test_limits.py::"
_TEST_KEPT_BACK = "tests/integration/test_kept_back.py::"
_TEST_LOCKED = "tests/integration/test_locked_state.py::"
_TEST_NET = "tests/net/"
_TEST_DEADLINE = "tests/integration/test_deadline.py::"
_TEST_DECIDE = "tests/unit/test_decide.py::"
_TEST_ENTRY_POINT = "tests/integration/test_entry_point.py::"
_TEST_CYCLE = "tests/unit/test_cycle.py::"
_TEST_DECISIONS = "tests/unit/test_restart_decisions.py::"
_TEST_DOUBTS = "tests/unit/test_doubts.py::"
_TEST_STORED_DOUBTS = "tests/contract/test_doubts.py::"
_TEST_EC2 = "tests/integration/test_ec2.py::"
_TEST_EC2_PROBE = "tests/unit/test_ec2_probe.py::"
_TEST_EVENT_CYCLE = "tests/unit/test_event_cycle.py::"
_TEST_EVENTS_ATTACKED = "tests/integration/test_events_attacked.py::"
_TEST_FAILOVER = "tests/integration/test_failover.py::"
_TEST_FIELD = "tests/integration/test_field_reports.py::"
_TEST_FLIP_ERRORS = "tests/integration/test_flip_errors.py::"
_TEST_HOLD_IN_TIME = "tests/integration/test_hold_in_time.py::"
_TEST_HOLDS = "tests/integration/test_holds.py::"
_TEST_FLIPS = "tests/unit/test_flips.py::"
_TEST_HOSTILE = "tests/integration/test_hostile.py::"
_TEST_INTERLEAVINGS = "tests/isolation/test_interleavings.py::"
_TEST_PLATFORM = "tests/unit/test_platform.py::"
_TEST_RACES = "tests/integration/test_races.py::"
_TEST_REFUSALS = "tests/isolation/test_refusals.py::"
_TEST_REQUEST = "tests/unit/test_request.py::"
_TEST_RESTARTS = "tests/integration/test_restarts.py::"
_TEST_ROW_SECURITY = "tests/integration/test_row_level_security.py::"
_TEST_SEARCH_PATH = "tests/integration/test_search_path.py::"
_TEST_SESSION = "tests/integration/test_session.py::"
_TEST_SILENT = "tests/integration/test_silent_addresses.py::"
_TEST_SEARCH = "tests/unit/test_search.py::"
_TEST_SECRETS = "tests/unit/test_secrets.py::"
_TEST_SETS = "tests/isolation/test_sets.py::"
_TEST_STATE_CHANGES = "tests/integration/test_state_changes.py::"
_TEST_STATE_CHANGES_UNIT = "tests/unit/test_state_changes.py::"
_TEST_STOLEN_ROLE = "tests/integration/test_stolen_role.py::"
_TEST_STORE = "tests/contract/test_store.py::"
_TEST_STORED_RESTARTS = "tests/contract/test_restarts.py::"
_TEST_STORIES = "tests/integration/test_stories.py::"
_TEST_ATTACKS = "tests/integration/test_attacks.py::"
_TEST_TARGETS = "tests/integration/test_targets.py::"
_TEST_TELEMETRY = "tests/integration/test_telemetry.py::"
_TEST_TIMES = "tests/contract/test_times.py::"
_TEST_TELEMETRY_UNIT = "tests/unit/test_telemetry.py::"
_TEST_WORKER = "tests/unit/test_restart_worker.py::"

_BROKEN_ANSWER = f"{_TEST_CONTROL_PLANE}test_a_broken_answer_neither_raises_nor_confirms_a_suspicion"
_MOVES_ON = f"{_TEST_RACES}test_a_workspace_that_moves_on_before_the_flip_is_left_alone"
_WITHOUT_LEASE = f"{_TEST_REFUSALS}test_a_cycle_whose_lease_has_expired_writes_nothing"

_CHANGED_MEANWHILE = f"{_TEST_ROW_SECURITY}test_what_changes_right_before_restarts_are_cancelled_cancels_none"
_LEFT_IN_SESSION = f"{_TEST_SEARCH_PATH}test_what_somebody_left_in_a_pooled_session_counts_for_nothing"
_LOCKED_RESTART = f"{_TEST_LOCKED}test_a_locked_restart_that_is_not_to_be_asked_for_stays_as_it_is"
_LOCKED_ANSWER = (
    f"{_TEST_LOCKED}test_an_answer_that_a_lock_keeps_from_being_recorded_costs_no_other_and_is_not_asked_for_twice"
)
_MAY_HIDE = f"{_TEST_ROW_SECURITY}test_a_policy_that_may_hide_a_row_is_refused"

GUARDS = (
    # --- observe ---
    Guard(
        "fairness: order of ids",
        "where the database's language sorts text its own way, workspaces wait for three times as long",
        _CANDIDATES,
        "_CANDIDATES",
        Sql("DESC, workspaces.id", "DESC, id"),
        f"{_TEST_COLLATION}test_every_workspace_is_checked_in_its_turn",
    ),
    Guard(
        "fairness: half of the checks in turn",
        "dead workspaces without time to act on them take up all checks of a short cycle",
        _COVERAGE,
        "Queues.fair_order",
        Code("zip_longest(self.in_turn, self.brought_forward)", "[[*self.brought_forward, *self.in_turn]]"),
        f"{_TEST_COVERAGE}test_every_candidate_is_checked_in_turn_however_many_run_out_of_time"
        "_and_however_far_a_cycle_gets",
    ),
    Guard(
        "EC2: unknown state",
        "an instance in a state that EC2 adds later is taken for dead",
        _MODEL,
        "sighting_of",
        Code("VERDICT_OF_STATE.get(state)", "VERDICT_OF_STATE.get(state, Verdict.DEAD)"),
        f"{_TEST_EC2}test_a_state_that_ec2_did_not_have_yesterday_is_unknown",
    ),
    Guard(
        "EC2: failed call",
        "the instances of a failed call are taken for absent",
        _EC2,
        "Ec2Probe.ask",
        Code(
            "learnt | dict.fromkeys(missing, failure)",
            "learnt | dict.fromkeys(missing, Known(NOT_FOUND, deadline.now()))",
        ),
        f"{_TEST_EC2}test_an_unusable_answer_makes_only_its_own_instances_unknown",
    ),
    Guard(
        "EC2: throttling in any word",
        "an account without calls left gets dozens more, because each batch is split until it works",
        _AWS_ERRORS,
        "is_throttling",
        Code("_code(error) in THROTTLED_CODES", '_code(error) == "RequestLimitExceeded"'),
        f"{_TEST_EC2}test_throttling_in_any_word_slows_the_pace_and_splits_no_batch",
    ),
    Guard(
        "EC2: contradiction",
        "an instance that one listing calls running and, out of date, stopped is taken for dead",
        _EC2,
        "_agreed",
        Code("_CONTRADICTION", "later"),
        f"{_TEST_FIELD}test_an_instance_that_one_listing_calls_both_alive_and_dead_is_unknown",
    ),
    Guard(
        "EC2: instance id format",
        "a malformed id acts as a wildcard in a filter, or fails the call for all ids in it",
        _EC2,
        "by_instance",
        Code("INSTANCE_ID.fullmatch(workspace.instance_id)", "workspace.instance_id"),
        f"{_TEST_EC2}test_a_malformed_id_is_unknown_never_sent_and_affects_nobody_else",
    ),
    Guard(
        "EC2: status pages prove no death",
        "an instance that is not on the status pages is taken for dead",
        _EC2,
        "Ec2Probe.sightings",
        Code(
            "self._asked(recorded_by, deadline, fair_share(self._timeout_s, deadline))",
            '[(one, Known("terminated", deadline.now())) for one in recorded_by]',
        ),
        f"{_TEST_EC2}test_instances_missing_from_a_listing_are_asked_about_and_not_taken_for_dead",
    ),
    Guard(
        "evidence: as old as its page's arrival",
        "reading a large answer takes seconds of a small CPU, and an instance that was started meanwhile is flipped",
        _EC2_API,
        "Ec2Api._page",
        Code("answer.answered_at", "deadline.now()"),
        f"{_TEST_EC2_PROBE}test_a_sighting_is_as_old_as_the_page_that_names_it",
    ),
    Guard(
        "targets: every one has answered",
        "an instance of another Region or account is taken for absent because the first one does not know it",
        _EC2_SEARCH,
        "Search._moved_on",
        Code("case.waits_for and not case.found", "False"),
        f"{_TEST_SEARCH}test_where_an_instance_was_found_it_is_asked_for_first",
    ),
    Guard(
        "targets: a failed one",
        "while a Region is down, its instances are taken for absent and flipped",
        _EC2_SEARCH,
        "Search._of",
        Code("case.failure or Known(NOT_FOUND, case.missing_at)", "Known(NOT_FOUND, case.missing_at)"),
        f"{_TEST_TARGETS}test_while_a_target_fails_nobody_is_absent",
    ),
    Guard(
        "targets: an empty one",
        "a role in the wrong account finds nobody, and all instances of the right one are flipped",
        _EC2_TARGETS,
        "TargetsProbe._sighting",
        Code("learnt.state == NOT_FOUND and self._empty", "False"),
        f"{_TEST_TARGETS}test_while_a_target_is_empty_nobody_is_absent",
    ),
    Guard(
        "targets: one that had no time to answer",
        "an instance that a target was too late to look for is taken for absent",
        _EC2_SEARCH,
        "Search._moved_on",
        Code("case.cut_off and not (case.found or case.failure)", "False"),
        "tests/unit/test_targets_cut_short.py::test_nobody_is_absent_for_a_target_that_had_no_time_to_answer",
    ),
    Guard(
        "targets: found is what EC2 has a word for",
        "something that is not EC2 answers for a target, and its instances are taken for absent",
        _EC2_TARGETS,
        "TargetsProbe._noted",
        Code("VERDICT_OF_STATE.get(one.state) in FOUND", "one.state != NOT_FOUND"),
        "tests/unit/test_targets_cut_short.py::test_a_target_that_only_says_what_no_instance_does_has_found_nobody",
    ),
    Guard(
        "targets: what one has found",
        "an instance that one target has found costs calls at all others",
        _EC2_SEARCH,
        "Search.batch",
        Code("case.found", "False"),
        f"{_TEST_SEARCH}test_of_two_targets_that_know_an_instance_the_living_answer_wins",
    ),
    Guard(
        "targets: a living answer that may still come",
        "a workspace is flipped for one target's stale answer, while another one says that its instance runs",
        _EC2_SEARCH,
        "Search._moved_on",
        Code("case.under_way", "False"),
        f"{_TEST_TARGETS}test_if_two_know_an_instance_the_living_answer_wins",
    ),
    Guard(
        "targets: disagreement",
        "of two targets that say different things of an instance, the first to answer has it flipped",
        _EC2_SEARCH,
        "Search._of",
        Code("any(other.state != known.state for _, other in case.found)", "False"),
        f"{_TEST_TARGETS}test_if_two_know_an_instance_the_living_answer_wins",
    ),
    Guard(
        "targets: an absence is as old as the first answer",
        "an instance that was launched while other targets were asked is flipped for what the first one did not know",
        _EC2_SEARCH,
        "Search.answered",
        Code("min(case.missing_at, answer.answered_at)", "answer.answered_at"),
        f"{_TEST_SEARCH}test_not_found_counts_when_all_have_said_it_and_is_as_old_as_the_first_answer",
    ),
    Guard(
        "targets: credentials of their own",
        "our own account answers for another one, and says that none of its instances exists",
        "handler/process.py",
        "Process._ec2_probe",
        Code("self._roles.get(target.name)", "None"),
        "tests/integration/test_targets_of_moto.py::test_each_account_is_asked_in_its_region_with_its_own_credentials",
    ),
    Guard(
        "evidence: an absence is as old as its first page",
        "an instance that was launched while a listing was read is flipped for what its first page did not name",
        _EC2,
        "Ec2Probe.ask",
        Code("min(arrivals)", "max(arrivals)"),
        f"{_TEST_EC2_PROBE}test_an_absence_is_as_old_as_the_first_page_of_its_call",
    ),
    Guard(
        "HTTP: status code",
        "an error page that says `stopped` is believed",
        _CONTROL_PLANE,
        "ControlPlaneProbe._state",
        Code("answer.status not in SUCCESS or answer.status == HTTPStatus.PARTIAL_CONTENT", "False"),
        _BROKEN_ANSWER,
    ),
    Guard(
        "HTTP: no redirects",
        "another server answers, or receives the tokens",
        _HTTP,
        "HttpClient._send",
        Code(
            "self._session.send(prepared, stream=True, allow_redirects=False, **options)",
            "requests.Session().send(prepared, stream=True, allow_redirects=True, **options)",
        ),
        f"{_TEST_CONTROL_PLANE}test_no_redirect_is_followed",
    ),
    Guard(
        "HTTP: body limit",
        "an endless body fills the memory",
        _BOUNDED,
        "read_body",
        Code(
            "while len(content) <= limit:\n"
            "    part = response.read(limit + 1 - len(content), decode_content=False)\n"
            "    if not part:\n"
            "        return content\n"
            "    content += part",
            "while True:\n"
            "    part = response.read(1 << 20, decode_content=False)\n"
            "    if not part:\n"
            "        return content\n"
            "    content += part",
        ),
        _BROKEN_ANSWER,
    ),
    Guard(
        "HTTP: broken headers",
        "an answer that two servers would read differently is believed",
        _BOUNDED,
        "_BoundedResponse.begin",
        Code('raise http.client.HTTPException("broken headers")', "return"),
        _BROKEN_ANSWER,
    ),
    Guard(
        "HTTP: plain head",
        "headers that Python's parsers lose, such as a second length after CR CR LF, are not missed",
        _BOUNDED,
        "_BoundedResponse._head",
        Code("_HEAD.fullmatch(head)", 're.match(rb"(?s)[^ ]* +(?P<status>[0-9]+).*", head)'),
        f"{_TEST_NET}test_plain_answers.py::test_an_answer_that_is_not_plain_is_none",
    ),
    Guard(
        "HTTP: digits of a length",
        "a length of thousands of digits is taken for none, and whatever comes is believed",
        _BOUNDED,
        "_LENGTH",
        Code('re.compile(r"[0-9]{1,19}")', 're.compile(r"[0-9]+")'),
        f"{_TEST_NET}test_plain_answers.py::test_an_answer_that_is_not_plain_is_none",
    ),
    Guard(
        "HTTP: chunks where there can be none",
        "an answer that has no body for one server, and a verdict for the next, is believed",
        _BOUNDED,
        "_BoundedResponse.begin",
        Code("(codings and (self.version == _HTTP_1_0 or self.status in _WITHOUT_BODY))", "False"),
        _BROKEN_ANSWER,
    ),
    Guard(
        "HTTP: digits of a chunk's size",
        "a size that two servers would read differently is believed",
        _BOUNDED,
        "_CHUNK_SIZE",
        Code(
            r're.compile(rb"([0-9A-Fa-f]{1,16})[\t ]*+(?:;[\t -~\x80-\xff]*+)?\r\n")',
            r're.compile(rb"([^;\r\n]*)[^\n]*\n")',
        ),
        f"{_TEST_NET}test_plain_answers.py::test_chunks_that_are_not_plain_are_none",
    ),
    Guard(
        "HTTP: end of a chunk",
        "chunks that do not end where they say are believed",
        _BOUNDED,
        "_BoundedResponse._get_chunk_left",
        Code(r'self.fp.read(2) != b"\r\n"', "not self.fp.read(2)"),
        f"{_TEST_NET}test_plain_answers.py::test_chunks_that_are_not_plain_are_none",
    ),
    Guard(
        "AWS: parts of an answer",
        "three megabytes in EC2's place fill the memory, and Lambda ends the function",
        _LIMITS,
        "check",
        Code("elements * _BYTES_PER_ELEMENT + pieces * _BYTES_PER_PIECE > MOST_MEMORY", "False"),
        f"{_TEST_LIMITS}test_what_would_fill_the_memory_is_refused",
    ),
    Guard(
        "AWS: plain XML",
        "attributes, entities or depth fill the memory",
        _LIMITS,
        "check",
        Code("not is_plain_xml(body)", "False"),
        f"{_TEST_LIMITS}test_no_parser_sees_what_is_not_plain",
    ),
    Guard(
        "EC2: smaller batches",
        "instances with much to tell are never answered for, and their dead stay online",
        _EC2,
        "_PERHAPS_OF_ONE",
        Code("(Cause.SERVER_ERROR, Cause.OVERSIZE)", "(Cause.SERVER_ERROR,)"),
        f"{_TEST_LARGE}test_instances_that_are_too_much_for_one_answer_are_asked_about_in_smaller_batches",
    ),
    Guard(
        "JSON: duplicate keys",
        "an answer that contradicts itself is believed",
        _CONTROL_PLANE,
        "_without_duplicates",
        Code('raise ValueError("a key stands twice")', "return answer"),
        _BROKEN_ANSWER,
    ),
    Guard(
        "cache: asked anew",
        "a cache before the control plane answers what was true minutes ago",
        _CONTROL_PLANE,
        "_headers",
        Code('{"Accept": "application/json", "Cache-Control": "no-cache"}', '{"Accept": "application/json"}'),
        f"{_TEST_CACHES}test_a_cache_is_told_to_ask_anew",
    ),
    Guard(
        "cache: an answer's age",
        "a workspace is restarted because a cache still calls its instance terminated",
        _CONTROL_PLANE,
        "ControlPlaneProbe._state",
        Code('not _AGE_OF_NOW.fullmatch(answer.headers.get("Age", "0"))', "False"),
        f"{_TEST_CACHES}test_what_a_cache_says_of_nine_minutes_ago_is_no_answer",
    ),
    Guard(
        "cache: another instance",
        "a workspace is restarted for what is said of its old instance",
        _CONTROL_PLANE,
        "_parsed",
        Code('answer.get("instance_id", instance_id) != instance_id', "False"),
        f"{_TEST_CACHES}test_an_answer_about_another_instance_is_none",
    ),
    Guard(
        "control plane: instance ids of any length",
        "a workspace is restarted for what is said of the beginning of its instance id",
        _CONTROL_PLANE,
        "ControlPlaneProbe._state",
        Code("len(workspace.instance_id.encode(errors='surrogateescape')) > LONGEST_INSTANCE_ID", "False"),
        f"{_TEST_HOSTILE}test_an_instance_id_of_any_length_is_unknown_asks_nobody_and_stays",
    ),
    Guard(
        "HTTP: quoted instance id",
        "an instance id changes the path or the parameters of a request that carries tokens",
        _CONTROL_PLANE,
        "ControlPlaneProbe._get",
        Arguments('params={"instance_id": workspace.instance_id}', 'params=f"instance_id={workspace.instance_id}"'),
        f"{_TEST_CONTROL_PLANE}test_an_instance_is_asked_about_by_exactly_the_recorded_id",
    ),
    # --- decide ---
    Guard(
        "breaker: unknown does not count",
        "many workspaces without an answer keep the breaker closed",
        _DECIDE,
        "decide",
        Code("sighting.verdict is not Verdict.UNKNOWN", "True"),
        f"{_TEST_DECIDE}test_the_breaker_opens_when_too_many_look_dead",
    ),
    Guard(
        "breaker",
        "half of the fleet is restarted because the source of truth is wrong",
        _DECIDE,
        "decide",
        Code("action is Action.FLIP and breaker.open", "False"),
        f"{_TEST_BREAKER}test_when_too_many_look_dead_nobody_is_flipped_and_the_alarm_is_raised",
    ),
    Guard(
        "breaker: window",
        "the fleet is restarted in small steps, a few workspaces in each cycle",
        _DECIDE,
        "_breaker",
        Code("dict(fleet.acted_on)", "{}"),
        f"{_TEST_DECIDE}test_the_second_rule_counts_the_whole_fleet",
    ),
    Guard(
        "breaker: restarts",
        "while the breaker is open, the restarts of earlier flips go out",
        _LIFE,
        "before_probing",
        Code("now.breaker_open and not owed.restart.released", "False"),
        f"{_TEST_DECISIONS}test_before_a_call_the_row_has_the_first_say",
    ),
    Guard(
        "breaker: an override releases what its cycle owes again",
        "the restarts that did nothing wait behind the open breaker for ever, though somebody has overridden it",
        "handler/restarts/worker.py",
        "RestartWorker._steps",
        Arguments("released=release", "released=False"),
        f"{_TEST_ATTACKS}test_an_override_also_releases_the_restarts_that_are_owed_again",
    ),
    Guard(
        "breaker: nothing latches",
        "machines that run again, but whose rows stay offline, keep the breaker open over the dead",
        "handler/restarts/worker.py",
        "RestartWorker._steps",
        Code("self._now.breaker_open and not deadline.over()", "False"),
        f"{_TEST_KEPT_BACK}test_machines_that_run_again_close_the_breaker",
    ),
    Guard(
        "breaker: keeps back what nothing else does",
        "back-offs and the platform's own wish to be left alone keep the breaker open over the dead",
        _WATCHES,
        "_KEEP_BACK",
        Sql(
            "AND {MAY_BE_ASKED}",
            "AND due_at <= now() AND CAST(:grace_s AS float) IS NOT NULL AND CAST(:workspace_ids AS uuid[]) IS NULL",
        ),
        f"{_TEST_KEPT_BACK}test_what_waits_for_something_else_is_not_kept_back",
    ),
    Guard(
        "breaker: what was checked in turn",
        "workspaces that were brought forward because they look dead open the breaker",
        _COVERAGE,
        "Queues.only_in_turn",
        Code("set(self.in_turn).difference(self.brought_forward)", "set(self.in_turn)"),
        f"{_TEST_CYCLE}test_those_who_were_brought_forward_do_not_open_the_breaker",
    ),
    Guard(
        "breaker: what earlier cycles saw dead",
        "over a lost zone the breaker closes as soon as the platform takes the rows offline",
        _DECIDE,
        "_breaker",
        Code("{one: up for one, up in fleet.remembered.items() if one not in alive}", "{}"),
        f"{_TEST_DECIDE}test_the_second_rule_counts_the_whole_fleet",
    ),
    Guard(
        "absence: number of sightings",
        "two stale answers from EC2 cost a workspace its machine",
        _DECIDE,
        "gone_for_good",
        Code("sightings >= policy.sightings", "True"),
        f"{_TEST_DECIDE}test_two_sightings_over_a_long_time_are_not_enough",
    ),
    Guard(
        "absence: minimum age",
        "a new instance that EC2 does not list yet is taken for gone",
        _DECIDE,
        "gone_for_good",
        Code("age_s >= policy.min_age_s", "True"),
        f"{_TEST_DECIDE}test_many_sightings_in_a_short_time_are_not_enough",
    ),
    Guard(
        "absence: same instance",
        "the absence of an old instance counts against the new one",
        _DOUBTS,
        "absences",
        Code("earlier.instance_id != workspace.instance_id", "False"),
        f"{_TEST_DOUBTS}test_absences_are_added_up_for_one_instance",
    ),
    Guard(
        "absence: reset by a sign of life",
        "absences from before a sign of life still count",
        _DOUBTS,
        "_was_not_absent",
        Code("sighting.verdict in FOUND", "False"),
        f"{_TEST_DOUBTS}test_an_instance_that_is_found_was_not_absent",
    ),
    Guard(
        "absence: reset by the second probe",
        "absences still count although the second probe found the instance",
        _FLIPS,
        "FlipResults.seen_again",
        Code("one.sighting.verdict in verdicts", "False"),
        f"{_TEST_CYCLE}test_a_second_probe_that_finds_the_instance_resets_its_absence",
    ),
    Guard(
        "absence: narrowed cycles",
        "somebody who tries one workspace by hand three times has it restarted for one absence",
        _DECIDE,
        "decide",
        Code("earlier.sightings + (in_turn is not None)", "earlier.sightings + 1"),
        f"{_TEST_DECIDE}test_a_narrowed_cycle_does_not_count_its_own_look",
    ),
    Guard(
        "absence: expiry",
        "sightings that are hours apart are added up",
        _DOUBTS,
        "absences",
        Code("earlier.seen_s > ABSENCES_ADD_UP_SECONDS", "False"),
        f"{_TEST_DOUBTS}test_absences_are_added_up_for_one_instance",
    ),
    Guard(
        "absence: another instance is found",
        "the whole fleet is taken for gone when account, Region or credentials are wrong",
        _DECIDE,
        "decide",
        Code("any(sighting.verdict in FOUND for sighting in seen)", "True"),
        f"{_TEST_DECIDE}test_an_absence_alone_proves_nothing",
    ),
    Guard(
        "adoption: seen dead while it was up",
        "a workspace that somebody has taken offline is restarted",
        _DECIDE,
        "decide",
        Code(
            "action is Action.FLIP and sighting.workspace.offline and not _was_seen_dead(sighting, memory.doubts)",
            "False",
        ),
        f"{_TEST_DECIDE}test_an_offline_row_that_no_cycle_saw_dead_is_not_adopted",
    ),
    Guard(
        "adoption: nobody else is at it",
        "a workspace that the platform is restarting is restarted a second time",
        _DECIDE,
        "_may_still_be_taken",
        Code("not row.restarting", "True"),
        f"{_TEST_DECIDE}test_an_offline_row_is_adopted_only_while_nobody_is_at_it",
    ),
    Guard(
        "adoption: waits from when it was known dead and offline",
        "a machine that the platform has only just begun to restart is destroyed",
        _FLIP,
        "_OWN",
        Sql("min(offline_since) FILTER (WHERE {REMEMBERED_DEAD})", "min(offline_since)"),
        f"{_TEST_STORED_DOUBTS}test_an_adoption_waits_from_when_it_was_known_dead_and_offline",
    ),
    Guard(
        "adoption: waits anew after a day",
        "a machine that the platform has only just begun to restart is destroyed",
        _STORED_DOUBTS,
        "_SAVE",
        Sql("same_instance AND recent", "same_instance"),
        f"{_TEST_STORED_DOUBTS}test_an_adoption_waits_anew_if_nobody_saw_the_workspace_dead_for_a_day",
    ),
    Guard(
        "hold: at the decision",
        "a workspace on hold is flipped",
        _DECIDE,
        "decide",
        Code("action is Action.FLIP and sighting.workspace.on_hold", "False"),
        f"{_TEST_DECIDE}test_a_workspace_on_hold_is_not_flipped",
    ),
    # --- flip ---
    Guard(
        "second probe",
        "one wrong answer, or an instance that just started, costs a workspace its machine",
        _FLIPS,
        "Flipper._attempted",
        Code("confirms(first, second)", "True"),
        f"{_TEST_CYCLE}test_a_second_probe_that_does_not_confirm_prevents_the_flip",
    ),
    Guard(
        "evidence: expires",
        "a machine that was started again is destroyed for what a probe said twenty seconds ago",
        _EVIDENCE,
        "expiry",
        Code("sighting.answered_at + EVIDENCE_SECONDS", "sighting.answered_at + 3600.0"),
        f"{_TEST_FLIPS}test_machines_that_run_again_by_then_are_left_alone",
    ),
    Guard(
        "evidence: in the statement that writes",
        "a process that was frozen wakes up, and flips on what it saw before",
        _FLIP,
        "_WRITE",
        Sql("clock_timestamp() <= to_timestamp(not_after)", "not_after IS NOT NULL"),
        f"{_TEST_STORE}test_evidence_expires_after_five_seconds_by_the_databases_clock",
    ),
    Guard(
        "evidence: in the claim",
        "a process that was frozen wakes up, and has a machine restarted on what it saw before",
        _RESTARTS,
        "_CLAIM",
        Sql("AND clock_timestamp() <= to_timestamp(not_after)", "AND not_after IS NOT NULL"),
        f"{_TEST_STORED_RESTARTS}test_nothing_is_claimed_if_something_comes_after_the_decision",
    ),
    Guard(
        "second probe: dead stays dead",
        "an instance that was dead, and then not found, is flipped after one absence",
        _DECIDE,
        "confirms",
        Code("second.verdict is Verdict.DEAD", "second.verdict in (Verdict.DEAD, Verdict.ABSENT)"),
        f"{_TEST_RACES}test_an_instance_that_ec2_no_longer_calls_dead_at_the_second_look_saves_the_workspace",
    ),
    Guard(
        "flip: row lock",
        "a flip overwrites what the platform wrote after the re-read",
        _FLIP,
        "_LOCKED_ROWS",
        Sql("FOR NO KEY UPDATE SKIP LOCKED", ""),
        f"{_TEST_INTERLEAVINGS}test_a_flip_beside_another_writer_ends_as_if_one_of_them_had_gone_first",
    ),
    Guard(
        "flip: row lock without waiting",
        "one long transaction of the platform holds up all other flips",
        _FLIP,
        "_LOCKED_ROWS",
        Sql("SKIP LOCKED", ""),
        f"{_TEST_RACES}test_locked_rows_are_passed_over_at_once",
    ),
    Guard(
        "flip: re-read",
        "a workspace is flipped on data that is up to a minute old",
        _FLIP,
        "Flips.flip",
        Code("objection(now.row, workspace)", "None"),
        _MOVES_ON,
    ),
    Guard(
        "flip: written as told",
        "a flip that a trigger undoes counts as a flip, and nobody hears of it",
        _FLIP,
        "Flips._written",
        Code("not was_written or not is_offline", "False"),
        f"{_TEST_FIELD}test_a_flip_that_a_trigger_undoes_counts_as_an_error_and_leaves_nothing",
    ),
    Guard(
        "flip: an error of one row",
        "one row whose flip a trigger refuses keeps two hundred others from being flipped",
        _FLIPS,
        "Flipper._failed",
        Code("half and of_a_row and not self._hopeless", "False"),
        f"{_TEST_FLIPS}test_an_error_of_one_row_costs_that_row_alone",
    ),
    Guard(
        "flip: an error of all rows",
        "a trigger that refuses every flip uses up the cycle",
        _FLIPS,
        "Flipper._hopeless",
        Code("self._failed_alike[1] >= MOST_FAILURES_ALIKE", "False"),
        f"{_TEST_FLIPS}test_after_five_rows_that_fail_alike_no_set_is_split_any_more",
    ),
    Guard(
        "flip: status",
        "a paused, removed or hibernated workspace is restarted",
        _DECIDE,
        "_may_still_be_taken",
        Code("row.status in CANDIDATE_STATUSES", "True"),
        _MOVES_ON,
    ),
    Guard(
        "flip: runtime",
        "a workspace on an external machine is restarted",
        _DECIDE,
        "objection",
        Code("row.runtime == EXTERNAL", "False"),
        _MOVES_ON,
    ),
    Guard(
        "flip: same instance",
        "a workspace is flipped for its old instance, and its new instance is terminated",
        _DECIDE,
        "objection",
        Code("row.instance_id != workspace.instance_id", "False"),
        _MOVES_ON,
    ),
    Guard(
        "hold: at the re-read",
        "a dry run says that it would flip a workspace that is on hold",
        _DECIDE,
        "objection",
        Code("row.on_hold", "False"),
        f"{_TEST_HOLDS}test_a_hold_that_is_placed_before_the_flip_prevents_it",
    ),
    Guard(
        "hold: at the flip",
        "a workspace is flipped although it was put on hold after the re-read",
        _FLIP,
        "_WRITE",
        Sql("AND NOT on_hold AND NOT adopted", "AND NOT adopted"),
        f"{_TEST_SETS}test_a_hold_that_is_placed_before_the_write_exempts_its_own_workspaces_and_no_other",
    ),
    Guard(
        "hold: at the adoption",
        "a workspace is adopted although it was put on hold after the re-read",
        _FLIP,
        "_WRITE",
        Sql("AND NOT on_hold AND (adopted OR", "AND (adopted OR"),
        f"{_TEST_SETS}test_a_hold_that_is_placed_before_the_write_keeps_its_own_workspaces_from_being_adopted",
    ),
    Guard(
        "heartbeat: new since the SELECT",
        "a workspace is flipped although a heartbeat arrived during the cycle",
        _FLIP,
        "_current",
        Code("heartbeat_at != captured.last_heartbeat_at", "False"),
        _MOVES_ON,
    ),
    Guard(
        "heartbeat: later than the SELECT",
        "a workspace that sends heartbeats is flipped because the platform's clock is ahead",
        _FLIP,
        "_ROWS",
        Sql(
            "COALESCE(last_heartbeat_at > CAST(:selected_at AS timestamptz), false) OR",
            "CAST(:selected_at AS text) IS NULL OR",
        ),
        f"{_TEST_REFUSALS}test_a_heartbeat_later_than_the_select_prevents_the_flip_though_the_select_saw_it",
    ),
    Guard(
        "heartbeat: fresh",
        "a workspace that sends heartbeats is flipped between two of them",
        _FLIP,
        "_ROWS",
        Sql(
            "clock_timestamp() - make_interval(secs => :fresh_s)",
            "CAST('infinity' AS timestamptz) - make_interval(secs => :fresh_s)",
        ),
        f"{_TEST_RACES}test_a_young_heartbeat_prevents_a_flip_and_an_old_one_or_none_does_not",
    ),
    Guard(
        "lease: at the flip",
        "a process that was frozen wakes up, and flips on what it saw before",
        _FLIP,
        "_WRITE",
        Sql(
            "{lease_is_ours} AS lease_is_ours",
            "true OR CAST(:scope AS text) IS NULL OR CAST(:cycle_id AS text) IS NULL AS lease_is_ours",
        ),
        f"{_TEST_DEADLINE}test_a_process_that_was_frozen_past_its_lease_flips_nothing",
    ),
    Guard(
        "lease: one cycle at a time",
        "two cycles probe and act side by side, at twice the cost",
        _CYCLE,
        "run",
        Code(
            "not store.lease.acquire(deadline, lasts_s=closing.remaining())",
            "store.lease.acquire(deadline, lasts_s=closing.remaining()) is None",
        ),
        f"{_TEST_CONCURRENCY}test_a_second_cycle_says_at_once_that_another_is_running_and_the_first_completes",
    ),
    Guard(
        "events: an expiry in the write",
        "the process of an event's cycle was frozen, wakes up, and flips on what it saw before",
        _LEASE,
        "Expiry.condition",
        Sql("clock_timestamp() < to_timestamp(:expires_at)", "to_timestamp(:expires_at) IS NOT NULL"),
        f"{_TEST_SETS}test_an_expiry_that_passes_in_mid_transaction_flips_nobody",
    ),
    Guard(
        "events: a heartbeat after the death",
        "an event about a machine that nobody uses any more flips a workspace that lives",
        _FLIP,
        "_ROWS",
        Sql(
            "THEN to_timestamp({_DIED_AT} + {HEARTBEAT_ARRIVES_SECONDS})",
            "THEN CAST('infinity' AS timestamptz) + make_interval(secs => {HEARTBEAT_ARRIVES_SECONDS})",
        ),
        f"{_TEST_STATE_CHANGES}test_a_heartbeat_vetoes_only_if_it_came_more_than_five_seconds_after_the_death",
    ),
    Guard(
        "events: a time of now",
        "an event whose time is wrong flips a workspace between two of its heartbeats",
        _FLIP,
        "_ROWS",
        Sql("BETWEEN {_NOW_S} - {OLDEST_EVENT_SECONDS} AND {_NOW_S}", "> 0 * {OLDEST_EVENT_SECONDS}"),
        f"{_TEST_STATE_CHANGES}test_the_time_of_an_event_that_is_late_or_of_the_future_counts_for_nothing",
    ),
    Guard(
        "events: a time of a death",
        "an event of another state has a workspace flipped between two of its heartbeats",
        _STATE_CHANGES,
        "merged",
        Code("VERDICT_OF_STATE.get(change.state) is Verdict.DEAD", "True"),
        f"{_TEST_STATE_CHANGES}test_an_event_that_calls_a_dead_instance_alive_flips_it_by_the_ordinary_rule",
    ),
    Guard(
        "events: every time is readable",
        "of two events about one instance, the one with a time hides the one without",
        _STATE_CHANGES,
        "merged",
        Code("one.at is None", "False"),
        f"{_TEST_STATE_CHANGES_UNIT}test_of_several_events_the_latest_time_counts_if_all_tell_of_a_death_at_some_time",
    ),
    Guard(
        "events: silence before the restart",
        "a workspace that lives on a machine which its row does not record is restarted before its next heartbeat",
        _CYCLE,
        "flip_policy",
        Code("max(restarts.grace_s, settings.heartbeat_fresh_seconds)", "restarts.grace_s"),
        f"{_TEST_STATE_CHANGES}test_the_restart_is_due_after_a_silence_however_short_the_grace",
    ),
    Guard(
        "events: the silence is no wrong time",
        "a restart comes long before the silence is over, because a full cycle takes its time for a wrong clock's",
        _LIFE,
        "longest_wait",
        Code("silence_s", "0.0"),
        f"{_TEST_EVENTS_ATTACKED}test_full_cycles_do_not_shorten_the_silence_that_a_restart_waits_for",
    ),
    Guard(
        "events: no restart",
        "an event asks for restarts, beside a full cycle that does the same",
        _REQUEST,
        "Request.asks_for_restarts",
        Code("not self.narrowed or self.workspace_ids is not None", "self.limit is None"),
        f"{_TEST_EVENT_CYCLE}test_it_flips_the_dead_among_the_named_and_asks_for_no_restart",
    ),
    Guard(
        "events: absences not counted",
        "a doubled event makes a death of an instance that EC2 does not find for a moment",
        _REQUEST,
        "Request.narrowed",
        Code("(self.workspace_ids, self.limit, self.state_changes)", "(self.workspace_ids, self.limit)"),
        f"{_TEST_STATE_CHANGES}test_absences_are_not_counted",
    ),
    Guard(
        "events: nobody is adopted",
        "an event has a workspace restarted that the platform has taken offline and may be restarting",
        _CANDIDATES,
        "_RECORDING",
        Sql("{IS_UP} AND workspaces.instance_id", "workspaces.instance_id"),
        f"{_TEST_STATE_CHANGES}test_an_offline_row_is_not_adopted",
    ),
    Guard(
        "events: no option is ignored",
        "somebody sends an event as a dry run, and it is applied",
        _REQUEST,
        "state_change",
        Code('_refuse_options(event, "a state-change event")', "None"),
        f"{_TEST_STATE_CHANGES_UNIT}test_an_option_beside_a_state_change_is_refused",
    ),
    Guard(
        "dry run",
        "a dry run flips workspaces",
        _CYCLE,
        "_cycle",
        Code("flipper.rehearse(plan.to_flip, phases.flipping)", "flipper.flip(plan.to_flip, phases.flipping)"),
        f"{_TEST_ENTRY_POINT}test_a_dry_run_writes_nothing_anywhere_and_needs_no_right_to",
    ),
    Guard(
        "dry run: the setting wins",
        "an event overrides `MODE=dry-run`",
        _REQUEST,
        "parse",
        Code("replace(request, mode=DRY_RUN) if ceiling == DRY_RUN else request", "request"),
        f"{_TEST_REQUEST}test_under_the_ceiling_every_event_is_a_dry_run",
    ),
    # --- restart ---
    Guard(
        "claim: before the call",
        "after a crash, the next cycle sends the same restart again",
        _RESTARTS,
        "_CLAIM",
        Sql(
            "due_at = now() + make_interval(secs => :uncertain_s)",
            "due_at = now() + make_interval(secs => 0 * :uncertain_s)",
        ),
        f"{_TEST_CRASHES}test_a_restart_that_the_platform_still_works_on_is_not_asked_for_again_after_a_crash",
    ),
    Guard(
        "claim: row lock",
        "two cycles claim the same restart at the same time",
        _RESTARTS,
        "LOCK_RESTARTS",
        Sql("FOR UPDATE SKIP LOCKED", ""),
        f"{_TEST_INTERLEAVINGS}test_a_claim_beside_another_writer_ends_as_if_one_of_them_had_gone_first",
    ),
    Guard(
        "claim: restart is due",
        "a restart is claimed although another cycle has just claimed it",
        _LIFE,
        "before_probing",
        Code("owed.backing_off or not owed.due", "owed.backing_off"),
        f"{_TEST_REFUSALS}test_a_restart_is_claimed_once",
    ),
    Guard(
        "claim: the probed instance",
        "whoever writes our tables exchanges a restart after its probe, and a living instance is restarted",
        _LIFE,
        "before_asking",
        Code(
            "(sighting.workspace.id, sighting.workspace.instance_id) != (restart.workspace_id, restart.instance_id)",
            "False",
        ),
        f"{_TEST_STOLEN_ROLE}test_a_restart_that_is_exchanged_after_its_probe_restarts_nobody",
    ),
    Guard(
        "claim: restart is open",
        "a restart is claimed although it was accepted or cancelled",
        _RESTARTS,
        "LOCK_OPEN",
        Code("'AND closed_at IS NULL ORDER BY'", "'ORDER BY'"),
        f"{_TEST_REFUSALS}test_a_restart_that_may_not_be_asked_for_is_not_claimed",
    ),
    Guard(
        "hold: at the claim",
        "a restart is sent although the workspace is on hold",
        _LIFE,
        "before_probing",
        Code("owed.on_hold", "False"),
        f"{_TEST_DECISIONS}test_before_a_call_the_row_has_the_first_say",
    ),
    Guard(
        "hold: at the claim's write",
        "a restart is sent although the workspace was put on hold during the claim",
        _RESTARTS,
        "_CLAIM",
        Sql("AND NOT {on_hold('owed.workspace_id')}", ""),
        f"{_TEST_SETS}test_a_hold_that_is_placed_before_the_claim_keeps_its_own_restarts_back_and_no_other",
    ),
    Guard(
        "back-off: crash loop",
        "a workspace that keeps dying is restarted again and again",
        _LIFE,
        "before_probing",
        Code("owed.backing_off or not owed.due", "not owed.due"),
        f"{_TEST_DECISIONS}test_before_a_call_the_row_has_the_first_say",
    ),
    Guard(
        "lease: at the claim",
        "a process that was frozen wakes up, and cancels or puts off restarts that another cycle is about to send",
        _RESTARTS,
        "Restarts.claim",
        Code("self._lease.require(transaction)", "None"),
        f"{_TEST_RESTARTS}test_a_cycle_whose_lease_ran_out_while_it_looked_leaves_every_owed_restart_as_it_is",
    ),
    Guard(
        "lease: at the claim's write",
        "a process that was frozen during the claim wakes up, and sends restarts beside another cycle",
        _RESTARTS,
        "_CLAIM",
        Sql("AND {LEASE_IS_OURS}", ""),
        f"{_TEST_SETS}test_a_lease_that_is_lost_before_the_claim_claims_nothing",
    ),
    Guard(
        "claim: re-read",
        "a workspace that moved on is restarted, and its new instance is terminated",
        _LIFE,
        "before_probing",
        Code("not owed.still_owed", "False"),
        f"{_TEST_RESTARTS}test_a_workspace_that_moves_on_while_its_old_instance_is_looked_at_is_not_restarted",
    ),
    Guard(
        "retry: probe first",
        "a restart terminates an instance that runs again",
        _LIFE,
        "before_asking",
        Code("Step.CANCEL_AND_WATCH", "Step.ASK"),
        f"{_TEST_RESTARTS}test_a_workspace_whose_instance_runs_again_is_not_restarted",
    ),
    Guard(
        "retry: unknown is not dead",
        "a restart terminates an instance that runs again while the source of truth is down",
        _LIFE,
        "before_asking",
        Code(
            "RestartDecision(restart, Step.PUT_OFF, sighting.reason or sighting.state)",
            "RestartDecision(restart, Step.ASK, sighting.reason or sighting.state)",
        ),
        f"{_TEST_RESTARTS}test_a_restart_waits_while_nobody_knows_that_the_instance_is_still_dead",
    ),
    Guard(
        "retry: another instance is found",
        "a restart terminates an instance that runs, because account, Region or credentials are wrong",
        _LIFE,
        "_gone",
        Arguments("counts=now.absence_counts", "counts=True"),
        f"{_TEST_DECISIONS}test_then_the_instance",
    ),
    Guard(
        "grace",
        "a machine that is stopped to be resized is destroyed",
        _FLIP,
        "Flips._record",
        Code("restarts.grace_s", "0.0"),
        f"{_TEST_STORIES}test_a_machine_that_is_stopped_to_be_resized_is_not_destroyed",
    ),
    Guard(
        "grace: after a hold",
        "a restart goes out in the moment in which a hold ends",
        _RESTARTS,
        "_DUE",
        Sql(
            "{hold_ended_at('owed.workspace_id')} + make_interval(secs => :grace_s) <= now()",
            "CAST(:grace_s AS text) IS NOT NULL",
        ),
        f"{_TEST_STORE}test_a_hold_keeps_its_restart_from_being_asked_for_until_its_grace_is_over",
    ),
    Guard(
        "heartbeat: at the claim",
        "a restart is sent although the workspace's new machine sends heartbeats",
        _LIFE,
        "before_probing",
        Code("owed.heartbeat", "False"),
        f"{_TEST_RESTARTS}test_a_workspace_that_sends_heartbeats_after_its_flip_is_not_restarted_until_they_stop",
    ),
    Guard(
        "watch: to the end",
        "a restart that did nothing leaves its workspace offline for ever",
        _LIFE,
        "owed_again",
        Code("sighting.verdict is Verdict.DEAD", "False"),
        f"{_TEST_DECISIONS}test_a_restart_that_did_nothing_is_owed_again",
    ),
    Guard(
        "watch: life ends an absence",
        "a machine that runs is destroyed: not found once, added to what was before it was seen running",
        _WATCHING,
        "Watching.owe_again",
        Code("sighting.verdict in FOUND", "False"),
        f"{_TEST_ATTACKS}TestAbsenceAfterLife",
    ),
    Guard(
        "watch: begins without absences",
        "a machine that was found running is destroyed once it is not found a single time",
        _RESTARTS,
        "CANCEL",
        Sql("CASE WHEN :watch THEN 0 ELSE absent_sightings END", "absent_sightings"),
        f"{_TEST_ATTACKS}TestAbsenceAfterLife",
    ),
    Guard(
        "adoption: a refuted absence",
        "a machine that was only stopped is destroyed, because EC2 once did not know it",
        "handler/store/doubts.py",
        "REMEMBERED_DEAD",
        Sql("AND doubts.sightings > 0", ""),
        f"{_TEST_ATTACKS}test_an_absence_that_was_refuted_is_no_death_that_was_seen",
    ),
    Guard(
        "watch: not before a quarter of an hour",
        "a restart that the platform is working on is sent again",
        _WATCHES,
        "_OWE_AGAIN",
        Sql("+ make_interval(secs => {RECOVERY_SECONDS})", ""),
        f"{_TEST_STORED_RESTARTS}test_a_restart_that_did_nothing_is_owed_again_a_while_after_its_last_call",
    ),
    Guard(
        "restart: nothing but sending after the claim",
        "a claimed restart connects anew first, which takes seconds, while somebody puts the workspace on hold",
        _PLATFORM,
        "HttpPlatform._ask",
        Arguments("connected=True", "connected=False"),
        f"{_TEST_NET}test_ahead.py::test_a_restart_whose_connection_has_ended_was_not_asked_for",
    ),
    Guard(
        "restart: not on expired evidence",
        "a process that was frozen after the claim has an instance restarted that runs again",
        _PLATFORM,
        "_HttpConnection.restart",
        Code("deadline.now() > not_after", "False"),
        f"{_TEST_PLATFORM}test_nothing_is_sent_on_expired_evidence",
    ),
    Guard(
        "restart: a new token renews no evidence",
        "a platform that takes its time to refuse a token has an instance restarted that runs again",
        _PLATFORM,
        "HttpPlatform.restart",
        Code("deadline.within(not_after - deadline.now())", "deadline"),
        f"{_TEST_PLATFORM}test_a_new_token_is_not_tried_on_expired_evidence",
    ),
    Guard(
        "uncertain: a sent request may have worked",
        "a restart that the platform is working on is sent again a minute later",
        _PLATFORM,
        "HttpPlatform._ask",
        Code("Answer.UNCERTAIN if error.sent else Answer.REFUSED", "Answer.REFUSED"),
        f"{_TEST_RESTARTS}test_a_request_without_an_answer_is_uncertain_and_not_a_refusal",
    ),
    Guard(
        "uncertain: wait",
        "a restart that the platform is working on is sent again in the next cycle",
        _RESTARTS,
        "_CLAIM",
        Sql(
            "due_at = now() + make_interval(secs => :uncertain_s)",
            "due_at = now() + make_interval(secs => 0 * :uncertain_s)",
        ),
        f"{_TEST_RESTARTS}test_an_uncertain_restart_is_left_alone_for_the_configured_time",
    ),
    Guard(
        "uncertain: a connection that was refused",
        "a restart that another cycle has asked for meanwhile is sent again, because this one found no connection",
        _RESTARTS,
        "_RECORD_ANSWER",
        Sql("ELSE attempts = :attempts END", "ELSE CAST(:attempts AS integer) IS NOT NULL END"),
        f"{_TEST_STORED_RESTARTS}test_a_connection_refused_says_nothing_of_what_another_cycle_has_asked_for_since",
    ),
    Guard(
        "uncertain: wait, after another flip",
        "a restart that the platform is working on is sent again because the workspace was flipped again",
        _FLIP,
        "_WRITE",
        Sql("restarts.workspace_id = passed.id AND restarts.instance_id = passed.instance_id", "false"),
        f"{_TEST_RESTARTS}test_a_workspace_that_is_flipped_again_is_not_restarted_while_an_earlier_request_may_be_under_way",
    ),
    Guard(
        "restarts per cycle",
        "the platform has to provision the whole fleet at once",
        _ASKING,
        "Asking.ask_for_the_due",
        Code("min(CALLS_AT_ONCE, self._most - calls)", "CALLS_AT_ONCE"),
        f"{_TEST_WORKER}test_a_cycle_asks_for_no_more_restarts_than_it_may",
    ),
    Guard(
        "shards: their share of the restarts",
        "every shard asks for as many restarts as all of them may together",
        _SHARDS,
        "Shard.share",
        Code("most // self.of", "most"),
        f"{_TEST_SHARDS}test_shards_share_the_restarts_of_a_cycle",
    ),
    Guard(
        "shards: overlapping leases",
        "a full cycle, or a shard of another number, works on rows that a shard is at work on",
        _LEASE,
        "_ACQUIRE",
        Sql("WHERE {OVERLAPS} AND", "WHERE {OVERLAPS} IS NULL AND"),
        f"{_TEST_SHARDS}test_a_shard_excludes_full_cycles_and_its_own_range_alone",
    ),
    Guard(
        "shards: leases are acquired one after the other",
        "of two cycles that begin in the same moment, neither sees the other's lease",
        _LEASE,
        "Lease.acquire",
        Code("transaction.run(_QUEUE)", "None"),
        "tests/isolation/test_shards.py::test_whoever_comes_first_has_the_lease_and_an_overlapping_one_does_not",
    ),
    Guard(
        "shards: a second look at the fleet",
        "shards that see many dead at the same time flip more between them than the breaker allows",
        _CYCLE,
        "_cycle",
        Code(
            "plan.to_flip or _restarts_are_due(request, settings, parts, closing)",
            "_restarts_are_due(request, settings, parts, closing)",
        ),
        f"{_TEST_CYCLE}test_a_shard_flips_nothing_if_the_others_have_seen_too_many_dead_meanwhile",
    ),
    Guard(
        "shards: a second look at the fleet before restarts",
        "while other shards see most of the fleet dead, a shard that sees nobody dead goes on restarting",
        _CYCLE,
        "_cycle",
        Code("_restarts_are_due(request, settings, parts, closing)", "False"),
        f"{_TEST_CYCLE}test_a_shard_asks_for_no_restart_if_the_others_have_seen_too_many_dead_meanwhile",
    ),
    Guard(
        "shards: the age of one that never runs",
        "a shard that never runs raises no alarm",
        _MEMORY,
        "_TAKE_UP",
        Sql("WHERE lacking", "WHERE lacking AND one = CAST(:shard AS integer)"),
        f"{_TEST_SHARDS_CONTRACT}test_the_coverage_is_as_old_as_that_of_the_shard_that_is_behind_most",
    ),
    Guard(
        "shards: ages after a rest of everything",
        "when nothing has run for an hour, the first shard that runs again ends the alarm",
        "handler/store/shards.py",
        "OUR_SET_RESTS",
        Sql(
            "AND max(used_at) < (SELECT max(used_at) FROM reconciler.shard_coverage WHERE NOT {IS_OUR_SET})",
            "",
        ),
        f"{_TEST_SHARDS_CONTRACT}test_a_rest_of_everything_makes_nobody_younger",
    ),
    Guard(
        "shards: each its own doubts about the source",
        "one shard's good minute ends the alarm that another one cannot see anybody",
        _STORED_DOUBTS,
        "_SAVE_SOURCES",
        Sql("{IS_WITHIN} AND cause", "cause"),
        f"{_TEST_SHARDS_CONTRACT}test_one_shard_s_good_minute_does_not_end_another_s_doubt_about_the_source",
    ),
    Guard(
        "shards: where a new one begins",
        "whoever changes the number of shards often leaves the same workspaces unchecked each time",
        _CANDIDATES,
        "Candidates._coverage",
        Code(
            "Coverage(cursor or BEFORE_ALL, cursor or BEFORE_ALL, tuple(brought_forward))",
            "Coverage(brought_forward=tuple(brought_forward))",
        ),
        f"{_TEST_SHARDS_CONTRACT}test_a_new_shard_goes_on_where_those_before_it_were",
    ),
    Guard(
        "restarts: refused before",
        "hundreds of refused or blocked restarts leave no calls for the others",
        _ASKING,
        "Asking._due",
        Code("(False, True)", "(True,)"),
        f"{_TEST_WORKER}test_blocked_restarts_take_half_of_the_calls_at_most",
    ),
    Guard(
        "restarts: time of their own",
        "a slow control plane uses up every cycle before a restart is asked for",
        _PHASES,
        "Phases.of",
        Code("min(RESTARTS_RESERVE_SECONDS, LONGEST_RESTARTS_RESERVE * whole_s) if restarts_due else 0.0", "0.0"),
        f"{_TEST_CYCLE}test_due_restarts_have_time_of_their_own",
    ),
    Guard(
        "uncertain: a gateway that gave up",
        "a restart that the platform is working on is sent again because a gateway before it answered 502 or 504",
        _PLATFORM,
        "_reply",
        Code("Reply(Answer.UNCERTAIN, _status(status))", "Reply(Answer.REFUSED, _status(status))"),
        f"{_TEST_ANSWERS}test_a_gateway_that_gave_up_leaves_the_restart_uncertain",
    ),
    Guard(
        "Retry-After: the next cycles",
        "an overloaded platform gets eight requests a minute although it asked for none",
        _RESTARTS,
        "MAY_BE_ASKED",
        Sql("AND NOT {_STOPPED}", ""),
        f"{_TEST_STORED_RESTARTS}test_while_the_platform_asks_to_be_left_alone_no_cycle_may_ask",
    ),
    Guard(
        "Retry-After: a jump of the clock",
        "no restart is ever asked for again, because the database's clock was wrong for a moment",
        _RESTARTS,
        "STOP_IS_ON",
        Sql("AND ends_at <= now() + make_interval(secs => {LATEST_END_OF_STOP_SECONDS})", ""),
        f"{_TEST_STORED_RESTARTS}test_a_stop_that_lies_days_ahead_is_of_a_clock_that_has_jumped",
    ),
    Guard(
        "clock: times that lie ahead",
        "nothing is asked for, and no age shows it, because the database's clock was wrong for a moment",
        _REMEMBERING,
        "Remembering.tend",
        Code("self._attempt('times not taken back', take_back)", "take_back"),
        f"{_TEST_CLOCK_JUMPS}test_one_cycle_later_none_of_our_times_lies_ahead",
    ),
    Guard(
        "clock: what nobody knows to be over",
        "a restart that the platform is working on is sent again because the database's clock was wrong for a moment",
        "handler/store/times.py",
        "_take_back",
        Code("WAITS.get(one, 0)", "0"),
        f"{_TEST_TIMES}test_a_restart_is_due_after_the_longest_wait",
    ),
    Guard(
        "Retry-After: this cycle",
        "an overloaded platform gets more and more requests if the database cannot be told",
        _ASKING,
        "Asking.ask_for_the_due",
        Code("not self._stopped_s", "True"),
        f"{_TEST_WORKER}test_a_stop_that_cannot_be_recorded_is_obeyed_by_this_cycle",
    ),
    Guard(
        "Retry-After: upper limit",
        "one wrong answer puts off restarts for ever",
        _PLATFORM,
        "_retry_after",
        Code("min(float(value), LONGEST_RETRY_AFTER_SECONDS)", "float(value)"),
        f"{_TEST_HOSTILE}test_a_platform_can_put_restarts_off_for_a_day_and_no_longer",
    ),
    Guard(
        "Retry-After: whose clock",
        "a platform whose clock is ahead stops restarts for longer than it asks, and one that is behind not at all",
        _PLATFORM,
        "_retry_after",
        Code("_date(headers.get('Date', '')) or datetime.now(UTC)", "datetime.now(UTC)"),
        f"{_TEST_FIELD}test_a_date_in_retry_after_is_read_by_the_clock_of_whoever_wrote_it",
    ),
    Guard(
        "narrowed cycle: named restarts only",
        "a cycle that was asked for one workspace restarts others",
        _CYCLE,
        "_restarts",
        Arguments("workspace_ids=request.workspace_ids", "workspace_ids=None"),
        f"{_TEST_CYCLE}test_a_narrowed_cycle_asks_for_the_restarts_of_the_named_workspaces_only",
    ),
    # --- time ---
    Guard(
        "deadline: before sending",
        "a thread that was frozen sends its request after the cycle has ended",
        _BOUNDED,
        "_seconds_left",
        Code("left_s <= 0.0", "False"),
        f"{_TEST_NET}test_deadlines.py::test_a_kept_connection_is_not_used_when_the_time_is_over",
    ),
    Guard(
        "deadline: after a name lookup",
        "a thread that was stuck in a lookup connects after the cycle has ended",
        _CONNECT,
        "connected",
        Code('if left_s <= 0.0:\n    raise TimeoutError("no time is left to connect") from refusal', "pass"),
        f"{_TEST_NET}test_deadlines.py::test_a_call_whose_name_lookup_took_too_long_does_not_go_on",
    ),
    Guard(
        "deadline: name lookups",
        "while nobody answers for a name, the function runs until Lambda ends it, and its lease stays",
        _CONNECT,
        "_looked_up",
        Code("looking.join(deadline.remaining())", "looking.join()"),
        f"{_TEST_SILENT}test_an_invocation_ends_by_its_deadline",
    ),
    Guard(
        "deadline: slow answers",
        "a server that sends one byte a second blocks a call, or the database connection, for ever",
        _BOUNDED,
        "BoundedReader.readinto",
        Code(
            "left_s = self.deadline.remaining()\n"
            "if left_s <= 0.0:\n    raise TimeoutError\n"
            "self._sock.settimeout(left_s)",
            "pass",
        ),
        f"{_TEST_DEADLINE}test_a_database_that_drips_its_answers_delays_no_cycle",
    ),
    Guard(
        "deadline: open transaction",
        "a row stays locked after the process or the network fails in the middle of a flip",
        _TRANSACTION,
        "begin",
        Sql("SET LOCAL idle_in_transaction_session_timeout = {milliseconds + 1000};", ""),
        f"{_TEST_DEADLINE}test_a_flip_that_the_network_lost_locks_its_row_only_for_a_moment",
    ),
    Guard(
        "deadline: closed at the end",
        "a thread that one cycle left behind acts during the next invocation",
        _INVOCATION,
        "begun",
        Code("deadline.close()", "None"),
        f"{_TEST_APP}test_nothing_acts_after_its_cycle",
    ),
    Guard(
        "deadline: enough time for a call",
        "a restart becomes uncertain because its call is cut off at once",
        _ASKING,
        "Asking._claimed",
        Code("deadline.remaining() < SHORTEST_CALL_SECONDS", "False"),
        f"{_TEST_WORKER}test_a_call_that_would_be_cut_off_at_once_does_not_begin",
    ),
    # --- somebody else's lock on a row of our own ---
    Guard(
        "locked restart: cancelling",
        "one locked restart keeps all others from being asked for",
        _WATCHES,
        "_CANCEL_MOVED_ON",
        Sql("FOR UPDATE SKIP LOCKED", ""),
        _LOCKED_RESTART,
    ),
    Guard(
        "locked restart: end of the watch",
        "one locked restart keeps all others from being asked for",
        _WATCHES,
        "_NOTE_WATCH",
        Sql("FOR UPDATE SKIP LOCKED", ""),
        f"{_TEST_LOCKED}test_a_locked_accepted_restart_stays_watched_and_the_others_watch_ends",
    ),
    Guard(
        "locked restart: owed again",
        "one locked restart keeps all others that did nothing from being owed again",
        _WATCHES,
        "_OWE_AGAIN",
        Sql("FOR UPDATE SKIP LOCKED", ""),
        f"{_TEST_STORED_RESTARTS}test_a_watched_restart_that_somebody_has_locked_costs_no_other",
    ),
    Guard(
        "locked restart: accepted",
        "one locked restart keeps the platform's other answers from being recorded",
        _RESTARTS,
        "Restarts.accepted",
        Arguments("lock_wait_s=LOCK_WAIT_SECONDS", ""),
        _LOCKED_ANSWER,
    ),
    Guard(
        "locked restart: answers",
        "one locked restart keeps the platform's other answers from being recorded",
        _RESTARTS,
        "Restarts.record_answer",
        Arguments("lock_wait_s=LOCK_WAIT_SECONDS", ""),
        _LOCKED_ANSWER,
    ),
    Guard(
        "locked restart: flip",
        "one locked restart, open or watched, has a whole set of flips wait for it with the platform's rows locked",
        _FLIP,
        "_LOCK_RESTARTS",
        Sql("FOR UPDATE SKIP LOCKED", "FOR UPDATE"),
        f"{_TEST_STORE}test_a_lock_on_the_older_restart_costs_its_workspace_alone",
    ),
    Guard(
        "locked doubt: forgotten",
        "one locked doubt uses up the cycle's time",
        _STORED_DOUBTS,
        "_FORGET",
        Sql("FOR UPDATE SKIP LOCKED", ""),
        f"{_TEST_STORED_DOUBTS}test_doubts_that_somebody_has_locked_stay_as_they_are_and_cost_no_others",
    ),
    Guard(
        "locked doubt: by halves",
        "one doubt that somebody is inserting keeps all others from being saved",
        _STORED_DOUBTS,
        "Doubts._save",
        Code("(doubts[:half], doubts[half:])", "()"),
        f"{_TEST_LOCKED}test_an_absence_that_somebody_is_inserting_costs_its_own_count_alone",
    ),
    Guard(
        "doubts that cannot be saved",
        "nothing is flipped or restarted because doubts cannot be saved",
        _REMEMBERING,
        "Remembering._attempt",
        Code("self._log.failure(failed, error)", "raise"),
        f"{_TEST_LOCKED}test_doubts_that_cannot_be_saved_cost_no_flip_and_no_restart",
    ),
    Guard(
        "saved before acting",
        "a cycle that is killed while it flips begins anew in the next minute, and is killed again",
        _CYCLE,
        "_cycle",
        Code("remembering.save_coverage(_progress(observed, [one.workspace.id for one in plan.to_flip]))", "None"),
        f"{_TEST_CYCLE}test_a_cycle_that_dies_while_it_flips_has_saved_where_the_next_one_begins_and_what_it_saw",
    ),
    Guard(
        "locked coverage",
        "the cycle waits for its whole time, and fails",
        _MEMORY,
        "CycleMemory.save_coverage",
        Arguments("lock_wait_s=LOCK_WAIT_SECONDS", ""),
        f"{_TEST_LOCKED}test_a_locked_coverage_costs_the_progress_alone",
    ),
    Guard(
        "locked lease: taken",
        "the cycle waits for its whole time, and fails",
        _LEASE,
        "Lease.acquire",
        Arguments("lock_wait_s=LOCK_WAIT_SECONDS", ""),
        f"{_TEST_LOCKED}test_a_lease_that_is_locked_when_a_cycle_begins_is_another_s",
    ),
    Guard(
        "locked lease: given back",
        "a cycle that is done waits for the rest of its time",
        _LEASE,
        "Lease.release",
        Arguments("lock_wait_s=LOCK_WAIT_SECONDS", ""),
        f"{_TEST_LOCKED}test_a_lease_that_is_locked_in_mid_cycle_costs_nothing_but_its_return",
    ),
    # --- record ---
    Guard(
        "lease: far ahead",
        "after the database's clock was wrong, no cycle runs for days",
        _LEASE,
        "_ACQUIRE",
        Sql("AND expires_at <= clock_timestamp() + make_interval(secs => :longest_s)", "AND :longest_s > 0"),
        f"{_TEST_GROWTH}test_a_lease_that_lies_far_ahead_is_taken_for_free",
    ),
    Guard(
        "purge: watched restarts",
        "a restart that nobody came back from is forgotten after 30 days",
        _MEMORY,
        "_PURGE_RESTARTS",
        Sql("AND (watched_since IS NULL OR watch_ended_at IS NOT NULL)", ""),
        f"{_TEST_GROWTH}test_old_restarts_are_purged_in_small_steps_but_those_that_are_watched_or_locked",
    ),
    Guard(
        "lease: when rows move on",
        "a process that was frozen wakes up, and cancels restarts on what it saw before",
        _WATCHES,
        "Watches.cancel_moved_on",
        Code("self._lease.require(transaction)", "None"),
        _WITHOUT_LEASE,
    ),
    Guard(
        "lease: when a restart is put off",
        "a process that was frozen wakes up, and puts off a restart that another cycle is about to send",
        _RESTARTS,
        "Restarts.put_off",
        Code("self._lease.require(transaction)", "None"),
        _WITHOUT_LEASE,
    ),
    Guard(
        "lease: when doubts are forgotten",
        "a process that was frozen wakes up, and forgets doubts that another cycle has saved",
        _STORED_DOUBTS,
        "Doubts.save",
        Code("self._lease.require(transaction)", "None"),
        _WITHOUT_LEASE,
    ),
    Guard(
        "lease: when doubts are saved",
        "a process that was frozen wakes up, and saves a death or an absence that another cycle has refuted",
        _STORED_DOUBTS,
        "Doubts._save",
        Code("self._lease.require(transaction)", "None"),
        f"{_TEST_SETS}test_a_lease_that_is_lost_between_forgetting_doubts_and_saving_some_saves_none",
    ),
    Guard(
        "lease: when coverage is stored",
        "the next cycle repeats workspaces, or passes over unchecked ones",
        _MEMORY,
        "CycleMemory.save_coverage",
        Code("self._lease.require(transaction)", "None"),
        _WITHOUT_LEASE,
    ),
    # --- the database ---
    Guard(
        "session: left half begun",
        "the next transaction finds itself inside an older one",
        _SESSION,
        "Session._begun",
        Code("self.close()", "None"),
        f"{_TEST_FAILOVER}test_a_connection_to_a_standby_is_made_anew_once",
    ),
    Guard(
        "session: aborted transaction",
        "one cancelled BEGIN fails every later cycle of a warm process",
        _SQLSTATE,
        "_ERROR_OF_SQLSTATE",
        Code('"25P02"', '"-----"'),
        f"{_TEST_SESSION}test_an_error_that_somebody_swallows_ends_the_session_and_commits_nothing",
    ),
    Guard(
        "session: half an answer",
        "a statement is taken to be answered by what an earlier one was answered",
        _SESSION,
        "Session._run",
        Code("self.close()\nraise", "raise"),
        f"{_TEST_SESSION}test_an_interrupt_in_the_middle_of_an_answer_leaves_nothing_behind_either",
    ),
    Guard(
        "standby: its rows",
        "rows from the past count as the present",
        _TRANSACTION,
        "begun",
        Code("if in_recovery:\n    raise StandbyError(STANDBY)", "pass"),
        f"{_TEST_FAILOVER}test_a_process_that_met_the_standby_goes_on_as_soon_as_the_name_leads_to_the_writer",
    ),
    Guard(
        "standby: in mid-cycle",
        "a cycle goes on after the writer has become a standby",
        _FLIPS,
        "Flipper._outcomes",
        Code("raise", "return [SkipReason.RECONFIRM_ERROR] * len(confirmed)"),
        f"{_TEST_FAILOVER}test_a_writer_that_becomes_a_standby_is_not_tried_again_for_every_row",
    ),
    Guard(
        "read only: configured",
        "an old primary is written after a switch, and its stale rows are flipped and restarted",
        _TRANSACTION,
        "begun",
        Code('default_read_only == "on" and not read_only', "False"),
        f"{_TEST_FAILOVER}test_what_is_configured_to_be_read_only_is_not_written_until_it_is_configured_otherwise",
    ),
    Guard(
        "row-level security: enabled",
        "a policy hides the fleet, which then looks empty, and every owed restart is cancelled",
        _TRANSACTION,
        "_SETTINGS",
        Sql("SET LOCAL row_security = off;", ""),
        _CHANGED_MEANWHILE,
    ),
    Guard(
        "row-level security: a policy dropped",
        "rows disappear between the check and the statement, and their restarts are cancelled",
        _SESSION,
        "Session.transaction",
        Code(
            "if beginning.row_security and every_row:\n    require_every_row(transaction, used)",
            "pass",
        ),
        _CHANGED_MEANWHILE,
    ),
    Guard(
        "row-level security: in triggers",
        "a trigger that writes to a table with policies of its own fails every flip, and with it the cycle",
        _FLIP,
        "_WRITE",
        Sql("AND set_config('row_security', 'on', true) = 'on'", ""),
        f"{_TEST_FLIP_ERRORS}test_a_trigger_may_write_to_a_table_with_policies_of_its_own",
    ),
    Guard(
        "row-level security: a condition",
        "a policy that lets some rows through is taken for one that lets all through",
        _ROW_SECURITY,
        "_HIDDEN",
        Sql("permissive AND reads = 'true'", "permissive"),
        _MAY_HIDE,
    ),
    Guard(
        "row-level security: a restrictive policy",
        "a restrictive policy hides rows beside one that lets all through",
        _ROW_SECURITY,
        "_HIDDEN",
        Sql("only_permissive AND", ""),
        _MAY_HIDE,
    ),
    Guard(
        "search_path: of our own",
        "a function, an operator or a table that somebody planted is used in place of the real one",
        _TRANSACTION,
        "begin",
        Sql("SET LOCAL search_path = pg_catalog, pg_temp;", ""),
        f"{_TEST_SEARCH_PATH}test_no_trap_is_stepped_into_on_a_path_of_the_role_s_own",
    ),
    Guard(
        "search_path: the role's own",
        "a path that somebody left in a pooled session leads to other tables, or to none",
        _TRANSACTION,
        "_OWN_PATH",
        Sql("SET LOCAL search_path TO DEFAULT;", ""),
        _LEFT_IN_SESSION,
    ),
    Guard(
        "search_path: temporary tables",
        "a temporary table in a pooled session is taken for the platform's",
        _TRANSACTION,
        "_OWN_PATH",
        Sql("', pg_temp'", "''"),
        _LEFT_IN_SESSION,
    ),
    Guard(
        "session: role",
        "a pooled session acts as whatever role somebody took on in it",
        _TRANSACTION,
        "_SETTINGS",
        Sql("SET LOCAL role TO DEFAULT;", ""),
        _LEFT_IN_SESSION,
    ),
    Guard(
        "session: durable commits",
        "a crash of the database undoes a claim whose restart has been asked for",
        _TRANSACTION,
        "_SETTINGS",
        Sql("SET LOCAL synchronous_commit TO DEFAULT;", ""),
        f"{_TEST_SEARCH_PATH}test_every_setting_that_a_statement_may_rest_on_is_the_same_in_every_transaction",
    ),
    Guard(
        "encoding: a broken value",
        "one value that is not text fails every cycle",
        _SESSION,
        "_Connection.handle_DATA_ROW",
        Code('"surrogateescape"', '"strict"'),
        f"{_TEST_SESSION}test_an_instance_id_that_cannot_be_decoded_costs_its_row_alone",
    ),
    Guard(
        "encoding: no conversion",
        "one value without a counterpart in UTF-8 fails every cycle",
        _CANDIDATES,
        "_UNCONVERTED",
        Sql("SET LOCAL client_encoding = 'SQL_ASCII';", ""),
        f"{_TEST_SESSION}test_an_instance_id_that_cannot_be_decoded_costs_its_row_alone",
    ),
    # --- the log ---
    Guard(
        "log: length of an instance id",
        "the text of one row fills the log",
        _TELEMETRY,
        "_printable",
        Code("text[:longest]", "text"),
        f"{_TEST_TELEMETRY_UNIT}test_a_long_instance_id_is_cut_and_breaks_no_line",
    ),
    Guard(
        "log: characters of an instance id",
        "the text of a row breaks a log line, or reverses it on the screen",
        _TELEMETRY,
        "_printable",
        Code('text[:longest].encode("ascii", "backslashreplace").decode()', "text[:longest]"),
        f"{_TEST_HOSTILE}test_whatever_a_row_records_stays_data_in_requests_statements_and_log_lines",
    ),
    Guard(
        "log: lines of a kind",
        "while the control plane is down, every cycle writes one line per workspace",
        _TELEMETRY,
        "CycleLog._gets_a_line",
        Code("self._lines[message] <= LINES_OF_A_KIND", "True"),
        f"{_TEST_TELEMETRY}test_a_dead_control_plane_gets_a_hundred_log_lines_and_then_one_for_each_cause",
    ),
    Guard(
        "log: our own lines only",
        "a library logs what a gateway sends back: tokens are in the log",
        _TELEMETRY,
        "_own_record",
        Code("name == logger.name", "True"),
        f"{_TEST_LEAKS}test_a_control_plane_that_echoes_tokens_puts_none_into_the_log",
    ),
    Guard(
        "log: no warnings",
        "a library warns of what a gateway sends back: tokens are in the log",
        _TELEMETRY,
        "_only_own_lines",
        Code("logging.captureWarnings(capture=True)", "pass"),
        f"{_TEST_LEAKS}test_a_control_plane_that_echoes_tokens_puts_none_into_the_log",
    ),
    Guard(
        "log: errors on threads",
        "Python prints an error with what a gateway has sent",
        _TELEMETRY,
        "_only_own_lines",
        Code("threading.excepthook = _thread_failed", "pass"),
        f"{_TEST_LEAKS}test_a_control_plane_that_echoes_tokens_puts_none_into_the_log",
    ),
    Guard(
        "log: errors that nobody can catch",
        "Python prints an error with what a gateway has sent",
        _TELEMETRY,
        "_only_own_lines",
        Code("sys.unraisablehook = lambda _: None", "pass"),
        f"{_TEST_LEAKS}test_a_control_plane_that_echoes_tokens_puts_none_into_the_log",
    ),
    Guard(
        "log: a database's senseless answer",
        "Lambda logs what was sent in the database's place",
        _SESSION,
        "Session._run",
        Code(
            'raise StoreError(f"the database\'s answer makes no sense ({type(error).__name__})") from error',
            "raise",
        ),
        f"{_TEST_NET}test_database.py::test_an_answer_that_makes_no_sense_is_an_error_without_a_word_of_it",
    ),
    Guard(
        "flip errors: counted",
        "the database refuses every flip, dead workspaces stay online, and no alarm goes off",
        _TELEMETRY,
        "emit_metrics",
        Code("report.skipped[SkipReason.RECONFIRM_ERROR]", "0"),
        f"{_TEST_FLIP_ERRORS}test_an_event_log_that_takes_no_events_is_measured_and_its_error_is_logged_once_a_cycle",
    ),
    Guard(
        "log: one flip error of a kind",
        "while the database refuses flips, every cycle writes one line per dead workspace",
        _TELEMETRY,
        "CycleLog.flip_failed",
        Code('self._lines[f"{message}: {kind}"] > 1', "False"),
        f"{_TEST_FLIP_ERRORS}test_hundreds_of_refusals_do_not_fill_the_log",
    ),
    Guard(
        "log: length of an error",
        "the message of a trigger fills the log",
        _TELEMETRY,
        "CycleLog.flip_failed",
        Code("_printable(str(error), _LONGEST_ERROR)", "str(error)"),
        f"{_TEST_FLIP_ERRORS}test_a_trigger_s_long_message_is_cut_short_and_its_detail_left_out",
    ),
    # --- secrets ---
    Guard(
        "secrets: Secrets Manager is away",
        "no cycle runs while Secrets Manager does not answer, although the last secret is good",
        _SECRETS,
        "Secrets._fetched",
        Code("is_throttling(error) or is_server_error(error)", "False"),
        f"{_TEST_SECRETS}test_while_secrets_manager_is_away_the_last_secret_serves_for_an_hour",
    ),
    Guard(
        "secrets: denied or deleted",
        "a secret that was taken from the function serves on for an hour",
        _SECRETS,
        "Secrets._fetched",
        Code(
            "self._cached.pop(arn, None)\nraise SecretError(refusal) from None", "raise SecretError(refusal) from None"
        ),
        f"{_TEST_SECRETS}test_a_secret_that_is_denied_or_deleted_serves_no_longer",
    ),
    Guard(
        "secrets: time to ask again",
        "while Secrets Manager swallows packets, every cycle spends its time on it",
        _SECRETS,
        "Secrets.read",
        Code("now - cached.failed_at >= RETRY_SECONDS", "True"),
        f"{_TEST_SECRETS}test_one_that_is_away_is_asked_once_a_minute_for_two_seconds",
    ),
    # --- connect ---
    Guard(
        "TLS: as libpq verifies",
        "no cycle runs, because Python refuses a certificate of the database that every other client accepts",
        _TLS,
        "_trusting",
        Code("context.verify_flags &= ~ssl.VERIFY_X509_STRICT", "pass"),
        f"{_TEST_CONNECTIONS}test_a_database_s_certificate_needs_no_more_extensions_than_libpq_wants",
    ),
    Guard(
        "TLS: the database's name",
        "whoever has a certificate for any name passes for the database, and gets the password",
        _TLS,
        "_postgres_context",
        Code('sslmode == "verify-full"', "False"),
        f"{_TEST_CONNECTIONS}test_a_database_s_certificate_without_extensions_is_good_for_its_own_name_only",
    ),
    Guard(
        "addresses: a share of the time",
        "one dead address of two uses up every call's time, and all workspaces are unknown",
        _CONNECT,
        "connected",
        Code("left_s / (len(addresses) - tried)", "left_s"),
        f"{_TEST_NET}test_deadlines.py::test_dead_addresses_leave_time_for_one_that_lives",
    ),
    # --- hold and release ---
    Guard(
        "hold: on everything",
        "cycles flip and restart although everything is on hold",
        _HOLDS,
        "on_hold",
        Sql("OR {ALL_ON_HOLD}", ""),
        f"{_TEST_HOLD_IN_TIME}test_under_a_hold_on_everything_cycles_look_and_do_nothing",
    ),
    Guard(
        "hold: placed unchecked",
        "while the platform's table is locked, no workspace can be put on hold",
        _HOLDS,
        "Holds.exist",
        Code(
            "given_up or isinstance(error, RowLockedError | ConnectionLostError) or deadline.over()",
            "deadline.over()",
        ),
        f"{_TEST_HOLD_IN_TIME}test_a_locked_table_of_workspaces_delays_no_hold_and_no_release",
    ),
    Guard(
        "hold: nobody's lock is waited for",
        "a hold waits for whoever has an earlier hold's row, and fails",
        _HOLDS,
        "_END",
        Sql("FOR UPDATE SKIP LOCKED", "FOR UPDATE"),
        f"{_TEST_HOLD_IN_TIME}test_a_hold_waits_for_no_other_hold",
    ),
    Guard(
        "hold: what is locked is in flight",
        "an engineer believes that nothing is under way, and a restart is sent after the hold's answer",
        _HOLDS,
        "_CLAIMED_OR_LOCKED",
        Sql("FOR UPDATE SKIP LOCKED", ""),
        f"{_TEST_HOLD_IN_TIME}test_a_claim_in_mid_write_is_in_flight",
    ),
    Guard(
        "hold: late is better than not at all",
        "a hold is not placed because connecting took two seconds",
        "handler/holds.py",
        "_place",
        Code("if not in_time.over():\n    raise", "raise"),
        "tests/unit/test_holds.py::test_a_hold_that_comes_too_late_is_placed_all_the_same",
    ),
    Guard(
        "release: all or nothing",
        "a release says that it is done, and a workspace stays on hold",
        _HOLDS,
        "Holds._released",
        Code(
            "if locked:\n    raise RowLockedError(f\"somebody else has locked our rows about {', '.join(locked)}\")",
            "pass",
        ),
        f"{_TEST_HOLD_IN_TIME}test_a_release_that_comes_upon_a_lock_names_it_and_releases_nobody",
    ),
    Guard(
        "purge: holds that ended lately",
        "a restart or doubt that a hold kept back looks old at once when the hold has ended",
        _HOLDS,
        "PURGE_HOLDS",
        Sql("- make_interval(days => :days)", ""),
        f"{_TEST_GROWTH}test_a_hold_is_deleted_a_month_after_its_end",
    ),
)
