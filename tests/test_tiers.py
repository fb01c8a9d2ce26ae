"""The default tests prove each promise of the documentation."""

import sys
from pathlib import Path

import pytest

from tests.conftest import DEFAULT
from tests.rendering import ROOT, run

# The promises of the README, docs/isolation.md and docs/updates.md, and a default test that proves
# each. If a test moves to another tier, name another one here, or add a line to ONLY_IN_CI.
PROMISES = {
    # README.md
    "a rendered service passes all checks, and its tests": (
        "test_project.py::test_all_checks_pass_and_wait_for_no_clock"
    ),
    "its tests run in parallel": "test_project.py::test_the_tests_pass_side_by_side",
    "its migrations lead to its models": "test_project.py::test_the_migrations_lead_to_the_models",
    "it serves": "test_server.py::test_it_serves_while_it_is_developed",
    "the container migrates and serves": (
        "test_docker.py::test_the_image_migrates_serves_and_is_healthy"
    ),
    "it logs JSON without secrets": (
        "test_logs.py::test_the_log_of_production_is_json_without_secrets"
    ),
    "it exports traces": "test_telemetry.py::test_requests_and_their_statements_are_one_trace",
    "it answers 503 while PostgreSQL is away": (
        "test_database_faults.py::test_postgresql_is_busy_frozen_gone_and_back"
    ),
    "it answers 503 while SQLite is away": (
        "test_database_faults.py::test_sqlite_is_gone_locked_and_back"
    ),
    "it shuts down gracefully": "test_stopping.py::test_what_is_open_ends_in_time",
    "a killed server loses nothing acknowledged": (
        "test_load.py::test_killed_server_loses_no_acknowledged_write"
    ),
    "bad input is refused": "test_bad_input.py::test_bad_input_is_refused",
    "each pattern has a working test": "test_patterns.py::test_every_test_of_the_table_is_there",
    "every combination renders what it promises": (
        "test_combinations.py::test_every_two_choices_render_what_they_promise"
    ),
    "any answer is refused or gets through unharmed": (
        "test_free_text.py::test_any_text_is_refused_or_gets_through_unharmed"
    ),
    "questions are asked as the README says": (
        "test_interview.py::test_it_asks_in_order_and_takes_the_defaults_with_enter"
    ),
    "a cancelled interview writes nothing": (
        "test_circumstances.py::test_ctrl_c_at_a_question_leaves_nothing"
    ),
    "an interrupted rendering can be completed": (
        "test_circumstances.py::test_the_same_command_completes_what_was_interrupted"
    ),
    "files that are there are kept": "test_circumstances.py::test_what_is_in_the_folder_stays",
    # docs/isolation.md
    "no test can break another": (
        "test_neighbours.py::test_culprits_end_as_they_must_and_harm_no_next_test"
    ),
    "a mistake fails the test that makes it": (
        "test_faulty.py::test_faulty_tests_fail_and_leave_the_others_alone"
    ),
    "the proofs of isolation hold": ("test_project.py::test_all_checks_pass_and_wait_for_no_clock"),
    "tests reach no other machine": (
        "test_first_week.py::test_what_calls_out_for_all_tests_is_refused_and_blames_none"
    ),
    "what all tests need fails once": "test_first_week.py::test_what_all_tests_need_fails_once",
    "a timeout ends a test though its clock stands still": (
        "test_moving.py::test_frozen_time_stops_no_timeout"
    ),
    # docs/updates.md
    "months of work are kept by an update": (
        "test_update.py::test_months_of_work_are_kept_by_this_release_and_by_one_that_touches_everything"
    ),
    "an update brings what a new project has": (
        "test_update.py::test_an_update_without_edits_brings_what_a_fresh_project_has"
    ),
    "one command deletes the example": (
        "test_update.py::test_one_command_deletes_the_example_and_one_brings_it_back"
    ),
    "edits of the template's files are merged": (
        "test_update.py::test_edits_that_many_teams_make_are_merged"
    ),
    "a conflict is reported": (
        "test_update_refused.py::test_a_project_in_a_folder_of_a_larger_repository"
    ),
    "an edited file that a release removes is reported": (
        "test_update_refused.py::test_what_an_update_cannot_decide_is_told"
    ),
    "an answer that is no longer accepted is reported": (
        "test_update_refused.py::test_what_an_update_cannot_decide_is_told"
    ),
    "TOML that can no longer be parsed is reported": (
        "test_update_refused.py::test_what_an_update_cannot_decide_is_told"
    ),
    "a project that is not fit is refused": (
        "test_update_refused.py::test_changes_that_are_not_committed"
    ),
    "an interrupted update changes nothing": (
        "test_update_refused.py::test_an_interrupted_update_changes_nothing"
    ),
    "an update that cannot be put in place is taken back": (
        "test_update_refused.py::test_an_update_that_cannot_be_put_in_place_is_taken_back"
    ),
    "GitHub gets one pull request": (
        "test_update_refused.py::test_github_gets_one_pull_request_with_what_the_rehearsal_found"
    ),
}

