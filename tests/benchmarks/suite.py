"""Whether the tests find what a careless change breaks: each break made in a copy of the tree, the tests meant run.

    python -m tests.benchmarks suite                  all of them
    python -m tests.benchmarks suite watch -real      those of one package, or with a word of the row; without a word

A break is one line of the product changed as somebody in a hurry would change it. It is caught when the tests named for
it fail, having passed on the whole tree before; a run that collects nothing, hangs or skips has caught nothing. A text
that is no longer there exactly once is stale: the row is to be written anew. `real` tests need a build of upstream,
which is made once a machine.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

from tasks.process import die_with_parent

REPOSITORY = Path(__file__).parent.parent.parent
PRODUCT = ("flows", "tasks", "modal_app")
COPIES = 2
"""Breaks that are tried side by side, each in a copy of its own."""
LIMIT_S, WHOLE_LIMIT_S = 900.0, 3600.0
"""How long the tests of one break, and those of all of them, may take; one that makes its tests hang is not caught."""
PASSED, FAILED = 0, 1
"""Of pytest's exit codes; 2 and above are an error of its own, nothing collected among them."""


class Break(NamedTuple):
    """One line of the product, changed."""

    path: str
    guards: str
    """What holds no more."""
    before: str
    """Text that is there once."""
    after: str
    tests: str
    """Test files or ids, with spaces between them."""
    real: bool = False
    """Whether its tests need a build of upstream."""

    @property
    def package(self) -> str:
        """`watch` of tasks/watch/judge.py, `platforms/local`, `store` of tasks/store.py, `flows/upgrade`."""
        where = Path(self.path).with_suffix("")
        if where.parts[0] == "modal_app":
            return "modal_app"
        if where.parts[0] == "flows":
            return str(where)
        inside = where.relative_to("tasks")
        return str(inside) if len(inside.parts) == 1 else str(inside.parent)

    def has(self, word: str) -> bool:
        """Whether a word chooses it: its package, or a part of its row."""
        row = f"{self.path} {self.guards} {self.tests} {'real' if self.real else ''}"
        return word in (self.package, *self.package.split("/")) or word in row


