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
        "    refuse_blocked(series.placed, series.release, series.settings.patches)\n    store =", "    store =",
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
        "holder=holder, stale=_crashed", "holder=holder",
        "tests/flows/test_server.py::test_a_second_run_is_refused_and_a_killed_run_is_marked_crashed_by_the_next",
    ),
    Break(
        "flows/parameters.py", "whoever does it has a name that is not blank",
        'pattern=r"\\S", max_length', "max_length",
        "tests/flows/test_order.py::test_a_name_and_a_reason_are_not_blank",
    ),
    Break(
        "flows/__main__.py", "bad input and a broken machine are told apart by the exit code",
        "sys.exit(error.exit_code)", "sys.exit(1)",
        "tests/flows/test_needs.py::test_a_command_names_all_at_once_and_starts_and_fetches_nothing",
    ),
    Break(
        "flows/__main__.py", "`explain` that knows nothing says so to a script",
        "raise typer.Exit(0 if matches else 1)", "raise typer.Exit(0)",
        "tests/flows/test_doctor.py::test_explain_says_what_to_collect_when_it_knows_nothing",
    ),
    # -- approval ------------------------------------------------------------------------------------------------------
    Break(
        "tasks/approval/attend.py", "an approval from before the question does not answer it",
        "return found if found and found.at >= request.asked_at else None", "return found",
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
        "tasks/approval/attend.py", "an approval holds while production is what it was",
        "    if production != request.expected:", "    if production is None != request.expected:",
        "tests/approval/test_standing.py",
    ),
    Break(
        "tasks/approval/question.py", "an approval to replace one release replaces no other",
        ' and found.decision == "approve" and found.expected == expected', ' and found.decision == "approve"',
        "tests/approval/test_standing.py",
    ),
    Break(
        "tasks/approval/question.py", "a rejection is no approval",
        'found.decision == "approve" and found.expected', "found.expected",
        "tests/approval/test_standing.py",
    ),
    Break(
        "tasks/approval/terminal.py", "an answer is given to a run that waits",
        "            if not state.is_paused():", "            if state.is_final():",
        "tests/approval/test_terminal.py::test_a_run_that_waits_goes_on_with_what_was_said_in_a_terminal",
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
        "tasks/doctor/configuration.py", "a download that broke off is found",
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
        "tasks/patches/classify.py", "upstreamed is said of a patch whose every function has it",
        "if lines and all(lines) and not left else None", "if lines and not left else None",
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
        "        reader.until = time.monotonic() + patch_s\n", "",
        "tests/patches/test_classify.py::test_a_patch_whose_files_are_not_read_in_time_is_no_finding",
    ),
    Break(
        "tasks/upstream/github.py", "a title of white space is read once",
        r'_PULL = re.compile(r"\(#(\d+)\)$")', r'_PULL = re.compile(r"\s*\(#(\d+)\)$")',
        "tests/test_hostile_text.py",
    ),
    # -- platforms/local -----------------------------------------------------------------------------------------------
    Break(
        "tasks/platforms/local/server.py", "no setting and no secret reaches a server",
        "env = {name: os.environ[name] for name in inherited()}", "env = {**os.environ}",
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
        " or found.st_mode & 0o077:", ":",
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
    # -- restore -------------------------------------------------------------------------------------------------------
    Break(
        "tasks/restore/judge.py", "the lower end of the interval decides",
        "Verdict.PASSED if low >= required", "Verdict.PASSED if high >= required",
        "tests/restore/test_judge.py",
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
    # -- watch ---------------------------------------------------------------------------------------------------------
    Break(
        "tasks/watch/judge.py", "three of the last five are an alert",
        "    if len(bad) < k:\n", "    if len(bad) <= k:\n",
        "tests/watch/test_judge.py",
    ),
    Break(
        "tasks/watch/judge.py", "what was over before begins nothing again",
        "if not since or each.at > since]", "if each]",
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
        "    if pointer.release != approval.expected:", "    if pointer.release is None and approval.expected:",
        "tests/test_promote.py::test_what_the_approval_was_not_given_for_is_refused_and_nothing_moves", real=True,
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
        "    if target != pointer.release:\n        refuse_on_hold(pointer)\n", "",
        "tests/flows/test_order.py::test_only_what_production_has_or_retains_is_redeployed_and_during_a_hold_only_"
        "what_it_has",
    ),
    Break(
        "tasks/redeploy.py", "what is redeployed is in production or retained",
        "if target is None or target not in (pointer.release, *pointer.retained):", "if target is None:",
        "tests/flows/test_order.py::test_only_what_production_has_or_retains_is_redeployed_and_during_a_hold_only_"
        "what_it_has",
    ),
    Break(
        "tasks/runbook.py", "a key in a log is not quoted",
        'line=_SECRET.sub(r"\\1***", line.strip())', "line=line.strip()",
        "tests/test_runbook.py",
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
        "        summary, markdown = redact([summary, markdown])\n", "",
        "tests/test_report.py::test_a_row_has_the_worst_verdict_and_no_secret_and_a_failed_one_stops_the_flow",
    ),
    Break(
        "tasks/release_page.py", "what others wrote stays text on a release's page",
        "autoescape=True", "autoescape=False",
        "tests/test_release_page.py",
    ),
    Break(
        "tasks/notify.py", "an outage loses no message",
        "            left, refused = (entry.again(at, error),), refused + 1", "            refused += 1",
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
        '.replace("<", "&lt;")', "",
        "tests/test_notify.py::test_what_is_longer_than_block_kit_takes_is_cut_and_markup_is_escaped",
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
        "    if proof.without and not any(proof.fault.values()):", "    if proof.without and not proof.fault:",
        "tests/test_proof.py",
    ),
    Break(
        "tasks/proof.py", "a probe that could not be run proves nothing",
        'return found + [f"{name} without" for name, v in self.without.items() if v is Verdict.ERRORED]',
        "return found",
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
        "tasks/linux.py", "where nothing is seen in /proc there are no snapshots",
        ' and Path("/proc/self/stat").exists()', "",
        "tests/test_process.py",
    ),
    Break(
        "tasks/gguf_header.py", "what is no model file is bad input",
        "except (struct.error, ValueError) as error:", "except struct.error as error:",
        "tests/test_gguf_header.py",
    ),
    # -- modal_app -----------------------------------------------------------------------------------------------------
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
        "return max(TOLERANCE, 2 * max(map(", "return max(LOUD, 2 * max(map(",
        "tests/restore/test_judge.py",
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
    """A line for each break that can't be made: its text isn't there exactly once, or what comes of it isn't Python."""
    found = []
    for each in breaks:
        path = REPOSITORY / each.path
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if (times := text.count(each.before)) != 1 or each.before == each.after:
            found.append(f"{each.path}: {each.before!r} is there {times} times")
            continue
        try:
            ast.parse(text.replace(each.before, each.after))
        except SyntaxError as error:
            found.append(f"{each.path}: {each.after!r} is not Python there: {error}")
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