# CI proves these: they take too long for the default tests.
ONLY_IN_CI = {
    "its tests cover the service": (
        "test_project.py::test_all_checks_pass_and_the_tests_cover_the_service"
    ),
    "no request is cut off under load": "test_stopping.py::test_no_request_is_cut_off_under_load",
    "followers miss nothing of another replica": (
        "test_feed.py::test_followers_of_a_replica_miss_nothing_of_another"
    ),
    "a worker that is told to stop gives its jobs back": (
        "test_jobs.py::test_worker_that_is_told_to_stop_finishes_its_jobs_or_gives_them_back"
    ),
    "PostgreSQL runs without Docker, and keeps its rows": (
        "test_database.py::test_the_service_finds_its_rows_again"
    ),
    "a feature is added by the README": (
        "test_orders.py::test_feature_is_added_by_the_steps_of_the_readme"
    ),
    "all checks pass after months of work and an update": (
        "test_update.py::test_months_of_work_on_the_newest_release_are_kept"
    ),
    "changes to a file that was moved are shown": (
        "test_update_refused.py::test_what_a_release_changes_in_a_file_that_was_moved"
    ),
    "a migration that others build on is kept": (
        "test_update_refused.py::test_what_is_left_of_the_example_is_told"
    ),
    "a lock that cannot be updated is reported": (
        "test_update_refused.py::test_dependencies_that_cannot_be_locked"
    ),
    "new failures of the checks are told from old ones": (
        "test_update_refused.py::test_what_checks_say_since_the_update_is_told"
    ),
    "an edited example is not deleted": (
        "test_update_refused.py::test_an_edited_example_is_not_deleted"
    ),
    "no setting of git changes the merge": (
        "test_update_refused.py::test_no_setting_of_git_changes_how_an_update_merges"
    ),
    "GitLab gets one merge request": (
        "test_update_refused.py::test_gitlab_gets_a_merge_request_with_what_the_rehearsal_found"
    ),
}


def collected(*options: str) -> set[str]:
    """Return the names of the tests that run."""
    command = (sys.executable, "-m", "pytest", "-n0", "--collect-only", "-q", *options)
    done = run(*command, "-p", "no:cacheprovider", cwd=ROOT)
    ids = [line for line in done.stdout.splitlines() if "::" in line]
    assert ids, done.stdout
    return {each.partition("[")[0].removeprefix("tests/") for each in ids}


def test_each_promise_is_proved_by_default_or_in_ci() -> None:
    by_default, in_ci = collected(), collected("-m", "ci and not slow")
    assert set(PROMISES.values()) <= by_default
    assert set(ONLY_IN_CI.values()) <= in_ci
    assert not set(ONLY_IN_CI.values()) & by_default


def test_the_default_is_what_is_in_neither_other_tier(pytestconfig: pytest.Config) -> None:
    assert DEFAULT in pytestconfig.getini("addopts")
    release = Path(ROOT, "scripts/release.py").read_text(encoding="utf-8")
    assert '"-m", "ci or slow"' in release
    workflow = (ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8")
    assert '-m "not slow"' in workflow
    assert "-m slow" in workflow