# fmt: off
BREAKS = (
    # -- flows ---------------------------------------------------------------------------------------------------------
    Break(
        "flows/plan.py", "an upgrade on hold is refused without a Prefect server",
        '    refuse_on_hold(store.pointer("production"))\n', "",
        "tests/flows/test_refused.py::test_a_hold_and_a_tag_that_does_not_exist",
    ),
    Break(
        "flows/plan.py", "what a killed run left open is finished whatever would refuse a new one",
        '    if store.intent("production"):\n        return None\n', "",
        "tests/flows/test_refused.py::test_what_a_killed_run_left_is_for_the_flow_to_finish_whatever_would_refuse_it",
    ),
    Break(
        "tasks/settings.py", "bytes that are no text are told, and not a traceback",
        "except (ValueError, OSError, RuntimeError) as error", "except ValidationError as error",
        "tests/test_settings.py",
    ),
    Break(
        "flows/__main__.py", "an interrupted command says so",
        "ended.code != INTERRUPTED:", "ended.code == INTERRUPTED:",
        "tests/flows/test_interrupted.py",
    ),
    Break(
        "flows/__main__.py", "servers are not stopped under a run that moves them",
        'with _no_run(platform.store, "stop"), production_lock', "with production_lock",
        "tests/test_refused_by_the_system.py::test_servers_are_not_started_or_stopped_under_a_run_that_moves_them",
    ),
    Break(
        "tasks/platforms/local/control.py", "a control socket is put into no folder of another user",
        " and found.st_uid == os.getuid()", "",
        "tests/platforms/test_local.py::"
        "test_a_socket_is_put_into_a_folder_of_this_user_alone_whoever_was_first",
    ),
    Break(
        "tasks/platforms/modal/store.py", "who has lost a lock writes nothing more",
        "            lease.check()", "            pass",
        "tests/platforms/test_modal_store.py::test_a_holder_that_has_lost_its_lease_changes_nothing_more",
    ),
    Break(
        "tasks/behaviour.py", "a docstring is no behaviour",
        "for each in node if not _is_text_alone(each)]", "for each in node]",
        "tests/test_behaviour.py",
    ),
    Break(
        "tasks/contracts/__init__.py", "a contract's verdict rests on the client that asks",
        'digest_of_code(here, here.parent / "endpoint")', "digest_of_code(here)",
        "tests/test_behaviour.py",
    ),
    Break(
        "tasks/store.py", "a file changed behind its mtime is read again",
        ", stat.st_ctime_ns)", ")",
        "tests/test_store.py::test_a_file_changed_behind_its_mtime_is_read_again",
    ),
    Break(
        "tasks/store.py", "a document is for its user alone", "flags, 0o600)", "flags, 0o644)",
        "tests/test_store.py::test_what_is_written_is_for_this_user_alone_and_a_file_that_is_there_keeps_its_mode",
    ),
    Break(
        "tasks/store.py", "a ledger that may not be read is not taken for an empty one",
        "                os.scandir(folder).close()", "                pass",
        "tests/test_refused_by_the_system.py::test_a_ledger_that_may_not_be_read_is_not_taken_for_an_empty_one",
    ),
    Break(
        "flows/required.py", "no dossier is whole without a proved restore",
        "restore.NAME, evals.NAME", "evals.NAME",
        "tests/flows/test_order.py::test_a_dossier_is_whole_with_the_verification_of_every_stage_and_every_promise",
    ),
    Break(
        "flows/upgrade.py", "an upgrade finishes or undoes first what was left open",
        "        promote.recover(platform)\n", "",
        "tests/flows/test_order.py::test_a_move_that_was_left_open_is_undone_before_anything_else",
    ),
    Break(
        "flows/upgrade.py", "a hold stops an upgrade before anything is fetched",
        "        promote.refuse_on_hold(production)\n", "",
        "tests/flows/test_order.py::test_a_hold_stops_an_upgrade_before_upstream_is_asked",
    ),
    Break(
        "flows/redeploy.py", "a redeploy finishes or undoes first what was left open",
        "        promote.recover(platform)\n", "",
        "tests/flows/test_order.py::test_a_move_that_was_left_open_is_undone_before_anything_else",
    ),
    Break(
        "flows/redeploy.py", "a redeploy asks for no compiler",
        "needs.require(settings, needs.REDEPLOY)", "needs.require(settings, needs.UPGRADE)",
        "tests/flows/test_needs.py::test_a_run_that_a_worker_starts_ends_with_the_same_error",
    ),
    Break(
        "flows/server.py", "a keyboard that is gone is no answer",
        "            return None\n        if decided :=", "            line = \"what?\"\n        if decided :=",
        "tests/flows/test_approver.py",
    ),
    Break(
        "flows/server.py", "what a failed command logged is sent before its Prefect server stops",
        "            APILogWorker.drain_all(timeout=5)", "            pass",
        "tests/flows/test_server.py::test_a_command_that_fails_tells_its_own_server_and_ends_with_one_message",
    ),
    Break(
        "flows/server.py", "a Prefect server whose port another took first starts on another",
        "        return False\n    raise ToolingError(", "        pass\n    raise ToolingError(",
        "tests/flows/test_server.py::test_a_port_that_another_takes_first_is_given_up_for_another",
    ),
    Break(
        "flows/rollback_now.py", "a rollback at once loads no Prefect",
        "from tasks import promote\n", "import prefect\nfrom tasks import promote\n",
        "tests/test_start.py::test_a_command_loads_only_what_it_needs",
    ),
    Break(
        "flows/rollback.py", "a rollback finishes or undoes first what was left open",
        "        promote.recover(platform)\n", "",
        "tests/flows/test_order.py::test_a_move_that_was_left_open_is_undone_before_anything_else",
    ),
    Break(
        "flows/restore_watch.py", "the watch has a lock of its own: the release lock is left to others",
        'one_at_a_time(store, "watch")', "one_at_a_time(store)",
        "tests/flows/test_order.py::test_the_watch_looks_after_questions_and_leaves_the_release_lock_to_others",
    ),
    Break(
        "flows/restore_watch.py", "the watch looks after questions that nobody attends",
        "                    approval.attend(platform, settings)\n", "",
        "tests/flows/test_order.py::test_the_watch_looks_after_questions_and_leaves_the_release_lock_to_others",
    ),
    Break(
        "flows/patches_watch.py", "people are told what the nightly look at the patches found",
        ', notify.following(platform.store, settings.notify)', "",
        "tests/patches/test_watch.py",
    ),
    Break(
        "flows/__main__.py", "the key of one's own servers is sent to nobody else",
        'key: Annotated[str, typer.Option(help="its API',
        'key: Annotated[str, typer.Option(envvar="LLAMA_RELEASE_API_KEY", help="its API',
        "tests/contracts/test_against.py::test_productions_key_goes_to_no_server_that_it_was_not_given_for",
    ),
    Break(
        "tasks/endpoint/client.py", "what is no URL of a server is asked nothing",
        'if known.scheme not in ("http", "https") or not known.host:', "if not known.host:",
        "tests/contracts/test_against.py::test_what_is_no_url_of_a_server_is_bad_input",
    ),
    Break(
        "flows/contracts.py", "a server that wants a key is told apart from one that lists no model",
        "if answer.status in (401, 403):", "if answer.status == 403:",
        "tests/contracts/test_against.py::test_productions_key_goes_to_no_server_that_it_was_not_given_for",
    ),
    Break(
        "flows/demo.py", "the demo leaves what a user has set",
        "environment.setdefault(name, value)", "environment[name] = value",
        "tests/flows/test_demo.py",
    ),
    Break(
        "flows/demo.py", "servers that are kept have a key that the user knows",
        "if keep and chosen.api_key is None", "if keep and chosen.api_key",
        "tests/flows/test_demo.py",
    ),
    Break(
        "flows/doctor.py", "doctor's exit code is that of the first error",
        "return errors[0] if errors else", "return errors[-1] if errors else",
        "tests/flows/test_doctor.py::test_the_exit_code_follows_the_severity",
    ),
    Break(
        "flows/doctor.py", "one check that breaks hides no other",
        "        except Exception as error:", "        except OSError as error:",
        "tests/flows/test_doctor.py::test_a_check_that_breaks_is_a_finding_and_the_others_are_made",
    ),
    Break(
        "flows/patches.py", "nothing is exported of a series with a blocked patch",
        "        refuse_blocked(placed, work.release, work.folder)\n        told =", "        told =",
        "tests/patches/test_life.py::test_a_blocked_patch_and_an_upstream_tree_that_is_not_there_are_one_clear_problem",
    ),
    Break(
        "flows/plan.py", "a plan says that production is on hold",
        'f", on hold: {self.hold.reason}" if self.hold else ""', '""',
        "tests/flows/test_plan.py",
    ),
    Break(
        "flows/serve.py", "every flow is a deployment of the server that `serve` runs",
        'words = ("deploy", "--all",', 'words = ("deploy", "--name", "upgrade/production",',
        "tests/flows/test_deployed.py::test_a_person_reads_in_the_page_what_a_deployment_does_and_takes",
    ),
    Break(
        "flows/server.py", "a run that somebody may still have is not called crashed",
        "run.state.timestamp < at - LOST_AFTER", "run.state.timestamp < at",
        "tests/flows/test_server.py::test_runs_that_no_process_has_any_more_are_settled_after_a_while_and_no_others",
    ),
    Break(
        "flows/server.py", "an unattended approval names its approver",
        '"decision": "approve", "approver": name', '"decision": "approve", "approver": "unattended"',
        "tests/flows/test_server.py::test_an_unattended_approver_is_recorded_by_name",
    ),
    Break(
        "flows/deployed.py", "a worker without the key starts no successor of production",
        "    if settings.api_key is None:\n", "    if settings.api_key:\n",
        "tests/flows/test_deployed.py::test_a_run_says_in_one_error_all_that_its_worker_lacks",
    ),
    Break(
        "flows/outcome.py", "a rejection has an exit code of its own",
        '{"rejected": 4}', '{"rejected": 0}',
        "tests/flows/test_server.py::test_a_rejection_ends_the_run_as_rejected_and_not_as_failed",
    ),
    Break(
        "flows/outcome.py", "a run that died with the lock is shown as crashed",
        ", stale=_crashed", "",
        "tests/flows/test_server.py::test_a_second_run_is_refused_and_a_killed_run_is_marked_crashed_by_the_next",
    ),
    Break(
        "flows/outcome.py", "who only looks in is waited for",
        "one_at_a_time(store, looks_in=True)", "one_at_a_time(store)",
        "tests/flows/test_server.py::test_a_run_that_begins_while_another_looks_in_waits_for_it",
    ),
    Break(
        "tasks/turns.py", "a lock that somebody holds for a moment is waited for",
        "max(patience_s, LOOK_IN_S) if", "patience_s if",
        "tests/flows/test_server.py::test_a_run_that_begins_while_another_looks_in_waits_for_it",
    ),
    Break(
        "tasks/platforms/local/server.py", "what a server dies of after its answer is seen",
        "client.health() is None and server.gone_within(DYING_S)", "not server.alive",
        "tests/contracts/test_deaths.py::"
        "test_what_a_server_dies_of_after_its_answer_is_told_of_the_promise_that_was_asked_last",
    ),
    Break(
        "flows/parameters.py", "whoever does it has a name that is not blank",
        'pattern=r"\\S", max_length', "max_length",
        "tests/flows/test_order.py::test_a_name_and_a_reason_are_not_blank",
    ),
    Break(
        "flows/__main__.py", "bad input and a broken machine are told apart by the exit code",
        "sys.exit(problem.exit_code)", "sys.exit(1)",
        "tests/flows/test_needs.py::test_a_command_names_all_at_once_and_starts_and_fetches_nothing",
    ),
    Break(
        "flows/__main__.py", "`explain` that knows nothing says so to a script",
        "raise typer.Exit(0 if matches else 1)", "raise typer.Exit(0)",
        "tests/flows/test_doctor.py::test_explain_says_what_to_collect_when_it_knows_nothing",
    ),
    Break(
        "flows/server.py", "whoever approves at the terminal outlives an API that is down for a while",
        'with troubles.outlived("asking for approval at the terminal"):', "if True:",
        "tests/flows/test_approver.py",
    ),
    Break(
        "flows/server.py", "a change needs a CSRF token",
        '"PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true"', '"PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "false"',
        "tests/flows/test_deployed.py::test_its_own_page_is_served_under_its_own_names_and_changes_nothing_without_a_token",
    ),
    Break(
        "flows/server.py", "the Prefect server of a command asks for the password",
        "    if open_to_all:\n        del env", "    if True:\n        del env",
        "tests/flows/test_deployed.py::test_without_the_password_nothing_is_answered_and_nothing_begun",
    ),
    Break(
        "flows/door.py", "another Host name is refused",
        "if len(hosts) != 1 or _name(hosts[0]) not in self._hosts:", "if len(hosts) != 1:",
        "tests/flows/test_door.py",
    ),
    Break(
        "flows/door.py", "a web page of another address is refused",
        'return "" if self._origins.issuperset(origins) else', 'return "" if origins or not origins else',
        "tests/flows/test_door.py",
    ),
    Break(
        "flows/worker.py", "a run may set nothing of how it is run",
        '"additionalProperties": False', '"additionalProperties": True',
        "tests/flows/test_deployed.py::test_a_run_may_set_nothing_of_how_it_is_run",
    ),
    Break(
        "flows/worker.py", "a deployment's entrypoint and pull steps are not read",
        'self.env["PREFECT__FLOW_ENTRYPOINT"] = entrypoint', 'self.env["ENTRYPOINT"] = entrypoint',
        "tests/flows/test_deployed.py::test_whoever_has_the_password_still_runs_no_command_of_his_own",
    ),
    Break(
        "flows/worker.py", "nor are they for the hooks of a run that crashed",
        'flow_run.model_copy(update={"deployment_id": None})', "flow_run",
        "tests/flows/test_deployed.py::test_whoever_has_the_password_still_runs_no_command_of_his_own",
    ),
    Break(
        "flows/worker.py", "what Prefect makes of being told to stop is nobody's error",
        "        if not told:\n            raise\n", "        raise\n",
        "tests/flows/test_deployed.py::"
        "test_told_to_stop_while_it_starts_a_run_it_ends_with_all_that_it_started_and_without_a_traceback",
    ),
    Break(
        "flows/upstream.py", "builds in the wrong order are not compared",
        "if last is None or last.build <= first.build:", "if last is None:",
        "tests/upstream/test_treediff.py::"
        "test_the_command_compares_two_builds_and_refuses_them_in_the_wrong_order",
        real=True,
    ),
    Break(
        "flows/adopt.py", "a file that says something else is not replaced unasked",
        "    _show_notes(adopted)\n    written = write(adopted, force)",
        "    _show_notes(adopted)\n    written = write(adopted, True)",
        "tests/adoption/test_command.py::test_a_file_that_would_change_needs_force",
    ),
    # -- adoption ------------------------------------------------------------------------------------------------------
    Break(
        "tasks/adoption/launch.py", "a key with an underscore in its flag is a key",
        'flag = flag.replace("_", "-") if flag.startswith("--") else flag',
        'flag = flag',
        "tests/adoption/test_read.py",
    ),
    Break(
        "tasks/adoption/launch.py", "our own variables are no flags of the server",
        'not name.startswith(_OURS)',
        'True',
        "tests/adoption/test_read.py",
    ),
    Break(
        "tasks/flags/words.py", "a mistyped flag of a key does not show the key",
        'Refused(bare if _SECRET',
        'Refused(said if _SECRET',
        "tests/adoption/test_adopt.py::test_a_mistyped_flag_of_a_key_does_not_show_it",
    ),
    Break(
        "tasks/adoption/settle.py", "of several slots each has its share of the context",
        'total // count, share',
        'total, share',
        "tests/adoption/test_adopt.py",
    ),
    Break(
        "tasks/adoption/settle.py", "what is taken over and can't be released yet is told",
        "if why := not_yet.get(main):", "if why := not_yet.get(main, '') and '':",
        "tests/adoption/test_adopt.py::test_a_server_that_cannot_be_released_yet_is_taken_over_and_refused_by_name",
    ),
    Break(
        "tasks/adoption/settle.py", "all that can't be taken over is named at once",
        '[*reading.refused, *refused]',
        'reading.refused[:1]',
        "tests/adoption/test_adopt.py::test_all_that_can_not_be_taken_over_is_named_at_once",
    ),
    Break(
        "tasks/adoption/document.py", "what another hand wrote into the file stays",
        '            if rest:\n                yield rest\n',
        '',
        "tests/adoption/test_adopt.py::test_a_file_that_would_change_is_shown_and_left_alone_unless_forced",
    ),
    Break(
        "tasks/adoption/adopt.py", "a second import of the same leaves the file as it is",
        'return self.old is None or not says_the_same(self.settled, self.old)',
        'return self.old != self.text',
        "tests/adoption/test_adopt.py::test_a_second_import_leaves_the_file_as_it_is",
    ),
    Break(
        "tasks/adoption/compose.py", "on is a word in a compose file, not a truth",
        '("tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")',
        '("tag:yaml.org,2002:bool", "tag:yaml.org,2002:null", "tag:yaml.org,2002:merge")',
        "tests/adoption/test_read.py",
    ),
    Break(
        "tasks/adoption/unit.py", "an empty ExecStart= forgets the one before",
        'if value else []',
        'if value else found.get(key, [])',
        "tests/adoption/test_read.py",
    ),
    Break(
        "tasks/adoption/containers.py", "-e wins over a file of variables",
        '    for name, value in options:\n        if name in ("-e", "--env") and value:',
        '    for name, value in () if found else options:\n        if name in ("-e", "--env") and value:',
        "tests/adoption/test_read.py",
    ),
    Break(
        "tasks/adoption/words.py", "sudo passes no variable of the caller on",
        'if "-E" not in names and',
        'if "-E" in names and',
        "tests/adoption/test_read.py",
    ),
    Break(
        "tasks/adoption/shell.py", "what only a shell can tell is not guessed",
        '                raise _needs_a_shell(f"it has {operator!r}")',
        '                pass',
        "tests/adoption/test_variables.py",
    ),
    Break(
        "tasks/adoption/running.py", "a server that is no llama-server is not taken over",
        'or not (_is(_Props, props.body) and',
        'or not (isinstance(props.body, dict) and',
        "tests/adoption/test_running.py::test_what_answers_otherwise_is_refused",
    ),
    Break(
        "flows/hub.py", "what is on the Hub already pinned is nothing newer",
        "if before and same and before.pin.commit == found.pin.commit:", "if not before:",
        "tests/hub/test_hub.py::test_the_command_pins_and_says_what_changed",
    ),
    # -- approval ------------------------------------------------------------------------------------------------------
    Break(
        "tasks/approval/attend.py", "an approval from before the question does not answer it",
        "return store.approval(request.key)",
        "return next((each for each in store.approvals(request.release) if each.dossier == request.dossier), None)",
        "tests/approval/test_standing.py",
    ),
    Break(
        "tasks/approval/attend.py", "an approval holds for the dossier that was shown",
        "    if dossier.digest != request.dossier:", "    if dossier.blockers:",
        "tests/approval/test_standing.py",
    ),
    Break(
        "tasks/approval/attend.py", "an approval holds while staging serves what was proved",
        "    if staging != request.release:", "    if not staging:",
        "tests/approval/test_standing.py",
    ),
    Break(
        "tasks/approval/attend.py", "a question does not outlive a move or a hold of production",
        "    if production.version != request.version:", "    if False:",
        "tests/approval/test_standing.py::test_a_question_does_not_outlive_a_hold",
    ),
    Break(
        "tasks/approval/question.py", "an approval to replace one release replaces no other",
        "(found.dossier, found.version) == (dossier.digest, production.version)", "found.dossier == dossier.digest",
        "tests/approval/test_standing.py",
    ),
    Break(
        "tasks/approval/question.py", "a rejection is no approval",
        'if found is None or found.decision != "approve":', "if found is None:",
        "tests/approval/test_standing.py",
    ),
    Break(
        "tasks/approval/terminal.py", "an answer is given to a run that waits",
        "            if not state.is_paused():", "            if state.is_final():",
        "tests/approval/test_terminal.py::test_a_run_that_waits_goes_on_with_what_was_said_in_a_terminal",
    ),
    Break(
        "tasks/approval/held.py", "who took the port of a Prefect server that ended is not told the password",
        "not password.shows(page, given)", "given is None",
        "tests/test_password.py::test_who_took_the_port_of_a_server_that_ended_is_told_nothing",
    ),
    Break(
        "tasks/approval/held.py", "a shell with nothing set answers with the store's password",
        "kept = {} if needless else", "kept = {} if needless or True else",
        "tests/approval/test_terminal.py::test_a_shell_with_nothing_set_answers_with_what_the_store_knows",
    ),
    # -- contracts -----------------------------------------------------------------------------------------------------
    Break(
        "tasks/contracts/judge.py", "what must hold fails a release, whatever production does",
        "    if contract.must:\n", "    if contract.must and theirs_kept:\n",
        "tests/contracts/test_judge.py",
    ),
    Break(
        "tasks/contracts/judge.py", "a promise that production keeps and the candidate breaks fails it",
        "    if theirs_kept:\n", "    if theirs_kept and contract.must:\n",
        "tests/contracts/test_judge.py",
    ),
    Break(
        "tasks/contracts/promises.py", "our own mistake is not called the release's",
        "        verdict = Verdict.ERRORED if alive else Verdict.FAILED", "        verdict = Verdict.FAILED",
        "tests/contracts/test_runner.py",
    ),
    Break(
        "tasks/contracts/promises.py", "evidence holds no key",
        "return _clipped(redact(json.loads(json.dumps(value, default=str)), key))",
        "return _clipped(json.loads(json.dumps(value, default=str)))",
        "tests/contracts/test_runner.py",
    ),
    Break(
        "tasks/contracts/promises.py", "a server that dies ends the asking, and is told as dead",
        "context.notes[DIED] = REFUSED if", 'context.notes["ended"] = REFUSED if',
        "tests/contracts/test_deaths.py::test_the_promise_that_a_server_died_of_is_named_and_the_others_were_not_asked",
        real=True,
    ),
    Break(
        "tasks/contracts/judge.py", "what production does not keep either is no reason against a release",
        "_with(found, Verdict.PASSED, f\"known,", "_with(found, Verdict.INCONCLUSIVE, f\"known,",
        "tests/contracts/test_judge.py",
    ),
    Break(
        "tasks/contracts/judge.py", "what is known and not kept is not counted as kept",
        "    if UNMET in verification.evidence and", "    if verification.verdict is Verdict.FAILED and",
        "tests/contracts/test_judge.py",
    ),
    Break(
        "tasks/contracts/promises.py", "a 5xx that comes each time is the release's, not ours",
        "        if alive and (said := _repeated_error(", "        if not alive and (said := _repeated_error(",
        "tests/contracts/test_runner.py",
    ),
    Break(
        "tasks/contracts/sayings.py", "a piece of a streamed call without its index is seen",
        """isinstance(part.get("index"), int)""", """part.setdefault("index", 0) in (0, None)""",
        "tests/contracts/test_sayings.py",
    ),
    Break(
        "tasks/contracts/sayings.py", "nothing comes after a stream's finish_reason",
        """expect(choices[-1]["finish_reason"], \"""", """expect(choices, \"""",
        "tests/contracts/test_sayings.py",
    ),
    Break(
        "tasks/contracts/stops.py", "of two stops that have come the one that begins first ends the text",
        "        found = [(text.find(stop), n, stop)", "        found = [(n, text.find(stop), stop)",
        "tests/contracts/test_sayings.py",
    ),
    Break(
        "tasks/contracts/promises.py", "what a slot has no room for is not held against the server",
        "if fits is not None and fits < self.room:", "if fits is None:",
        "tests/contracts/test_runner.py",
    ),
    Break(
        "tasks/contracts/auth.py", "a route that came with a build is asked for a key",
        "routes, shown = routes_to_close(ctx.client.routes), LAST", "routes, shown = private_routes(), LAST",
        "tests/contracts/test_real.py::test_a_route_that_came_with_a_build_is_asked_for_a_key_too", real=True,
    ),
    Break(
        "tasks/endpoint/client.py", "the /v1 that a client's base URL ends with is not asked for twice",
        """return url.rstrip("/").removesuffix("/v1")""", """return url.rstrip("/")""",
        "tests/contracts/test_against.py::test_v1_is_not_part_of_the_base",
    ),
    Break(
        "tasks/contracts/twins.py", "what a server does not say twice alike is no fault of its streams",
        "if name in still and name not in unsteady}", "if name in still}",
        "tests/contracts/test_against.py::test_what_is_no_fault_of_a_stream_is_not_held_against_it",
    ),
    Break(
        "tasks/contracts/auth.py", "a key without letters is not called a wrong spelling of itself",
        "if sent != key  #", "if what  #",
        "tests/contracts/test_against.py::test_the_right_key_is_no_wrong_spelling_of_itself",
    ),
    Break(
        "tasks/contracts/promises.py", "the command that shows a fault sends no key where none was sent",
        '"wrong" if key else "none"}', '"wrong" if key else "right"}',
        "tests/contracts/test_runner.py::test_the_command_sends_the_key_and_the_body_that_were_sent",
    ),
    Break(
        "tasks/contracts/wire.py", "an answer without end is left",
        "while len(read) < MOST_BYTES and time.monotonic() < deadline:", "while True:",
        "tests/contracts/test_wire.py",
    ),
    Break(
        "tasks/contracts/reading.py", "a template that asks for what jinja2 has not is not compared",
        "    if _NOT_OURS.search(template):", "    if not template:",
        "tests/contracts/test_reading.py",
    ),
    Break(
        "tasks/contracts/sayings.py", "a response that its limit cut may say so",
        '("response.completed", "response.incomplete")', '("response.completed",)',
        "tests/contracts/test_sayings.py",
    ),
    # -- doctor --------------------------------------------------------------------------------------------------------
    Break(
        "tasks/doctor/room.py", "a disk on which no release fits is an error",
        "        if free < use.surely:", "        if free < 0:",
        "tests/doctor/test_room.py::test_a_disk_on_which_no_release_fits_is_an_error_and_each_disk_is_looked_at",
    ),
    Break(
        "tasks/doctor/needs.py", "all that is missing is told at once",
        "        except Problem as problem:\n            missing.append",
        "        except BadInput as problem:\n            missing.append",
        "tests/doctor/test_needs.py::test_all_that_is_missing_is_one_error_with_one_command",
    ),
    Break(
        "tasks/doctor/stored.py", "people who could not be told are a warning",
        "for entry in box.waiting if entry.why]", "for entry in box.waiting if entry.tries > 9]",
        "tests/doctor/test_stored.py::test_people_who_could_not_be_told_are_a_warning",
    ),
    Break(
        "tasks/doctor/model.py", "a download that broke off is found",
        "< header.needed_bytes", "< header.needed_bytes // 2",
        "tests/doctor/test_configuration.py::test_a_download_that_broke_off_is_found_without_reading_the_tensors",
    ),
    Break(
        "tasks/doctor/modal_calls.py", "a blocking Modal call in async code is found",
        "        if isinstance(child, ast.AsyncFunctionDef):\n            here = True",
        "        if isinstance(child, ast.AsyncFunctionDef):\n            here = inside",
        "tests/doctor/test_modal_calls.py",
    ),
    # -- endpoint ------------------------------------------------------------------------------------------------------
    Break(
        "tasks/endpoint/chain.py", "a request that may have run a tool is not sent twice",
        "self.repeatable = idempotent or not self.guard.may_run_a_tool", "self.repeatable = idempotent or bool(body)",
        "tests/endpoint/test_client.py::test_a_broken_off_request_that_may_have_run_a_tool_is_never_repeated",
    ),
    Break(
        "tasks/endpoint/chain.py", "a key that is cut in half is hidden all the same",
        "return self._clean(text)[:_EXCERPT]", "return self._clean(text[:_EXCERPT])",
        "tests/endpoint/test_chain.py",
    ),
    Break(
        "tasks/endpoint/guards.py", "a call of a tool that was not offered is not handed out",
        "        if name not in self.tools:\n", "        if not self.tools:\n",
        "tests/endpoint/test_guards.py",
    ),
    # -- evals ---------------------------------------------------------------------------------------------------------
    Break(
        "tasks/evals/gate.py", "a gate passes when all of its questions do",
        "return Verdict.PASSED if verdicts == {Verdict.PASSED} else",
        "return Verdict.PASSED if Verdict.PASSED in verdicts else",
        "tests/evals/test_gate.py",
    ),
    Break(
        "tasks/evals/gate.py", "a gate that could not show any harm decides nothing",
        "Verdict.INCONCLUSIVE if self.blind else Verdict.PASSED", "Verdict.PASSED",
        "tests/evals/test_gate.py",
    ),
    Break(
        "tasks/evals/gate.py", "a release fails when it is surely worse",
        "        elif found.high < -self.margin:", "        elif found.low < -self.margin:",
        "tests/evals/test_gate.py",
    ),
    Break(
        "tasks/evals/sequential.py", "one broken template is not drowned by many items",
        "min(mean - width, _betting_low(x, margin))", "_betting_low(x, margin)",
        "tests/evals/test_sequential.py",
    ),
    Break(
        "tasks/evals/collect.py", "a request that failed is no wrong answer",
        "                    if answer.outcome is Outcome.ERRORED:", "                    if not answer:",
        "tests/evals/test_collect.py::test_a_request_that_failed_is_no_answer_and_not_kept",
    ),
    Break(
        "tasks/evals/families/__init__.py", "an item that is asked twice is no second witness",
        "not in seen:", "is not None:",
        "tests/evals/test_families.py",
    ),
    # -- hub -----------------------------------------------------------------------------------------------------------
    Break(
        "tasks/hub/remote.py", "a file of the Hub that is not what it promises is refused",
        "        if digest != file.sha256:", "        if not digest:",
        "tests/hub/test_hub.py::test_another_digest_is_refused_and_nothing_of_it_is_kept",
    ),
    Break(
        "tasks/hub/remote.py", "a download goes on where it broke off",
        "        if begin:\n", "        if not begin:\n",
        "tests/hub/test_hub.py::test_a_download_that_breaks_off_goes_on_where_it_was",
    ),
    Break(
        "tasks/hub/remote.py", "the token is not sent where others can read it",
        'parts.scheme == "https" or', "parts.scheme or",
        "tests/hub/test_hub.py::test_a_token_is_not_sent_where_others_can_read_it",
    ),
    Break(
        "tasks/hub/__init__.py", "what a repository stands for is pinned",
        "    pin = store.hub_pin(repo, Pin)\n    found = _pinned", "    pin = None\n    found = _pinned",
        "tests/hub/test_hub.py::test_a_repository_that_moves_on_changes_nothing_until_somebody_says_so",
    ),
    Break(
        "tasks/hub/copies.py", "a cache's word for a file's content is not enough",
        "file.size_bytes and store.content_of(path) == file.sha256:", "file.size_bytes:",
        "tests/hub/test_hub.py::test_a_cache_whose_file_is_another_is_not_believed",
    ),
    Break(
        "tasks/hub/choice.py", "a projector of another folder is none for this model",
        " or folder[: len(there)] != there:", ":",
        "tests/hub/test_choice.py",
    ),
    # -- patches -------------------------------------------------------------------------------------------------------
    Break(
        "tasks/patches/series.py", "a patch does not leave the source tree",
        '".." in parts', '".." == path',
        "tests/patches/test_apply.py",
    ),
    Break(
        "tasks/patches/trees.py", "no patch is applied with fuzz",
        '"apply", "--cached",', '"apply", "--cached", "-C1",',
        "tests/patches/test_apply.py",
    ),
    Break(
        "tasks/patches/classify.py", "evidence that was true before the patch proves nothing",
        "        if self.base and (said := line(self.base.tree,",
        "        if not self.base and (said := line(self.base.tree,",
        "tests/patches/test_classify.py",
    ),
    Break(
        "tasks/patches/classify.py", "upstreamed is said of a patch whose every change upstream has",
        "if there and len(there) == len(units) and", "if there and",
        "tests/patches/test_classify.py",
    ),
    Break(
        "tasks/patches/retire.py", "a proof retires a patch for its own release only",
        'and event.detail.get("upstream") == release.tag', "",
        "tests/patches/test_life.py::test_a_proof_in_the_ledger_makes_a_patch_obsolete_for_its_own_release_only",
    ),
    Break(
        "tasks/patches/scopes.py", "a word beside a head is taken whole",
        '[A-Z_][A-Z0-9_]*|__\\w+)\\b|&)\\s*+)"', '[A-Z_][A-Z0-9_]*|__\\w+)|&)\\s*)"',
        "tests/patches/test_scopes.py",
    ),
    Break(
        "tasks/patches/classify.py", "the files of a patch are read for a bounded time",
        "        reader.until = min(end, time.monotonic() + patch_s)\n", "",
        "tests/patches/test_classify.py::test_a_patch_whose_files_are_not_read_in_time_is_undecided",
    ),
    Break(
        "tasks/patches/classify.py", "an archive that is not whole tells nothing of what upstream removed",
        "return WHOLE not in self.reader.files(self.target.upstream)", "return False",
        "tests/patches/test_kinds.py::test_a_file_that_a_lean_archive_lacks_was_not_removed",
    ),
    Break(
        "tasks/patches/classify.py", "what upstream has elsewhere in the function is not added again",
        "            line = self.effect(base, unit)\n", "            line = None\n",
        "tests/patches/test_kinds.py::test_a_statement_that_upstream_has_a_few_lines_up_is_not_added_twice",
    ),
    Break(
        "tasks/patches/lines.py", "a removed block may have been its twin",
        "while high + size < len(text)", "while False and high + size < len(text)",
        "tests/patches/test_kinds.py::test_of_two_blocks_that_look_alike_in_one_function_none_is_taken_for_the_other",
    ),
    Break(
        "tasks/patches/series.py", "line ends are rewritten only where all of git's lines have others",
        " if ends == {True} else text", "",
        "tests/patches/test_kinds.py::test_line_ends_of_the_sources_stay_as_they_are",
    ),
    Break(
        "tasks/patches/retire.py", "only passed probes retire a patch",
        "    if proved is None:\n", "    proved = proved or result\n    if proved is None:\n",
        "tests/patches/test_life.py::test_a_patch_is_not_retired_by_its_text_alone_nor_by_a_waiver",
    ),
    Break(
        "tasks/patches/edit.py", "a stray file is not exported",
        'edit.git("add", "--update")', 'edit.git("add", "--all")',
        "tests/patches/test_change.py::test_a_stray_file_in_an_edit_is_not_exported_and_is_named",
    ),
    Break(
        "tasks/sources.py", "a git that hangs is ended when the time of a series is over",
        "min(GIT_TIMEOUT_S, self.until - time.monotonic())", "GIT_TIMEOUT_S",
        "tests/patches/test_classify.py::test_a_git_that_hangs_is_ended_when_the_time_of_the_series_is_over",
    ),
    Break(
        "tasks/patches/change.py", "a patch that comes in does not take another's name",
        "    if name in names:\n", "    if False:\n",
        "tests/patches/test_change.py::test_of_a_folder_all_patches_come_in_or_none",
    ),
    Break(
        "tasks/patches/culprit.py", "what a part of a tree says of a patch is asked of the whole",
        "if fits_whole(low) and not fits_whole(high):", "if True:",
        "tests/patches/test_culprit.py::test_a_function_that_went_elsewhere_with_the_fix_is_asked_of_whole_trees",
    ),
    Break(
        "tasks/patches/__init__.py", "a build that nothing can be said of breaks no patch",
        "        if status.blocked and status not in BROKEN_BY_UPSTREAM:\n", "        if False:\n",
        "tests/patches/test_culprit.py::test_an_archive_that_is_not_whole_breaks_nothing",
    ),
    Break(
        "tasks/patches/__init__.py", "what is undecided on a release is nobody's fault",
        "p.result.status in BROKEN_BY_UPSTREAM and", "p.result.status.blocked and",
        "tests/patches/test_culprit.py::test_a_build_that_nothing_can_be_said_of_breaks_nothing",
    ),
    Break(
        "tasks/patches/culprit.py", "a search past builds that can't be had is given up",
        "if len(self.lost) >= BUILDS_LOST:", "if False:",
        "tests/patches/test_culprit.py::"
        "test_a_search_that_takes_too_long_or_finds_too_few_builds_is_given_up_and_says_so",
    ),
    Break(
        "tasks/patches/classify.py", "what is left of a file that is not UTF-8 is not made of what was read of it",
        'if "\\ufffd" in text):', "if not text):",
        "tests/patches/test_classify.py::"
        "test_what_is_left_of_a_patch_of_a_file_that_is_not_utf_8_is_a_persons_business",
    ),
    Break(
        "tasks/patches/export.py", "no hunk leaves a patch because we read that upstream has it",
        "        if status is PatchStatus.PARTLY_UPSTREAMED:\n", "        if False:\n",
        "tests/patches/test_life.py::"
        "test_refresh_leaves_a_patch_whole_that_upstream_has_a_part_of_and_what_is_made_on_it",
    ),
    Break(
        "tasks/patches/export.py", "a date that no mail has ends no export",
        "suppress(TypeError, ValueError, OverflowError)", "suppress(OverflowError)",
        "tests/patches/test_life.py::test_a_date_however_it_was_written_does_not_end_an_export",
    ),
    Break(
        "tasks/patches/change.py", "two patches that become one owe both proofs",
        "    text = _with_proofs(", "    _with_proofs(",
        "tests/patches/test_change.py::test_a_fold_owes_the_proofs_of_both_and_a_waiver_covers_no_other_patch",
    ),
    Break(
        "tasks/patches/change.py", "a file that is not of the series is not written over",
        "or (work.folder / name).exists()):", "):",
        "tests/patches/test_change.py::test_a_file_that_is_not_of_the_series_is_not_written_over",
    ),
    Break(
        "tasks/patches/change.py", "the commit before a merge is not taken for it",
        '("-1", f"{what}^!")', '("-1", what)',
        "tests/patches/test_change.py::"
        "test_a_merge_and_an_empty_commit_are_no_patches_and_merges_of_a_range_are_told",
    ),
    Break(
        "tasks/patches/change.py", "a diff comes in with the line ends of the sources",
        "        text = line_ends(text)\n", '        text = text.replace("\\r\\n", "\\n")\n',
        "tests/patches/test_change.py::test_line_ends_of_the_sources_come_in_as_they_are",
    ),
    Break(
        "tasks/platforms/modal/apps.py", "what a server says is told without Modal's times and our own lines",
        "if not OURS.match(line))", ")",
        "tests/platforms/test_modal_account.py::"
        "test_what_a_server_says_is_its_own_lines_as_it_wrote_them_from_the_first_on",
    ),
    Break(
        "tasks/patches/watch.py", "a broken patch is told on one day",
        ".status.blocked and one.patch.name not in known]", ".status.blocked]",
        "tests/patches/test_watch.py",
    ),
    Break(
        "tasks/proof.py", "no single look refuses a release or drops a patch",
        "return failing or idle", "return False",
        "tests/test_proof.py::test_no_single_look_refuses_a_release_or_drops_a_patch_and_a_third_decides_between_two",
    ),
    Break(
        "tasks/proof.py", "the approver reads that a patch is not proved",
        'if result.waiver else ""', 'if not result.waiver else ""',
        "tests/test_proof.py::test_a_waiver_stands_in_the_line_that_the_approver_reads",
    ),
    Break(
        "tasks/patches/__init__.py", "no patch is left out with another one that proves nothing",
        "if p.patch.name in was_built and not", "if p.patch.name not in was_built and not",
        "tests/patches/test_left_out.py::"
        "test_a_patch_that_cant_be_made_without_one_that_goes_is_not_left_out_with_it",
    ),
    Break(
        "tasks/proof.py", "what is built without some patches is probed",
        "_refuse_missed(result, _proof(platform, settings, result, names, built, None, \"\", again), gone)",
        "_proof(platform, settings, result, names, built, None, \"\", again)",
        "tests/patches/test_left_out.py",
    ),
    Break(
        "tasks/patches/__init__.py", "the commits of a series are those that were built",
        "    keep_commits(sources, source.upstream, source.upstream_tree, placed)\n", "",
        "tests/patches/test_left_out.py::test_the_commits_of_the_series_are_those_that_were_built",
    ),
    Break(
        "tasks/patches/bases.py", "what a patch was made from is looked for once",
        "if key not in self._found:", "if True:",
        "tests/patches/test_left_out.py::"
        "test_what_patches_were_made_from_is_looked_for_once_for_all_the_trees_of_a_proof",
    ),
    Break(
        "tasks/patches/retire.py", "a proof retires the very file that was proved",
        "if result.sha256 != proved.sha256:", "if False:",
        "tests/patches/test_life.py::test_a_file_that_has_changed_since_its_proof_is_not_retired_by_it",
    ),
    Break(
        "tasks/patches/__init__.py", "a waived patch does not go by its text alone",
        "in (PatchStatus.UPSTREAMED, PatchStatus.PARTLY_UPSTREAMED):", "in ():",
        "tests/test_proof.py::test_a_waived_patch_does_not_go_by_its_text_alone",
    ),
    Break(
        "tasks/patches/change.py", "a message of others waives nothing",
        '"|".join(["Waiver", *', '"|".join(["Waived", *',
        "tests/patches/test_change.py::test_who_waives_a_proof_says_so_here_and_no_message_of_others_does",
    ),
    Break(
        "flows/patches.py", "the series does not change while a patch of it is edited",
        "        if known := edit.under_way(store.root):\n", "        if known := None:\n",
        "tests/patches/test_change.py::test_the_series_does_not_change_while_a_patch_of_it_is_edited",
    ),
    Break(
        "tasks/proof.py", "looks that are even decide nothing",
        "return len(most) == 2 and most[0] == most[1]", "return len(seen) < 3 and len(most) == 2",
        "tests/test_proof.py::test_looks_that_are_even_decide_nothing",
    ),
    Break(
        "tasks/proof.py", "one start that failed proves no patch",
        "return failing or idle\n", "return failing or (idle and not self.is_needed_to_come_up)\n",
        "tests/test_proof.py::test_one_start_that_failed_does_not_show_that_a_server_needs_a_patch",
    ),
    Break(
        "tasks/patches/watch.py", "of two broken patches the one that is new is looked into",
        "row.progress(1, 2, what), _newly_broken(before, placed),", "row.progress(1, 2, what),",
        "tests/patches/test_watch.py::test_of_two_broken_patches_the_one_that_is_new_is_told_with_what_broke_it",
    ),
    Break(
        "tasks/patches/__init__.py", "a build that a patch did not fit either is not where its culprit is looked for",
        "for since in dict.fromkeys((good, None))", "for since in (good,)",
        "tests/patches/test_culprit.py::test_where_it_did_not_fit_then_the_search_begins_where_the_patch_was_made",
    ),
    Break(
        "tasks/patches/classify.py", "a copy of a function is not its heir",
        "return not olds.named(new.name) and all(", "return not olds.named(new.name) or all(",
        "tests/patches/test_kinds.py::test_a_copy_of_a_function_is_not_its_heir",
    ),
    Break(
        "tasks/probes.py", "an option has its default in all places",
        "if fact.value != value]", "if fact.value != value and len(found) > 1]",
        "tests/test_probes.py::test_an_option_has_the_default_that_the_tree_gives_it",
    ),
    Break(
        "tasks/build.py", "an archive without CUDA code is not built for a GPU",
        "    if not sources.files(source.upstream_tree, CUDA):\n", "    if False:\n",
        "tests/test_build.py",
    ),
    Break(
        "tasks/upstream/github.py", "a title of white space is read once",
        r'_PULL = re.compile(r"\(#(\d+)\)$")', r'_PULL = re.compile(r"\s*\(#(\d+)\)$")',
        "tests/test_hostile_text.py",
    ),
    # -- platforms/local -----------------------------------------------------------------------------------------------
    Break(
        "tasks/platforms/local/server.py", "no setting and no secret reaches a server",
        "return child.serving(folder) |", "return child.everything() |",
        "tests/platforms/test_local.py",
    ),
    Break(
        "tasks/platforms/local/procfs.py", "a port that two listen on is owned by neither",
        "return bool(inodes) and inodes <= _sockets(pid)", "return bool(inodes & _sockets(pid))",
        "tests/platforms/test_processes.py",
    ),
    Break(
        "tasks/platforms/local/proxy.py", "a large body is sent once",
        "return self._size <= REPLAY_BYTES", "return True",
        "tests/platforms/test_proxy.py",
    ),
    Break(
        "tasks/platforms/local/control.py", "the control socket, which takes keys, is its user's alone",
        " and not found.st_mode & 0o077", "",
        "tests/platforms/test_local.py",
    ),
    Break(
        "tasks/platforms/local/compile.py", "a binary of another source is no build",
        " or source.tree[:9] not in line:", ":",
        "tests/test_compile.py",
    ),
    Break(
        "tasks/platforms/local/compile.py", "a build says what it may use of a CPU",
        "without.add if flag.startswith", "without.discard if flag.startswith",
        "tests/test_faults.py",
    ),
    Break(
        "tasks/platforms/local/snapshot.py", "a snapshot is used on the machine that it was taken on",
        "        if was != is_now:", "        if was and is_now and was != is_now:",
        "tests/platforms/test_snapshot_files.py",
    ),
    Break(
        "tasks/platforms/local/__init__.py", "a start that says nothing in time asks who looks after the stage",
        "            return not said and self.status(stage) is not None\n", "            return False\n",
        "tests/platforms/test_activator.py::test_a_start_that_says_nothing_in_time_is_none_of_a_stage_that_another_"
        "looks_after", real=True,
    ),
    Break(
        "tasks/platforms/local/procfs.py", "a listener is seen past a descriptor that is closed meanwhile",
        "            continue\n        if target.startswith", "            break\n        if target.startswith",
        "tests/platforms/test_processes.py::test_a_listener_is_seen_past_a_descriptor_that_is_closed_meanwhile",
    ),
    Break(
        "tasks/platforms/local/snapshot.py", "another key is another snapshot",
        "f'{release} {key} {generation}'.encode()", "f'{release} {generation}'.encode()",
        "tests/platforms/test_snapshot_files.py",
    ),
    Break(
        "tasks/platforms/local/activator.py",
        "a request whose server died before it answered is answered by the next one",
        "            if not body.replayable:\n                raise\n", "            raise\n",
        "tests/platforms/test_deaths.py::test_a_client_behind_the_proxy_is_told_how_the_server_ended_and_it_is_on_"
        "record_by_then", real=True,
    ),
    Break(
        "tasks/platforms/local/activator.py", "a deploy under load loses no request",
        "        while not await replica.drained(60.0):", "        if not await replica.drained(0.0):",
        "tests/platforms/test_activator.py::test_a_deploy_under_load_loses_no_request", real=True,
    ),
    Break(
        "tasks/platforms/local/door.py", "clients that only connect keep nobody out",
        "                self._show_out(longest)\n", "                await asyncio.sleep(PAUSE_S)\n",
        "tests/platforms/test_door.py::test_clients_that_only_connect_keep_nobody_out",
    ),
    Break(
        "tasks/platforms/local/door.py", "a request too many is told to come back",
        "if self._answering >= self._room.requests:", "if self._answering > self._room.connections:",
        "tests/platforms/test_door.py::test_a_request_too_many_is_told_when_to_come_back_and_those_before_it_are_answered",
    ),
    Break(
        "tasks/platforms/local/door.py", "a client that asks nothing has to leave",
        "if protocol.transport is None or since < late:", "if protocol.transport is None:",
        "tests/platforms/test_door.py",
    ),
    Break(
        "tasks/platforms/local/door.py", "a server may think for longer than a client may be silent",
        "        self._waiting.pop(request.protocol, None)\n", "",
        "tests/platforms/test_door.py::test_an_answer_may_take_longer_than_a_client_may_be_silent",
    ),
    Break(
        "tasks/platforms/local/proxy.py", "a client that takes nothing of its answer is given up",
        "                async with asyncio.timeout(stalled_s):\n                    await response.write(chunk)",
        "                await response.write(chunk)",
        "tests/platforms/test_proxy.py::test_a_client_that_takes_nothing_of_its_answer_is_given_up",
    ),
    Break(
        "tasks/platforms/local/proxy.py", "a client that sends half of its request is given up",
        "async with asyncio.timeout(self._stalled_s):", "async with asyncio.timeout(None):",
        "tests/platforms/test_proxy.py::test_a_client_that_sends_half_of_its_request_is_given_up",
    ),
    Break(
        "tasks/platforms/local/activator_log.py", "a line that comes again and again is said once",
        "            said.again += 1\n            return\n", "            said.again += 1\n",
        "tests/platforms/test_activator_log.py",
    ),
    Break(
        "tasks/platforms/local/server.py", "a server shares its port with nobody",
        "    if SHARES_PORT in release.argv:", "    if False:",
        "tests/platforms/test_local.py::test_a_release_that_would_share_its_port_is_refused",
    ),
    Break(
        "tasks/platforms/local/activator.py", "looking after the servers outlives what goes wrong in it",
        "with self.outlived(what):\n                    await step()", "if True:\n                    await step()",
        "tests/platforms/test_activator.py::test_what_goes_wrong_once_ends_no_loop", real=True,
    ),
    Break(
        "tasks/platforms/local/__init__.py", "a trial's server sees no key",
        "limit_s, walled=True)", "limit_s, walled=False)",
        "tests/test_canary.py::test_the_new_binary_and_a_trial_of_it_see_no_secret",
    ),
    # -- platforms/modal -----------------------------------------------------------------------------------------------
    Break(
        "tasks/platforms/modal/store.py", "of many who want a lock one has it",
        ", skip_if_exists=True)", ")",
        "tests/platforms/test_modal_store.py::test_of_many_who_want_a_lock_at_once_one_has_it",
    ),
    Break(
        "tasks/platforms/modal/store.py", "a holder on another machine keeps its lock while it renews it",
        ' - float(holder.get("renewed", 0)) > LEASE_S', ' - float(holder.get("renewed", 0)) > RENEW_S',
        "tests/platforms/test_modal_store.py::test_a_holder_on_another_machine_keeps_its_lock_while_it_renews_its_"
        "lease",
    ),
    Break(
        "tasks/platforms/modal/building.py", "what is published is what was compiled",
        '    if seen["files"] != made["files"]:', "    if not seen:",
        "tests/platforms/test_modal_building.py::test_a_build_that_is_another_one_on_the_volume_than_was_made_is_not_"
        "taken",
    ),
    Break(
        "tasks/platforms/modal/building.py", "a build that is damaged is made again",
        "return found if found and not store.damaged(found) else None", "return found",
        "tests/platforms/test_modal_building.py::test_a_build_that_is_damaged_on_the_volume_is_made_again",
    ),
    Break(
        "tasks/platforms/modal/account.py", "a used-up quota is nobody's bad input",
        "    if isinstance(error, ResourceExhaustedError):\n        return ToolingError(",
        "    if isinstance(error, ResourceExhaustedError):\n        return BadInput(",
        "tests/platforms/test_modal_account.py::test_an_exhausted_quota_is_no_fault_of_the_release",
    ),
    Break(
        "tasks/platforms/modal/cost.py", "a release is charged for its own containers",
        "if (use.release, use.stage) == (release_id, stage)", "if use.stage == stage",
        "tests/platforms/test_modal_cost.py",
    ),
    # -- preflight -----------------------------------------------------------------------------------------------------
    Break(
        "tasks/preflight/argv.py", "the binary itself is asked whether it takes the argv",
        'return "" if output.code == 0 else', 'return "" if output.text else',
        "tests/preflight/test_argv.py",
    ),
    Break(
        "tasks/preflight/uses.py", "what one setting or promise needs and is gone fails a release",
        '"fails": difference.gone and bool(needed)', '"fails": difference.gone and len(needed) > 1',
        "tests/preflight/test_compare.py",
    ),
    Break(
        "tasks/preflight/compare.py", "a default that changed is told",
        "    if flag.default != after.default:\n", "    if after.default and not flag.default:\n",
        "tests/preflight/test_compare.py",
    ),
    Break(
        "tasks/preflight/argv.py", "what is said twice is named, and not left to llama-server's last word",
        "            elif main in typed:\n", "            elif main in seen:\n",
        "tests/preflight/test_foreseen.py", real=True,
    ),
    Break(
        "tasks/preflight/foreseen.py", "an architecture that the target does not know is told before a compile",
        "name not in known:", "not known:",
        "tests/preflight/test_foreseen.py", real=True,
    ),
    # -- flags ---------------------------------------------------------------------------------------------------------
    Break(
        "tasks/flags/words.py", "an option that is said last is the one that counts",
        "last = {each.main: each for each in self.said}", "last = {each.main: each for each in reversed(self.said)}",
        "tests/flags/test_words.py",
    ),
    Break(
        "tasks/flags/history.py", "an old option is translated only where it means one thing",
        "return all(said in old.only_with for said", "return any(said in old.only_with for said",
        "tests/flags/test_words.py",
    ),
    Break(
        "tasks/flags/flag.py", "a short name that says no is known as one",
        "            from_here -= 1\n", "            break\n",
        "tests/flags/test_words.py",
    ),
    # -- restore -------------------------------------------------------------------------------------------------------
    Break(
        "tasks/restore/sequential.py", "a failure counts against a release",
        "    return restored * math.log(good / bad) + failed * math.log(",
        "    return restored * math.log(good / bad) + 0 * math.log(",
        "tests/restore/test_sequential.py tests/restore/test_judge.py",
    ),
    Break(
        "tasks/restore/sequential.py", "a snapshot that is created later may be a failed restore",
        "max(tally.restored - 1, 0), tally.failed + tally.created, settings)",
        "max(tally.restored - 1, 0), tally.failed, settings)",
        "tests/restore/test_sequential.py tests/restore/test_judge.py",
    ),
    Break(
        "tasks/restore/sequential.py", "the first restore only ends the beginning",
        "max(tally.restored - 1, 0)", "tally.restored",
        "tests/restore/test_sequential.py",
    ),
    Break(
        "tasks/restore/judge.py", "a snapshot that is created at the beginning tells nothing of restores",
        "list(dropwhile(lambda cycle: cycle.kind is BootKind.CREATED, cycles))", "list(cycles)",
        "tests/restore/test_judge.py",
    ),
    Break(
        "tasks/restore/judge.py", "attempts that tell nothing are no pass when they are many",
        "len(untold) > UNTOLD_MAX", "len(untold) > 1000",
        "tests/restore/test_judge.py",
    ),
    Break(
        "tasks/restore/cycle.py", "what created a snapshot is not compared with another's answers",
        "return Comparison(golden, fits=False)", "return Comparison(golden)",
        "tests/restore/test_real.py", real=True,
    ),
    Break(
        "tasks/settings.py", "settings with which no release can pass are refused",
        "        if self.fewest > self.cycles_max:", "        if self.fewest > 2000:",
        "tests/restore/test_sequential.py",
    ),
    Break(
        "tasks/restore/__init__.py", "cycles are kept as they are made",
        "        store.save_cycles(release.id, key, kept := begun.with_(cycle))", "        kept = begun.with_(cycle)",
        "tests/restore/test_real.py", real=True,
    ),
    Break(
        "tasks/restore/judge.py", "what calls itself restored and is another process fails",
        "    if cycle.kind is BootKind.RESTORED and not cycle.nonce.found:", "    if not cycle.nonce:",
        "tests/restore/test_judge.py",
    ),
    Break(
        "tasks/restore/cycle.py", "a cycle is as bad as its worst boot",
        "max((boot.kind for boot in boots), key=_WORST_LAST.index)", "boots[-1].kind",
        "tests/restore/test_judge.py",
    ),
    # -- upstream ------------------------------------------------------------------------------------------------------
    Break(
        "tasks/upstream/__init__.py", "what production has is nothing newer",
        "newest.build <= production)", "newest.build < production)",
        "tests/upstream/test_upstream.py",
    ),
    Break(
        "tasks/upstream/github.py", "source that is not its commit's is not built",
        "            if tree != promised:", "            if not tree:",
        "tests/upstream/test_github.py::test_a_tarball_that_is_not_the_commits_tree_is_refused_and_not_kept",
    ),
    Break(
        "tasks/upstream/github.py", "a release younger than the minimum age is not taken",
        "if dated[tag] <= latest and", "if dated[tag] and",
        "tests/upstream/test_github.py::test_what_is_denied_or_too_young_is_not_taken_even_when_it_is_pages_away",
    ),
    Break(
        "tasks/upstream/notes.py", "notes that end too early are no good news",
        "    if notes.until <= low:\n", "    if notes.until < 0:\n",
        "tests/upstream/test_notes.py",
    ),
    Break(
        "tasks/upstream/sdist.py", "an sdist that is not what the index promises is refused",
        "if wanted and digest.hexdigest() != wanted:", "if not digest.hexdigest():",
        "tests/upstream/test_sdist.py",
    ),
    Break(
        "tasks/upstream/sdist.py", "an index's credentials go to its host alone",
        "if known.userinfo and (known.host, known.port) == (here.host, here.port):", "if known.userinfo:",
        "tests/upstream/test_sdist.py",
    ),
    Break(
        "tasks/upstream/treediff/trees.py", "what a lean archive left out is not gone",
        "        return self.is_lean and path not in self.blobs", "        return False and path not in self.blobs",
        "tests/upstream/test_treediff.py::test_what_a_lean_archive_left_out_is_unknown_and_never_gone",
    ),
    Break(
        "tasks/upstream/treediff/judge.py", "a rule that needs a flag which we don't set does not touch us",
        "if all(flag in used.flags for flag in flags):", "if any(flag in used.flags for flag in flags):",
        "tests/upstream/test_treediff.py::test_a_rule_over_our_settings_could_break_us_one_over_other_flags_not",
    ),
    Break(
        "tasks/upstream/treediff/compare.py", "a message in other words is the same message",
        "        return _ratio(before.name, after.name)\n", "        return 0.0\n",
        "tests/upstream/test_treediff.py::test_a_refusal_that_moved_or_says_it_in_other_words_is_not_told",
    ),
    Break(
        "tasks/upstream/treediff/cmake.py", "an option that its packager altered is not upstream's change",
        'value = ALTERED if "odified by" in m["note"] else', 'value = "OFF" if not m["note"] else',
        "tests/upstream/test_treediff.py::test_options_of_the_build_are_told_where_they_matter",
    ),
    Break(
        "tasks/upstream/ours.py", "the project's name is not the architecture llama",
        'PROJECT = ("llama",)', "PROJECT = ()",
        "tests/upstream/test_treediff.py::test_our_architecture_is_its_builder_and_never_a_word",
    ),
    Break(
        "tasks/preflight/compare.py", "the variable of a flag that is only listed to be refused is gone",
        "live.union(surface.variables) - (refused - live)", "live.union(surface.variables, refused)",
        "tests/upstream/test_treediff.py::test_a_flag_that_only_says_it_is_gone_is_gone_with_its_variable",
    ),
    # -- watch ---------------------------------------------------------------------------------------------------------
    Break(
        "tasks/watch/judge.py", "three of the last five are an alert",
        "    if len(bad) < k:\n", "    if len(bad) <= k:\n",
        "tests/watch/test_judge.py",
    ),
    Break(
        "tasks/watch/judge.py", "staging is no part of production's baseline",
        'if each.stage == "production"]', "if each.stage]",
        "tests/watch/test_judge.py",
    ),
    Break(
        "tasks/watch/judge.py", "what the baseline has been for as long is not slower",
        "> WORST * math.log(", "> 0 * math.log(",
        "tests/watch/test_judge.py",
    ),
    Break(
        "tasks/watch/judge.py", "what happened once hides nothing that is no worse",
        "if abs(n - worst) >= LATEST", "if abs(n - worst) >= 0",
        "tests/watch/test_judge.py",
    ),
    Break(
        "tasks/watch/judge.py", "what took the place of all others is compared with them",
        "if places[each][0] <= last and first <= places[each][-1]", "if places[each]",
        "tests/watch/test_judge.py",
    ),
    Break(
        "tasks/watch/judge.py", "a probe that got no answer is no error after idle",
        "return probe.status is not None and probe.status >= 500", "return probe.kind is BootKind.CRASHED",
        "tests/watch/test_judge.py",
    ),
    Break(
        "tasks/watch/judge.py", "what was over before begins nothing again",
        "in cases(series) if not since or each.at > since]", "in cases(series)]",
        "tests/watch/test_judge.py",
    ),
    Break(
        "tasks/watch/__init__.py", "nothing is started by itself during a hold",
        " or busy or pointer.hold or store.intent", " or busy or store.intent",
        "tests/watch/test_alerts.py",
    ),
    Break(
        "tasks/watch/alerts.py", "an incident ends with the release it is about",
        '"ended": now(), "why": f"production is', '"why": f"production is',
        "tests/watch/test_alerts.py",
    ),
    Break(
        "tasks/watch/probe.py", "production that is up is not kept awake by its watch",
        "    if sight.servers or sight.in_flight:", "    if sight.in_flight:",
        "tests/watch/test_probe.py",
    ),
    Break(
        "tasks/watch/__init__.py", "nothing is started for what clients met alone",
        "if each.proven and not each.acted", "if not each.acted",
        "tests/watch/test_alerts.py",
    ),
    Break(
        "tasks/watch/judge.py", "a probe during which others asked is no proof",
        "for probe in series.probes if not probe.unclear and", "for probe in series.probes if",
        "tests/watch/test_judge.py",
    ),
    # -- tasks/*.py ----------------------------------------------------------------------------------------------------
    Break(
        "tasks/store.py", "a document is written whole or not at all",
        'temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")', "temporary = path",
        "tests/test_store.py",
    ),
    Break(
        "tasks/store.py", "a lock is held by one",
        "fcntl.LOCK_EX | (0", "fcntl.LOCK_SH | (0",
        "tests/test_store.py",
    ),
    Break(
        "tasks/store.py", "what was verified on another basis is verified anew",
        "if v and v.basis == basis and", "if v and",
        "tests/test_store.py",
    ),
    Break(
        "tasks/store.py", "the binary of a retained release is kept",
        "{pointer.release, *pointer.retained} | (", "{pointer.release} | (",
        "tests/test_store.py",
    ),
    Break(
        "tasks/store.py", "no secret is in a dossier",
        "clean = Verification.model_validate(redact(verification.model_dump()))", "clean = verification",
        "tests/test_store.py",
    ),
    Break(
        "tasks/store.py", "no secret is in the ledger",
        "event = Event.model_validate(redact(event.model_dump()))\n        self", "self",
        "tests/test_store.py",
    ),
    Break(
        "tasks/store.py", "a series is bounded",
        "            self.files.remove(path)\n\n    def latencies", "            pass\n\n    def latencies",
        "tests/restore/test_plot.py tests/test_store.py",
    ),
    Break(
        "tasks/release.py", "an errored verification blocks a promotion",
        "in (Verdict.FAILED, Verdict.ERRORED)]", "is Verdict.FAILED]",
        "tests/test_release.py",
    ),
    Break(
        "tasks/release.py", "a missing verification blocks a promotion",
        "tuple(name for name in self.required if name not in have)", "()",
        "tests/test_release.py",
    ),
    Break(
        "tasks/release.py", "no error says a secret",
        "redact([what, evidence.strip(), todo])", "[what, evidence.strip(), todo]",
        "tests/test_release.py",
    ),
    Break(
        "tasks/release.py", "another compiler makes another build",
        "digest_of([source.tree, source.upstream.build, recipe.model_dump(), toolchain])",
        "digest_of([source.tree, source.upstream.build, recipe.model_dump()])",
        "tests/test_release.py",
    ),
    Break(
        "tasks/promote.py", "production takes the dossier that was approved",
        "    if dossier.digest != approval.dossier:", "    if not approval.dossier:",
        "tests/test_promote.py::test_what_the_approval_was_not_given_for_is_refused_and_nothing_moves", real=True,
    ),
    Break(
        "tasks/promote.py", "production is replaced when it is what the approval names",
        "(pointer.release, pointer.version) != (approval.expected, approval.version)",
        "pointer.version != approval.version and pointer.release is None",
        "tests/test_promote.py::test_what_the_approval_was_not_given_for_is_refused_and_nothing_moves", real=True,
    ),
    Break(
        "tasks/promote.py", "an approval is used up by the promotion that it allowed",
        "(pointer.release, pointer.version) != (approval.expected, approval.version)",
        "pointer.release != approval.expected",
        "tests/test_promote.py::test_an_approval_is_used_up_by_the_promotion_that_it_allowed", real=True,
    ),
    Break(
        "tasks/promote.py", "a rollback at once kills what moves production",
        "said = _interrupted(store) or ", "said = ",
        "tests/test_promote.py::test_at_once_a_promotion_that_is_under_way_is_killed_and_taken_back", real=True,
    ),
    Break(
        "tasks/promote.py", "a rollback at once takes back the move that was left open",
        "_way_back(pointer, left, to)", "_way_back(pointer, None, to)",
        "tests/test_promote.py::test_at_once_a_promotion_that_is_under_way_is_killed_and_taken_back", real=True,
    ),
    Break(
        "tasks/promote.py", "a second rollback says where it goes",
        "    if to is None and pointer.hold:", "    if to is None and pointer.hold and not pointer.retained:",
        "tests/test_promote.py::test_two_rollbacks_at_once_go_back_once "
        "tests/test_promote.py::test_rollback_goes_to_a_retained_release_only", real=True,
    ),
    Break(
        "tasks/promote.py", "a rollback at once needs no ledger",
        "        if not at_once:\n            raise", "        raise",
        "tests/test_promote.py::test_at_once_neither_a_damaged_ledger_nor_a_damaged_intent_nor_the_release_lock_is_in_"
        "the_way", real=True,
    ),
    Break(
        "tasks/store.py", "an event that can't be read stops nobody",
        "except (Damaged, OSError, ValueError) as error:  #", "except OSError as error:  #",
        "tests/test_store.py::test_an_event_that_cannot_be_read_is_named_in_its_place_and_stops_nothing",
    ),
    Break(
        "tasks/store.py", "only who holds a lock for certain is taken for its holder",
        "return pid if pid in locked_by(path) else None", "return pid if locked_by(path) else None",
        "tests/test_store.py::test_who_holds_a_lock_is_told_for_certain_or_not_at_all",
    ),
    Break(
        "tasks/approval/question.py", "what was asked later leaves nothing of an approval",
        "store.requests()[-1:]", "[r for r in store.requests() if store.approval(r.key)][-1:]",
        "tests/approval/test_standing.py::test_an_approval_is_void_once_something_else_was_asked_or_it_was_rejected",
    ),
    Break(
        "tasks/platforms/modal/starts.py", "a container that died in its restore is a restore that failed",
        "for each in found if each.task not in tasks | ended]", "for each in found if each.task in ()]",
        "tests/platforms/test_modal_starts.py",
    ),
    Break(
        "tasks/platforms/modal/starts.py", "what ended because of a move is no failed restore",
        "if each.task not in tasks | ended]", "if each.task not in tasks]",
        "tests/platforms/test_modal_starts.py::test_what_was_up_before_a_move_ends_because_of_it_and_is_no_failed_"
        "restore_of_anybody",
    ),
    Break(
        "tasks/platforms/modal/warming.py", "a snapshot after a failed restore is of no new kind",
        "is BootKind.CREATED and not _failed_silently(last)]", "is BootKind.CREATED]",
        "tests/platforms/test_modal_starts.py::test_a_snapshot_in_place_of_a_restore_that_failed_is_of_no_new_kind_of_"
        "worker",
    ),
    Break(
        "tasks/restore/judge.py", "nothing is the same that was not compared",
        "if settings.accept_cold and compared else", "if settings.accept_cold else",
        "tests/restore/test_judge.py::test_where_nothing_could_be_compared_nothing_is_said_to_be_the_same",
    ),
    Break(
        "tasks/platforms/modal/__init__.py", "what serves keeps its settings",
        "if was and was.key == key:", "if False:",
        "tests/platforms/test_modal.py::test_a_release_that_does_not_pass_changes_no_setting_of_what_serves",
        real=True,
    ),
    Break(
        "tasks/platforms/modal/__init__.py", "what was set by hand holds after a move",
        "apps.scale(self._modal, self._modal.stage_app(stage), move.scaling)", "pass",
        "tests/platforms/test_modal.py::test_what_was_set_by_hand_outlives_a_move", real=True,
    ),
    Break(
        "tasks/platforms/modal/__init__.py", "a way back asks nothing that hangs",
        "if not went_well:\n                self._check", "if True:\n                self._check",
        "tests/platforms/test_modal.py::test_one_way_back_from_what_hangs_does_not_ask_it_whether_it_may", real=True,
    ),
    Break(
        "tasks/platforms/modal/__init__.py", "one death is bad luck", "SILENT_DEATHS = 3", "SILENT_DEATHS = 1",
        "tests/platforms/test_modal.py::test_one_restore_that_dies_on_the_way_back_is_bad_luck", real=True,
    ),
    Break(
        "tasks/promote.py", "without a key nothing is taken back", "    platform.check_keys()  #", "    #",
        "tests/platforms/test_modal.py::test_without_a_key_a_move_that_was_left_open_waits_for_one", real=True,
    ),
    Break(
        "tasks/platforms/modal/apps.py", "proxy tokens go to our own stages alone",
        'if address.rstrip("/").removesuffix("/v1") in ours else {}', "if ours else {}",
        "tests/platforms/test_modal.py::test_proxy_tokens_go_to_our_own_stages_alone", real=True,
    ),
    Break(
        "tasks/platforms/modal/__init__.py", "a forced idle window that was killed is put back",
        "        if found:\n            apps.scale(", "        if not found:\n            apps.scale(",
        "tests/platforms/test_modal.py::test_an_idle_window_that_a_killed_process_forced_is_seen_and_ended_with_the_"
        "settings_that_it_found", real=True,
    ),
    Break(
        "tasks/platforms/modal/__init__.py", "what was up answers until the new version does",
        "self._modal, name)} - set(move.earlier)\n", "self._modal, name)}\n",
        "tests/platforms/test_modal.py::test_what_was_up_goes_on_answering_when_the_new_version_does_not_pass",
        real=True,
    ),
    Break(
        "tasks/platforms/modal/__init__.py", "a rollback at once takes no trial",
        'if stage == "production" and not went_well:', 'if stage == "production":',
        "tests/platforms/test_modal.py::test_a_rollback_at_once_takes_no_trial_and_no_look_at_files_and_one_that_can_"
        "wait_does", real=True,
    ),
    Break(
        "tasks/promote.py", "what did not verify in production leaves a hold",
        'store.save_pointer(back.model_copy(update={"hold": hold}))', "store.save_pointer(back)",
        "tests/test_promote.py::test_production_that_does_not_verify_after_the_move_goes_back_by_itself_and_holds",
        real=True,
    ),
    Break(
        "tasks/promote.py", "a server that does not come up leaves no open move",
        "    except Problem:\n        _undo(platform, intent)\n        raise", "    except Problem:\n        raise",
        "tests/test_promote.py::test_a_server_that_does_not_come_up_leaves_the_old_one_in_production", real=True,
    ),
    Break(
        "tasks/redeploy.py", "during a hold no other release comes into production",
        "    if release.id != pointer.release:\n        refuse_on_hold(pointer)\n", "",
        "tests/flows/test_order.py::test_only_what_production_has_or_retains_is_redeployed_and_during_a_hold_only_"
        "what_it_has",
    ),
    Break(
        "tasks/redeploy.py", "what is redeployed is in production or retained",
        "if release is None or release.id not in served:", "if release is None:",
        "tests/flows/test_order.py::test_only_what_production_has_or_retains_is_redeployed_and_during_a_hold_only_"
        "what_it_has",
    ),
    Break(
        "tasks/runbook.py", "a key in a log is not quoted",
        'return redact(_SECRET.sub(r"\\1***", line))', "return line",
        "tests/test_runbook.py",
    ),
    Break(
        "tasks/runbook.py", "of a whole log the cause comes before what came of it",
        "key=lambda match: (ranks.index(match.row.rank), match.at)", "key=lambda match: match.at",
        "tests/test_runbook.py",
    ),
    Break(
        "tasks/runbook.py", "a warning is not to blame for a server that does not come up",
        'match.row.rank == "cause"', "match.row.rank",
        "tests/test_runbook.py",
    ),
    Break(
        "tasks/runbook.py", "no text that an expression may do without is asked of a line",
        'if times[:1] in ("?", "*") or times[:2] in ("{0", "{,"):', "if False:",
        "tests/test_runbook.py",
    ),
    Break(
        "tasks/runbook.toml", "a message that says which flag is gone is known",
        "  '''(?:error: )?invalid argument: ?(?P<flag>--?[a-zA-Z][\\w-]*)''',\n", "",
        "tests/test_runbook.py",
    ),
    Break(
        "tasks/platforms/local/server.py", "a server that does not come up is blamed on whom its words blame",
        "_text(self.log)[-READ_OF_LOG:] if ended else", '"" if ended else',
        "tests/platforms/test_deaths.py::test_a_server_that_does_not_come_up_is_blamed_on_whom_its_own_words_blame",
        real=True,
    ),
    Break(
        "tasks/faults.py", "a fault strikes a CPU that has all it needs",
        "set(where.cpu) <= set(hardware.cpu.features)", "bool(set(where.cpu) & set(hardware.cpu.features))",
        "tests/test_faults.py",
    ),
    Break(
        "tasks/selftest.py", "a self-test that was cut short is made again",
        "return case.model_sha256 == sha256_of(folder / MODEL)", "return bool(case.model_sha256)",
        "tests/test_selftest.py",
    ),
    Break(
        "tasks/selftest.py", "a build is tried with the types that it will serve",
        "for name in served if name in _SCALES or name in _WRITTEN", "for name in served if name in _SCALES",
        "tests/test_selftest.py",
    ),
    Break(
        "tasks/console.py", "a run goes on when nobody reads its lines any more",
        "Console.on_broken_pipe = _nobody_reads  # type: ignore[method-assign, assignment]\n", "",
        "tests/test_report.py::test_a_run_goes_on_when_whoever_read_its_lines_is_gone",
    ),
    Break(
        "tasks/stage.py", "a row shows the worst verdict",
        "for v in (Verdict.FAILED, Verdict.ERRORED, Verdict.INCONCLUSIVE, Verdict.PASSED) if",
        "for v in (Verdict.PASSED, Verdict.INCONCLUSIVE, Verdict.ERRORED, Verdict.FAILED) if",
        "tests/test_report.py::test_a_row_has_the_worst_verdict_and_no_secret_and_a_failed_one_stops_the_flow",
    ),
    Break(
        "tasks/report.py", "who approves reads first what did not pass",
        "key=lambda group: group[1][0].verdict is Verdict.PASSED)",
        "key=lambda group: group[1][0].verdict is not Verdict.PASSED)",
        "tests/approval/test_page.py::test_what_did_not_pass_comes_first_and_every_patch_has_its_evidence",
    ),
    Break(
        "tasks/stage.py", "no secret is in a row or an artifact",
        "        summary, evidence = redact([summary, evidence])\n", "",
        "tests/test_report.py::test_a_row_has_the_worst_verdict_and_no_secret_and_a_failed_one_stops_the_flow",
    ),
    Break(
        "tasks/release_page.py", "what others wrote stays text on a release's page",
        "autoescape=True", "autoescape=False",
        "tests/test_release_page.py",
    ),
    Break(
        "tasks/overview.py", "what is damaged stops no other line of status",
        "except (Problem, OSError, ValueError, httpx.HTTPError) as error:", "except httpx.HTTPError as error:",
        "tests/test_overview.py",
    ),
    Break(
        "tasks/notify.py", "an outage loses no message",
        "            kept.append(entry.again(at, error))\n", "",
        "tests/test_notify.py::test_an_outage_loses_nothing_and_the_next_run_tells_it",
    ),
    Break(
        "tasks/notify.py", "what Slack refuses for good blocks no other message",
        "            raise Refused(said) from error", "            raise Undelivered(said) from error",
        "tests/test_notify.py::test_what_slack_refuses_for_good_is_said_once_and_blocks_nothing",
    ),
    Break(
        "tasks/notify.py", "what was told without Slack is no message of Slack's",
        '        if box.channel != self._channel:', '        if box.channel is None:',
        "tests/test_notify.py::test_an_outbox_of_runs_without_slack_from_before_november_2026_is_no_hindrance",
    ),
    Break(
        "tasks/notify.py", "people are told of a promotion",
        '"approved", "rejected", "promoted",', '"approved", "rejected",',
        "tests/test_notify.py::test_a_release_is_one_thread_from_its_start_to_production",
    ),
    Break(
        "tasks/notify.py", "what upstream wrote is no markup in a message",
        'ord("<"): "&lt;", ', "",
        "tests/test_notify.py::test_what_is_longer_than_block_kit_takes_is_cut_and_markup_is_escaped",
    ),
    Break(
        "tasks/notify.py", "what upstream wrote is no emphasis, emoji or link in a message",
        '{"type": "plain_text", "emoji": False,', '{"type": "mrkdwn",',
        "tests/test_sinks.py::test_a_message_is_text_in_slack",
    ),
    Break(
        "tasks/console.py", "a str is text in the terminal, with no markup in it",
        "markup=False, emoji=False,", "emoji=False,",
        "tests/test_sinks.py::test_a_line_a_table_and_a_styled_word_are_text_in_a_terminal",
    ),
    Break(
        "tasks/console.py", "nothing that a terminal obeys is sent to it",
        "super().render_str(visible(text), **options)", "super().render_str(text, **options)",
        "tests/test_sinks.py::test_a_line_a_table_and_a_styled_word_are_text_in_a_terminal",
    ),
    Break(
        "tasks/report.py", "an address that somebody wrote is no link on the page that a person approves by",
        "return f\"`{word}`\" if _ADDRESS.search(word) else _SPECIAL", "return _SPECIAL",
        "tests/test_sinks.py::test_every_piece_is_text_in_a_table",
    ),
    Break(
        "tasks/report.py", "what somebody wrote begins no heading and no list",
        "return _BLOCK.sub(r\"\\1\\\\\", _cell(text))", "return _cell(text)",
        "tests/test_sinks.py::test_a_text_is_text_wherever_it_stands_in_a_page",
    ),
    Break(
        "tasks/report.py", "what somebody wrote ends no block of code",
        "1 + len(run) for run", "len(run) for run",
        "tests/test_sinks.py::test_a_text_is_text_wherever_it_stands_in_a_page",
    ),
    Break(
        "tasks/release_page.py", "what can't be seen is spelled out on a release's page",
        "finalize=_shown,", "",
        "tests/test_release_page.py",
    ),
    Break(
        "tasks/settings.py", "the environment wins over the file",
        "return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)",
        "return init_settings, TomlConfigSettingsSource(settings_cls), env_settings",
        "tests/test_settings.py",
    ),
    Break(
        "tasks/settings.py", "a setting that is misspelled is refused",
        'frozen=True, extra="forbid", toml_file', 'frozen=True, extra="ignore", toml_file',
        "tests/test_settings.py",
    ),
    Break(
        "tasks/sources.py", "no link of an archive leads out of the source tree",
        "if path.is_symlink() and not", "if path.is_dir() and not",
        "tests/modal_app/test_archives.py",
    ),
    Break(
        "tasks/sources.py", "a file that upstream's .gitignore names is in the tree too",
        '"add", "--all", "--force", "."', '"add", "--all", "."',
        "tests/patches/test_apply.py",
    ),
    Break(
        "tasks/proof.py", "a patch whose probes pass without it is obsolete",
        "    if without and not any(seen.fault for seen in without.values()) and", "    if not without and",
        "tests/test_proof.py",
    ),
    Break(
        "tasks/proof.py", "a probe that could not be run proves nothing",
        "in (present | without).items() if seen.verdict is", "in present.items() if seen.verdict is",
        "tests/test_proof.py",
    ),
    Break(
        "tasks/build.py", "a build says which known faults it was kept from",
        "fault.id in built.avoids", "fault.id not in built.avoids",
        "tests/test_report.py::test_a_build_says_which_known_faults_it_was_kept_from",
    ),
    Break(
        "tasks/drill.py", "a release that is not whole fails its drill",
        "    if lost:\n        return Verdict.FAILED", "    if lost and found:\n        return Verdict.FAILED",
        "tests/test_drill.py",
    ),
    Break(
        "tasks/hardware.py", "a compiler that makes AMX code is known to",
        'since = {"gcc": 11, "clang": 11', 'since = {"gcc": 14, "clang": 11',
        "tests/test_faults.py",
    ),
    Break(
        "tasks/hardware.py", "a CPU's features are read",
        "features += [flag for flag in told", "features = [flag for flag in told",
        "tests/test_faults.py",
    ),
    Break(
        "tasks/criu.py", "a CRIU that is named by its path is the one used",
        '    if "/" in wanted:\n        return wanted\n', "",
        "tests/test_criu.py",
    ),
    Break(
        "tasks/criu_images.py", "zeros that hide what a file says stay in a snapshot",
        "if area[_STATUS] & _ANONYMOUS and not", "if not",
        "tests/test_criu.py",
    ),
    Break(
        "tasks/cuda_checkpoint.py", "an older driver is no checkpoint, and says why",
        "if version.value < NEEDED or not", "if not",
        "tests/platforms/test_gpu.py",
    ),
    Break(
        "tasks/process.py", "no child outlives a killed parent",
        "_prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)", "_prctl(_PR_SET_PDEATHSIG, 0)",
        "tests/test_process.py",
    ),
    Break(
        "tasks/process.py", "a binary that is asked what it is sees no secret",
        "behind=partial(wall.behind, hide=hide),", "",
        "tests/test_canary.py::test_a_binary_that_doctor_is_asked_about_sees_no_secret",
    ),
    Break(
        "tasks/linux.py", "where nothing is seen in /proc there are no snapshots",
        ' and Path("/proc/self/stat").exists()', "",
        "tests/test_process.py",
    ),
    Break(
        "tasks/gguf_header.py", "what is no model file is bad input",
        "except (struct.error, ValueError) as error:", "except struct.error as error:",
        "tests/test_gguf_header.py",
    ),
    Break(
        "tasks/store.py", "on a full disk a document has the reserve's room",
        "        if error.errno not in FULL or not _take_piece(path):", "        if True:",
        "tests/platforms/test_full_disk.py::test_the_reserve_is_taken_by_pieces_and_put_aside_again",
    ),
    Break(
        "tasks/store.py", "a file that does not fit leaves nothing behind",
        "                temporary.unlink(missing_ok=True)  # half a model", "                # half a model",
        "tests/platforms/test_full_disk.py::test_a_file_that_does_not_fit_leaves_nothing_behind",
    ),
    Break(
        "tasks/troubles.py", "what goes wrong again and again is said once",
        "if known is None or known.over or known.error != said:", "if True:",
        "tests/platforms/test_door.py::test_without_a_descriptor_left_it_waits_says_so_once_and_goes_on",
    ),
    Break(
        "tasks/platforms/local/replica.py", "a boot that can't be recorded is a boot",
        "        except ToolingError as error:  # whoever waits", "        except KeyError as error:  # whoever waits",
        "tests/platforms/test_full_disk.py::test_with_its_reserve_gone_too_production_wakes_and_freed_space_is_enough_to_"
        "go_on", real=True,
    ),
    Break(
        "tasks/password.py", "nobody else can hand on the question that shows the password",
        'f"{page} {question}".encode()', 'f"{question}".encode()',
        "tests/test_password.py::test_who_took_the_port_of_a_server_that_ended_is_told_nothing",
    ),
    Break(
        "tasks/password.py", "the Prefect folder of an earlier version is closed to others",
        "        home.chmod(0o700)", "        pass",
        "tests/test_password.py::test_a_folder_of_an_earlier_version_is_closed",
    ),
    Break(
        "tasks/password.py", "an empty password file opens no server",
        "    if not ours(made):", "    if made is None:",
        "tests/test_password.py::test_a_file_that_holds_none_opens_no_server",
    ),
    # -- modal_app -----------------------------------------------------------------------------------------------------
    Break(
        "modal_app/settings.py", "nothing keeps the container of the next version out",
        "        ge=2,\n", "        ge=1,\n",
        "tests/modal_app/test_deployed.py::test_nothing_keeps_the_container_of_the_next_version_out_and_answers_may_go_on_"
        "in_the_earlier_one",
    ),
    Break(
        "modal_app/server.py", "an answer under way is not broken off by the end of its container",
        "        self._answer_to_the_end()\n", "",
        "tests/platforms/test_modal.py::test_clients_of_production_see_no_error_and_no_cut_stream_while_it_is_replaced",
        real=True,
    ),
    Break(
        "modal_app/compile.py", "a build that is whole is never written into",
        "    if known := whole(out):\n", "    if (known := whole(out)) and not known:\n",
        "tests/platforms/test_modal_building.py::test_a_file_that_a_server_has_mapped_is_never_written_into",
    ),
    Break(
        "modal_app/warmup.py", "what a starting server gives is waited out",
        "    if answer.status_code in STARTING and not last:\n", "    if answer.status_code == 503 and not last:\n",
        "tests/modal_app/test_warmup.py::test_a_server_that_still_comes_up_is_asked_again_but_a_prompt_that_broke_off_"
        "is_never_sent_again",
    ),
    Break(
        "modal_app/server.py", "a container is told from the one that booted",
        "    if task != booted_by:\n", "    if task == booted_by:\n",
        "tests/modal_app/test_server.py",
    ),
    Break(
        "modal_app/server.py", "a boot without its snapshot is called fell back",
        "    if snapshotting:\n", "    if task:\n",
        "tests/modal_app/test_server.py",
    ),
    Break(
        "modal_app/app.py", "nothing that serves can alter what it serves",
        "store_volume(settings).read_only()", "store_volume(settings)",
        "tests/modal_app/test_deployed.py::test_the_store_is_mounted_read_only_and_the_key_comes_from_a_secret",
    ),
    Break(
        "modal_app/app.py", "a trial takes no snapshot",
        "enable_memory_snapshot=deployment.snapshot,", "enable_memory_snapshot=True,",
        "tests/modal_app/test_deployed.py::test_a_trial_takes_no_snapshot_and_has_a_key_that_is_in_no_image",
    ),
    Break(
        "modal_app/archives.py", "no archive is led outside by its links",
        "{each, *each.parents} & self._links", "each in self._links",
        "tests/modal_app/test_archives.py",
    ),
    Break(
        "modal_app/compile.py", "a tree's hash is git's own",
        'entries.append((name + b"/", b"40000"', 'entries.append((name, b"40000"',
        "tests/modal_app/test_server.py",
    ),
    Break(
        "modal_app/redaction.py", "a secret that holds another one is hidden whole",
        "key=lambda each: len(each[0]), reverse=True)", "key=lambda each: len(each[0]))",
        "tests/modal_app/test_redaction.py",
    ),
    Break(
        "modal_app/redaction.py", "a variable that the settings name is secret",
        "return name in _named or (", "return (",
        "tests/modal_app/test_redaction.py",
    ),
    Break(
        "modal_app/redaction.py", "a header of a request holds no credential in a text",
        """        value = _HEADER.sub(lambda found: f"{found['name']}{found['scheme'] or ''}[hidden]", value)\n""", "",
        "tests/modal_app/test_redaction.py",
    ),
    Break(
        "modal_app/redaction.py", "a key with a line break at its end is hidden without it too",
        "bare = secret.strip()", "bare = secret",
        "tests/modal_app/test_redaction.py",
    ),
    Break(
        "modal_app/redaction.py", "a long text is looked through in no time",
        "[^\\s@'\\\"`<>]{1,200})@", "[^\\s@'\\\"`<>]+)@",
        "tests/modal_app/test_redaction.py::test_a_long_text_takes_no_time",
    ),
    Break(
        "tasks/platforms/local/activator.py", "a request's header or address line is in no log",
        "            if isinstance(error, HttpProcessingError):\n                return type(error).__name__\n", "",
        "tests/platforms/test_unreadable_requests.py",
    ),
    Break(
        "modal_app/selftest.py", "a build that answers NaN counts wrongly",
        "if not far <= BOUND or not rms <= MEAN:", "if far > BOUND or rms > MEAN:",
        "tests/modal_app/test_selftest.py",
    ),
    Break(
        "modal_app/selftest.py", "one answer that is far off is a build that counts wrongly",
        "if not far <= BOUND or not", "if not far <= 10 * BOUND or not",
        "tests/modal_app/test_selftest.py",
    ),
    Break(
        "modal_app/warmup.py", "a nonce is found where its tokens are in the cache",
        "return self.cached_tokens >= 0.9 * self.nonce_tokens", "return self.cached_tokens >= 0",
        "tests/modal_app/test_warmup.py tests/restore/test_judge.py",
    ),
    Break(
        "modal_app/warmup.py", "answers are the same within what was seen before",
        "        max(TOLERANCE, 2 * max(", "        max(LOUD, 2 * max(",
        "tests/restore/test_judge.py",
    ),
    Break(
        "modal_app/warmup.py", "a golden answer is asked again in its own length",
        "_answer(http, each.prompt, each.image, len(each.tokens))", "_answer(http, each.prompt, each.image)",
        "tests/modal_app/test_warmup.py", real=True,
    ),
    Break(
        "modal_app/child.py", "a variable that is on no list reaches no child",
        "if any(each.admits(name, value) for each in (PROGRAM, *lists))", "if not is_secret(name, value)",
        "tests/test_child.py",
    ),
    Break(
        "modal_app/child.py", "a secret with the name of no secret's list reaches no child",
        " and (self.may_be_secret or not is_secret(name, value))", "",
        "tests/test_child.py",
    ),
    Break(
        "modal_app/wall.py", "who is behind the wall can't take it down",
        "    _give_up()\n", "",
        "tests/test_wall.py::test_nobody_takes_it_down_from_behind",
    ),
    Break(
        "modal_app/wall.py", "a folder that is hidden is not the current one",
        'os.chdir(folder if os.path.isdir(folder) else "/")', "pass",
        "tests/test_wall.py",
    ),
    Break(
        "modal_app/wall.py", "a key in what is kept stays hidden",
        'key=lambda path: path.count("/")', 'key=lambda path: (path in kept, path.count("/"))',
        "tests/test_wall.py",
    ),
    Break(
        "modal_app/wall.py", "no network is behind the wall",
        "_separate(_NEWNS | (0 if network else _NEWNET))", "_separate(_NEWNS)",
        "tests/test_canary.py::test_a_binary_that_doctor_is_asked_about_sees_no_secret",
    ),
    Break(
        "modal_app/compile.py", "a source can't include a key",
        "self.walled([self.binary], self.env), env=", "[self.binary], env=",
        "tests/test_canary.py::test_neither_cmake_nor_the_build_nor_a_compiler_sees_a_secret", real=True,
    ),
)
# fmt: on


# -- the copies -------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """What pytest came to."""

    code: int
    """Its exit code; negative when it was ended."""
    said: str

    @property
    def by(self) -> str:
        """The test that failed."""
        match = re.search(r"^(?:FAILED|ERROR) ([^\s[]+)", self.said, re.MULTILINE)
        return match[1].removeprefix("tests/") if match else ""


class Copy:
    """The tracked files of the tree in a folder of their own, to be broken and mended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        names = _run(["git", "ls-files", "-z"], REPOSITORY).stdout.split("\0")
        for name in filter(None, names):
            if (source := REPOSITORY / name).is_file():
                target = folder / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)
        own = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_RELEASE_", "PYTEST_"))}
        self._env = own | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        # Bytecode is known by its source's hash: by time and length, as is usual, a break could look like the whole.
        hashed = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", *PRODUCT, "tests"]
        _run(hashed, folder, self._env)
        self._check()

    def _check(self) -> None:
        script = f"import {', '.join(PRODUCT)}, tests; print({', '.join(f'{name}.__file__' for name in PRODUCT)})"
        imported = _run([sys.executable, "-c", script], self._folder, self._env).stdout.split()
        if not all(Path(path).is_relative_to(self._folder) for path in imported):
            raise SystemExit(f"what is imported is not the copy in {self._folder}: {', '.join(imported)}")

    def test(self, tests: Sequence[str], *, real: bool, limit_s: float = LIMIT_S) -> Run:
        """Run these tests until the first fails; `real`: those of them that need a build, else only the others."""
        of_tier = ["-m", "real" if real else "not real"]
        argv = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *of_tier, *tests]
        process = subprocess.Popen(
            argv, cwd=self._folder, env=self._env, text=True, errors="replace", stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=die_with_parent,
        )  # fmt: skip
        try:
            said, _ = process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
        return Run(process.returncode, said)

    @contextmanager
    def broken(self, each: Break) -> Iterator[None]:
        path = self._folder / each.path
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace(each.before, each.after), encoding="utf-8")
        try:
            yield
        finally:
            path.write_text(text, encoding="utf-8")


def _run(argv: Sequence[str], cwd: Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True, check=True, timeout=120)


# -- the breaks -------------------------------------------------------------------------------------------------------


def stale(breaks: Sequence[Break]) -> list[str]:
    """A line for each break that can't be made: its text isn't there exactly once, or what comes of it isn't read."""
    found = []
    for each in breaks:
        path = REPOSITORY / each.path
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if (times := text.count(each.before)) != 1 or each.before == each.after:
            found.append(f"{each.path}: {each.before!r} is there {times} times")
            continue
        parse, language = (tomllib.loads, "TOML") if path.suffix == ".toml" else (ast.parse, "Python")
        try:
            parse(text.replace(each.before, each.after))
        except (SyntaxError, tomllib.TOMLDecodeError) as error:
            found.append(f"{each.path}: {each.after!r} is not {language} there: {error}")
    return found


def chosen(words: Sequence[str]) -> list[Break]:
    """The breaks that every word chooses; one that begins with a hyphen leaves out. Exits when there is none."""
    found = [each for each in BREAKS if all(each.has(w.lstrip("-")) != w.startswith("-") for w in words)]
    if not found:
        packages = ", ".join(sorted({each.package for each in BREAKS}))
        raise SystemExit(f"no break is chosen by {' '.join(words)}; there are those of {packages}")
    return found


def main(*words: str) -> Iterator[str]:
    """Rows as breaks are tried. Exits with 1 at the end unless all were caught, before that when a row is stale."""
    breaks = chosen(words)
    if lines := stale(breaks):
        raise SystemExit("\n".join(["stale:", *lines]))
    with ExitStack() as stack:
        folders = [
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llama-release-suite-"))) for _ in range(COPIES)
        ]
        copies = [Copy(folder) for folder in folders]
        pool = stack.enter_context(ThreadPoolExecutor(COPIES))
        yield f"{len(breaks)} breaks; their tests on the whole tree: {_whole(copies, breaks, pool)}"
        caught: Counter[str] = Counter()
        yield "| package | what holds no more | caught | by | seconds |"
        yield "| --- | --- | --- | --- | --- |"
        free: SimpleQueue[Copy] = SimpleQueue()
        for copy in copies:
            free.put(copy)
        for each, row, is_caught in pool.map(lambda each: _tried(each, free), breaks):
            caught[each.package] += is_caught
            yield row
    yield f"{caught.total()} of {len(breaks)} caught"
    if caught.total() != len(breaks):
        raise SystemExit(1)


def _whole(copies: Sequence[Copy], breaks: Sequence[Break], pool: Executor) -> str:
    """What the tests of all these breaks come to where nothing is broken. Exits unless they pass.

    The files are dealt out to the copies; a test that is meant for several breaks runs once.
    """
    count: Counter[str] = Counter()
    for real in (False, True):
        tests = sorted({test for each in breaks if each.real is real for test in each.tests.split()})
        files = sorted({test.partition("::")[0] for test in tests})
        hands = [[t for t in tests if files.index(t.partition("::")[0]) % COPIES == n] for n in range(COPIES)]
        dealt = [(copy, hand) for copy, hand in zip(copies, hands, strict=True) if hand]
        for done in [pool.submit(copy.test, hand, real=real, limit_s=WHOLE_LIMIT_S) for copy, hand in dealt]:
            if (found := done.result()).code != PASSED:
                raise SystemExit(f"the tests do not pass on the whole tree:\n{found.said[-3000:]}")
            for n, outcome in re.findall(r"(\d+) (passed|skipped)", found.said):
                count[outcome] += int(n)
    return ", ".join(f"{n} {outcome}" for outcome, n in count.items())


def _tried(each: Break, free: SimpleQueue[Copy]) -> tuple[Break, str, bool]:
    copy, start = free.get(), time.monotonic()
    try:
        with copy.broken(each):
            found = copy.test(each.tests.split(), real=each.real)
    finally:
        free.put(copy)
    said = "caught" if found.code == FAILED else "NOT caught"
    by = found.by if found.code == FAILED else f"{each.tests} (exit code {found.code})"
    row = f"| {each.package} | {each.guards} | {said} | {by} | {time.monotonic() - start:.0f} |"
    return each, row, found.code == FAILED
