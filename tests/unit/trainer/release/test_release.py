"""A release: what verifies gets the name under which the server answers, and everything else leaves the name alone.

The server of these tests speaks the endpoints of vLLM on loopback; `make servers` runs the same with a real one."""

import errno
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from release_to_vllm import World
from released_results import release_config
from s3_servers import make_certificates
from vllm_stand_in import StandIn, stand_in

from finetune_api.handoff import ExitCode, Outcome
from finetune_api.release import ReleasedResult, ReleaseOutcome
from finetune_trainer.errors import Stopped, TrainerError
from finetune_trainer.release import vllm_server
from finetune_trainer.release.candidate import verify
from finetune_trainer.release.questions import Answers, compare_answers
from finetune_trainer.storage.local import LocalStore

Object = dict[str, Any]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with stand_in() as server:
        yield World(tmp_path, server)


def test_the_first_result_gets_the_name_and_its_own_folder(world: World) -> None:
    one = world.publish("one")
    found = world.release(one)
    assert (found.outcome, found.replaced) == (ReleaseOutcome.RELEASED, None), found.message
    assert world.server.loaded == {"bot": f"/there/{world.folder_of(one)}"}
    copied = world.volume / "bot"
    assert (copied / "adapter_model.safetensors").read_bytes() == b"weights"
    assert copied.readlink() == Path(world.folder_of(one))
    assert found.comparison
    assert found.comparison.challenger_matched_percent == 100


def test_a_better_result_replaces_the_one_before_it_and_a_third_removes_the_first_ones_files(world: World) -> None:
    results = [world.publish(name, weights=name.encode()) for name in ("one", "two", "three")]
    for result, nats in zip(results, (1.0, 0.5, 0.4), strict=True):
        world.server.nats[world.folder_of(result)] = nats
        found = world.release(result)
    assert found.replaced
    assert found.replaced.manifest_sha256 == results[1].manifest_sha256
    assert found.comparison
    assert (found.comparison.verdict, found.comparison.rows) == ("Better", 20)
    assert (found.comparison.champion_loss, found.comparison.challenger_loss) == pytest.approx((0.5, 0.4), abs=0.04)
    assert sorted(path.name for path in world.volume.iterdir()) == sorted(
        [".bot.owner", "bot", *(world.folder_of(one) for one in results[1:])]
    )


def test_rows_of_a_few_conversations_are_no_independent_rows(world: World) -> None:
    answered = {"role": "assistant", "content": "Yes"}
    starts = [[{"role": "user", "content": f"Conversation {n}"}, answered] for n in range(4)]
    more = [turn for at in range(4) for turn in ({"role": "user", "content": f"Question {at}"}, answered)]
    parts = [{"messages": start + more[: 2 * count]} for start in starts for count in range(5)]
    one, two = world.publish("one", rows=parts), world.publish("two", rows=parts, weights=b"worse")
    world.server.nats[world.folder_of(two)] = 1.5
    world.release(one)
    found = world.release(two)
    assert found.comparison
    assert (found.comparison.verdict, found.comparison.rows) == ("NotEvaluated", 20)
    assert found.comparison.difference_low is None
    assert found.comparison.challenger_loss == pytest.approx(1.5, abs=0.1)


def test_the_evaluations_from_which_the_weights_were_chosen_are_counted(world: World) -> None:
    config = release_config(world.publish("one", evaluations=7), {"files": {"uri": "s3://bucket/alias"}})
    assert verify(config, LocalStore(world.maps), world.folder / "work").choices == 7


def test_the_best_of_ten_equal_challengers_is_called_better_in_at_most_one_release_of_twenty() -> None:
    draws, better, worse = 400, 0, 0
    for seed in range(draws):
        rng = random.Random(seed)
        old = [(rng.uniform(1, 4), 50) for _ in range(40)]
        tries = [[(loss + rng.gauss(0, 0.3), tokens) for loss, tokens in old] for _ in range(10)]
        best = min(tries, key=lambda losses: sum(loss for loss, _ in losses))
        found = compare_answers(Answers(old, []), Answers(best, []), 10)
        better += found.verdict == "Better"
        worse += found.verdict == "Worse"
    assert better / draws <= 0.05
    assert not worse


def test_a_worse_result_is_held_and_the_name_never_moves(world: World) -> None:
    one, two = world.publish("one"), world.publish("two", weights=b"worse")
    world.server.nats[world.folder_of(two)] = 1.5
    world.release(one)
    found = world.release(two)
    assert found.outcome is ReleaseOutcome.HELD
    assert "worse than what answers, on 20 rows through the server: held-out loss" in found.message
    assert found.answering
    assert found.answering.manifest_sha256 == one.manifest_sha256
    assert world.server.loaded == {"bot": f"/there/{world.folder_of(one)}"}
    assert [line for line in world.server.log if line.startswith("load bot ")] == [
        f"load bot /there/{world.folder_of(one)}"
    ]


@pytest.mark.parametrize(
    ("changes", "require", "words"),
    [
        ({"outcome": Outcome.GATE_NOT_MET}, None, "its gate is not met"),
        ({"evaluation": {"verdict": "Better", "gate": "NotMet", "gateMessage": "mustImprove"}}, None, "mustImprove"),
        ({"evaluation": {"verdict": "Worse", "verdictMessage": "+9 %"}}, None, "its own verdict is Worse: +9 %"),
        ({"evaluation": {"verdict": "Worse", "gate": "Passed"}}, {"verdict": "Better"}, "its own verdict is Worse"),
        ({"evaluation": {"verdict": "NotEvaluated"}}, {"verdict": "Better"}, "the job's is NotEvaluated"),
        ({"evaluation": {"gate": "NotConfigured"}}, {"gate": "Passed"}, "the job has no evaluation.gate"),
        ({"spec": {"objective": "RewardModel", "evaluation": {}}}, None, "a reward model generates no text"),
    ],
)
def test_a_result_that_does_not_meet_the_conditions_reaches_no_server(
    world: World, changes: Object, require: Object | None, words: str
) -> None:
    found = world.release(world.publish("one", **changes), require=require)
    assert found.outcome is ReleaseOutcome.REFUSED
    assert words in found.message
    assert (world.server.log, list(world.volume.iterdir())) == ([], [])


def test_a_replaced_a_damaged_and_a_missing_result_are_refused(world: World) -> None:
    one = world.publish("one")
    other = one.model_copy(update={"manifest_sha256": "0" * 64})
    assert f"has SHA-256 {one.manifest_sha256} instead of {'0' * 64}" in world.release(other).message
    (world.folder / "one" / "adapter" / "adapter_model.safetensors").write_bytes(b"changed")
    assert "adapter_model.safetensors does not match its SHA-256" in world.release(one).message
    (world.folder / "one" / "manifest.json").unlink()
    assert "has no manifest.json" in world.release(one).message
    assert world.server.log == []


@pytest.mark.parametrize(
    ("refusal", "adapter", "words"),
    [
        ("LoRA rank 24 is greater than max_lora_rank 16", {"r": 24}, "start it with `--max-lora-rank 32`"),
        ("Loading lora x failed: No adapter found for /there/x", {}, "mount the claim of target.vllm.volume"),
    ],
)
def test_a_refusal_of_the_server_has_its_own_words_and_the_fix(
    world: World, refusal: str, adapter: Object, words: str
) -> None:
    world.release(world.publish("one"))
    world.server.refusal = refusal
    found = world.release(world.publish("two", adapter=adapter))
    assert found.outcome is ReleaseOutcome.REFUSED
    assert refusal in found.message
    assert words in found.message
    assert set(world.server.loaded) == {"bot"}


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        ({"modules_to_save": ["embed_tokens"]}, "whole modules are trained in addition to the adapter"),
        ({"use_dora": True}, "DoRA"),
    ],
)
def test_an_adapter_that_the_server_is_known_to_refuse_is_not_offered_to_it(
    world: World, adapter: Object, words: str
) -> None:
    found = world.release(world.publish("one", adapter=adapter))
    assert found.outcome is ReleaseOutcome.REFUSED
    assert words in found.message
    assert "set `output.merge` and serve `merged/`" in found.message
    assert not world.server.loaded


def test_a_server_that_does_not_allow_to_load_adapters_is_named_with_its_variable(world: World) -> None:
    world.server.may_load = False
    found = world.release(world.publish("one"))
    assert (found.outcome, "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True" in found.message) == (ReleaseOutcome.REFUSED, True)


def test_answers_that_match_too_rarely_are_held(world: World) -> None:
    one = world.publish("one")
    world.server.answers[world.folder_of(one)] = "bad"
    found = world.release(one, require={"matchedPercent": 90})
    assert found.outcome is ReleaseOutcome.HELD
    assert "0 % of the expected answers match, and require.matchedPercent is 90" in found.message
    assert world.server.loaded == {}


@pytest.mark.parametrize("has_champion", [True, False])
def test_a_server_that_fails_after_the_change_gets_back_what_answered_before(world: World, has_champion: bool) -> None:
    one, two = world.publish("one"), world.publish("two", weights=b"two")
    if has_champion:
        world.release(one)
    world.server.dies_after_loading = "bot"
    found = world.release(two)
    assert found.outcome is ReleaseOutcome.ROLLED_BACK
    assert "EngineDeadError: the engine is dead" in found.message
    assert world.server.loaded == ({"bot": f"/there/{world.folder_of(one)}"} if has_champion else {})
    link = world.volume / "bot"
    assert link.readlink() == Path(world.folder_of(one)) if has_champion else not link.exists()


def test_with_rollback_never_the_new_result_keeps_the_name_and_the_report_states_it(world: World) -> None:
    world.release(world.publish("one"))
    two = world.publish("two", weights=b"two")
    world.server.dies_after_loading = "bot"
    found = world.release(two, rollback="Never")
    assert (found.outcome, "rollback is Never" in found.message) == (ReleaseOutcome.FAILED, True)
    assert found.answering
    assert found.answering.manifest_sha256 == two.manifest_sha256
    assert world.server.loaded == {"bot": f"/there/{world.folder_of(two)}"}


def test_a_server_that_is_away_is_an_error_that_a_retry_may_solve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "WAIT_SECONDS", 0)
    monkeypatch.setattr(vllm_server, "WAIT_PAUSE_SECONDS", 0.01)
    with stand_in() as server:
        world = World(tmp_path, server)
    with pytest.raises(vllm_server.ServerAwayError, match="/v1/models"):
        world.release(world.publish("one"))


def test_a_server_that_starts_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_server, "WAIT_PAUSE_SECONDS", 0.01)
    world.server.starting = 3
    assert world.release(world.publish("one")).outcome is ReleaseOutcome.RELEASED


def test_a_release_that_is_stopped_while_it_waits_reports_why_it_waited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "WAIT_PAUSE_SECONDS", 0.01)
    with stand_in() as server:
        world = World(tmp_path, server)
    requests = iter([False, False])

    def check() -> None:
        if next(requests, True):
            raise Stopped

    with pytest.raises(vllm_server.ServerAwayError, match="ConnectError"):
        world.release(world.publish("one"), check=check)


def write_key(world: World, key: str) -> None:
    (world.folder / "secrets").mkdir(exist_ok=True)
    (world.folder / "secrets" / "VLLM_API_KEY").write_text(key)


def test_a_server_that_wants_a_key_gets_that_of_the_secret_with_every_request(world: World) -> None:
    world.server.key = "hunter2"
    write_key(world, "hunter2\n")
    assert world.release(world.publish("one")).outcome is ReleaseOutcome.RELEASED
    assert world.server.authorizations == {"Bearer hunter2"}


def test_without_a_secret_no_key_is_sent_and_the_refusal_names_the_field(world: World) -> None:
    world.server.key = "hunter2"
    found = world.release(world.publish("one"))
    assert found.outcome is ReleaseOutcome.REFUSED
    assert "the server answers 401: Unauthorized: set target.vllm.credentialsSecretRef" in found.message
    assert world.server.authorizations == {""}


def test_a_wrong_key_is_in_no_message_although_the_server_repeats_it(world: World) -> None:
    world.server.key = "hunter2"
    write_key(world, "hunter1")
    found = world.release(world.publish("one"))
    assert found.outcome is ReleaseOutcome.REFUSED
    assert "the server answers 401: Unauthorized Bearer (hidden)" in found.message
    assert "or correct its key VLLM_API_KEY" in found.message


def test_a_redirect_is_not_followed(world: World) -> None:
    write_key(world, "hunter2")
    with stand_in() as other:
        world.server.redirect = f"{other.url}/v1/models"
        found = world.release(world.publish("one"))
    assert found.outcome is ReleaseOutcome.REFUSED
    assert "the server answers 307" in found.message
    assert not other.authorizations


@pytest.mark.parametrize("key", ["", "two words", "two\nlines", "naïve"])
def test_what_is_no_key_is_refused_before_a_request(world: World, key: str) -> None:
    write_key(world, key)
    with pytest.raises(TrainerError, match="credentialsSecretRef: its key VLLM_API_KEY is no key") as failed:
        world.release(world.publish("one"))
    assert not key or key not in failed.value.message
    assert not world.server.authorizations


def test_a_server_with_an_authority_of_its_own_is_trusted_by_its_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vllm_server, "WAIT_SECONDS", 0)
    monkeypatch.setattr(vllm_server, "WAIT_PAUSE_SECONDS", 0.01)
    authority, *certificate = make_certificates(tmp_path)
    with stand_in(certificate=(certificate[0], certificate[1])) as server:
        world = World(tmp_path, server)
        one = world.publish("one")
        with pytest.raises(vllm_server.ServerAwayError, match=r"VERIFY_FAILED.* set target.vllm.caSecretRef"):
            world.release(one)
        (tmp_path / "secrets").mkdir()
        authority.rename(tmp_path / "secrets" / "ca.crt")
        assert world.release(one).outcome is ReleaseOutcome.RELEASED


@pytest.mark.parametrize("which", ["champion", "challenger"])
def test_an_engine_that_dies_while_it_is_asked_is_not_asked_again(world: World, which: str) -> None:
    """Rows that it no longer answers are not left out of the comparison."""
    one, two = world.publish("one"), world.publish("two", weights=b"two")
    world.release(one)
    world.server.dies_at = (world.folder_of(one if which == "champion" else two), 12)
    found = world.release(two)
    assert found.outcome is ReleaseOutcome.FAILED
    assert "EngineDeadError: the engine is dead; what answered before keeps the name" in found.message
    assert world.server.loaded == {"bot": f"/there/{world.folder_of(one)}"}


def test_a_release_that_is_repeated_changes_nothing(world: World) -> None:
    one = world.publish("one")
    world.release(one)
    before = list(world.server.log)
    found = world.release(one)
    assert (found.outcome, world.server.log) == (ReleaseOutcome.RELEASED, before)
    assert "answers with it already" in found.message


def test_a_pod_that_is_stopped_leaves_no_adapter_behind_and_the_name_where_it_is(world: World) -> None:
    world.release(world.publish("one"))
    before = dict(world.server.loaded)

    def check() -> None:
        if len(world.server.loaded) > 1:
            raise Stopped

    with pytest.raises(Stopped):
        world.release(world.publish("two", weights=b"two"), check=check)
    assert world.server.loaded == before


@pytest.mark.parametrize("rollback", ["OnFailure", "Never"])
@pytest.mark.parametrize("has_champion", [True, False])
def test_a_pod_that_is_stopped_once_the_result_has_the_name_gives_it_back(
    world: World, has_champion: bool, rollback: str
) -> None:
    one, two = world.publish("one"), world.publish("two", weights=b"two")
    if has_champion:
        world.release(one)
    before, moved = dict(world.server.loaded), f"/there/{world.folder_of(two)}"

    def check() -> None:
        if world.server.loaded.get("bot") == moved:
            raise Stopped

    with pytest.raises(Stopped) as stopped:
        world.release(two, check=check, rollback=rollback)
    assert world.server.loaded == before
    words = "before: s3://bucket/one" if has_champion else "nothing answered as bot before"
    assert stopped.value.message == f"stopped by SIGTERM; bot was rolled back; {words}"
    assert (world.volume / "bot").exists() == has_champion


def test_a_pod_that_is_stopped_while_it_rolls_back_finishes_that(world: World) -> None:
    one, two = world.publish("one"), world.publish("two", weights=b"two")
    world.release(one)
    world.server.dies_after_loading = "bot"
    requests = iter([False])

    def check() -> None:
        if "bot" in world.server.broken and next(requests, True):
            raise Stopped

    assert world.release(two, check=check).outcome is ReleaseOutcome.ROLLED_BACK
    assert world.server.loaded == {"bot": f"/there/{world.folder_of(one)}"}


def test_a_pod_that_is_stopped_and_cannot_give_the_name_back_states_it(world: World) -> None:
    two = world.publish("two", weights=b"two")
    world.release(world.publish("one"))

    def check() -> None:
        if world.server.loaded["bot"] == f"/there/{world.folder_of(two)}":
            world.server.refusal = "out of memory"
            raise Stopped

    with pytest.raises(Stopped) as stopped:
        world.release(two, check=check)
    assert "bot could not be rolled back: the server answers 500: out of memory" in stopped.value.message


def kill_after_the_change(world: World, result: ReleasedResult) -> None:
    """What a pod leaves behind that is killed between the change of the name and its report."""
    world.release(result)
    link = world.volume / "bot"
    before = next(one for one in world.volume.glob("bot.*") if one.name != link.readlink().name)
    link.unlink()
    link.symlink_to(before.name)


@pytest.mark.parametrize("has_linked", [True, False])
def test_a_release_whose_pod_was_killed_after_the_change_starts_again_from_what_answered_before(
    world: World, has_linked: bool
) -> None:
    one, two = world.publish("one"), world.publish("two", weights=b"two")
    world.server.nats[world.folder_of(two)] = 0.5
    answering = world.release(one).answering
    if has_linked:
        world.release(two)
    else:
        kill_after_the_change(world, two)
    found = world.release(two, answering=answering)
    assert found.outcome is ReleaseOutcome.RELEASED
    assert found.comparison
    assert found.comparison.verdict == "Better"
    assert found.replaced
    assert found.replaced.manifest_sha256 == one.manifest_sha256
    assert found.answering
    assert found.answering.released_time
    assert (world.volume / "bot").readlink() == Path(world.folder_of(two))


def test_a_server_that_fails_when_a_second_pod_repeats_the_change_gets_back_what_answered_before(world: World) -> None:
    one, two = world.publish("one"), world.publish("two", weights=b"two")
    world.release(one)
    kill_after_the_change(world, two)
    world.server.dies_at = (world.folder_of(two), 25)  # 21 answers are those of its trial
    found = world.release(two)
    assert (found.outcome, found.answering and found.answering.uri) == (ReleaseOutcome.ROLLED_BACK, "s3://bucket/one")
    assert world.server.loaded == {"bot": f"/there/{world.folder_of(one)}"}


def test_a_server_that_cannot_go_back_after_a_killed_pod_is_reported_with_what_has_the_name(world: World) -> None:
    one, two = world.publish("one"), world.publish("two", weights=b"two")
    world.release(one)
    kill_after_the_change(world, two)
    world.server.refusal = "out of memory"
    with pytest.raises(TrainerError) as failed:
        world.release(two)
    assert "bot has this result from a pod that did not end its release" in failed.value.message
    assert "out of memory" in failed.value.message


def test_a_result_that_answers_without_a_record_of_one_before_it_is_confirmed_with_its_time(world: World) -> None:
    one = world.publish("one")
    world.release(one)
    (world.volume / "bot").unlink()
    found = world.release(one)
    assert found.outcome is ReleaseOutcome.RELEASED
    assert found.answering
    assert found.answering.released_time
    assert (world.volume / "bot").readlink() == Path(world.folder_of(one))


def test_a_result_that_answers_and_fails_when_it_is_asked_is_reported_as_what_has_the_name(world: World) -> None:
    one = world.publish("one")
    world.release(one)
    world.server.broken.add("bot")
    found = world.release(one)
    assert found.outcome is ReleaseOutcome.FAILED
    assert found.message.endswith("the engine is dead; bot had this result already, and keeps it")
    assert found.answering
    assert found.answering.manifest_sha256 == one.manifest_sha256


def test_the_time_of_a_result_that_answers_by_the_status_stays(world: World) -> None:
    one = world.publish("one")
    answering = world.release(one).answering
    found = world.release(one, answering=answering)
    assert found.answering == answering


def test_a_name_on_a_volume_belongs_to_one_server(world: World) -> None:
    """Two servers with the same claim would lose the folders that they serve."""
    one, two = world.publish("one"), world.publish("two", weights=b"two")
    world.release(one)
    before = {path.name for path in world.volume.iterdir()}
    with stand_in() as staging:
        first, world.server = world.server, staging
        found = world.release(two, name="staging")
        assert found.outcome is ReleaseOutcome.REFUSED
        assert f"adapterName bot on claim adapters belongs to release team/bot for {first.url}" in found.message
        assert "use another claim or adapterName, or remove .bot.owner from the claim if that release" in found.message
        assert (staging.loaded, {path.name for path in world.volume.iterdir()}) == ({}, before)
        (world.volume / ".bot.owner").unlink()
        assert world.release(one, name="staging").outcome is ReleaseOutcome.RELEASED


def test_another_release_for_the_same_server_takes_over_its_name_on_the_volume(world: World) -> None:
    world.release(world.publish("one"))
    assert world.release(world.publish("two", weights=b"two"), name="second").outcome is ReleaseOutcome.RELEASED


def test_a_release_whose_server_moves_keeps_its_name_on_the_volume(world: World) -> None:
    one = world.publish("one")
    world.release(one)
    with stand_in() as moved:
        first, world.server = world.server, moved
        assert world.release(one).outcome is ReleaseOutcome.RELEASED
        world.server = first
        assert world.release(one, name="second").outcome is ReleaseOutcome.REFUSED


@pytest.mark.parametrize("record", [None, b"", b"[]", b"\xff" * 9000], ids=["absent", "empty", "a list", "long"])
def test_a_volume_without_a_readable_record_of_its_release_gets_one(world: World, record: bytes | None) -> None:
    world.release(world.publish("one"))
    path = world.volume / ".bot.owner"
    path.unlink()
    if record is not None:
        path.write_bytes(record)
    assert world.release(world.publish("two", weights=b"two")).outcome is ReleaseOutcome.RELEASED
    assert json.loads(path.read_text()) == {"release": "team/bot", "server": world.server.url}


def test_a_server_that_was_started_with_the_link_is_loaded_since_it_may_have_read_an_earlier_folder(
    world: World,
) -> None:
    one, two = world.publish("one"), world.publish("two", weights=b"two")
    with stand_in() as other:
        other.loaded["bot"] = "/there/bot"
        world.release(one)
        world.release(two)
        world.server = other
        found = world.release(two)
        assert (found.outcome, other.loaded) == (ReleaseOutcome.RELEASED, {"bot": f"/there/{world.folder_of(two)}"})


@pytest.mark.parametrize("before", [{}, {"bot": "/models/first"}])
def test_an_address_of_several_server_pods_is_refused_before_the_name_changes(world: World, before: Object) -> None:
    """A connection that is kept leads to one of them, and all the others answer as before."""
    one, pods = world.publish("one"), [world.server, StandIn(), StandIn()]
    world.server.replicas = pods[1:]
    for pod in pods:
        pod.loaded |= before
    found = world.release(one)
    assert found.outcome is ReleaseOutcome.REFUSED
    assert f"several server pods answer at {world.server.url}" in found.message
    assert "use a Service of exactly one pod, or the address of one pod" in found.message
    assert [pod.loaded for pod in pods] == [before] * 3


def test_a_result_that_only_one_of_several_server_pods_has_is_refused(world: World) -> None:
    one = world.publish("one")
    answering = world.release(one).answering
    other = StandIn()
    other.loaded["bot"] = "/models/first"
    world.server.replicas, world.server.connections = [other], 0
    found = world.release(one, answering=answering)
    assert (found.outcome, "several server pods" in found.message) == (ReleaseOutcome.REFUSED, True)
    assert other.loaded == {"bot": "/models/first"}


@pytest.mark.parametrize(
    ("number", "fix"),
    [
        (errno.EACCES, "let the user of the release's pods write there"),
        (errno.ENOSPC, "make the claim larger, or remove what no server reads"),
    ],
)
def test_a_volume_that_cannot_be_written_is_named_with_the_fix(
    world: World, monkeypatch: pytest.MonkeyPatch, number: int, fix: str
) -> None:
    def fail(path: Path, _: object) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "rename", fail)
    one = world.publish("one")
    with pytest.raises(TrainerError) as failed:
        world.release(one)
    part = f".{world.folder_of(one)}.part"
    assert failed.value.message == f"claim adapters: {os.strerror(number)}, at {part}: {fix}"
    assert failed.value.code is ExitCode.STORAGE_UNAVAILABLE


def test_a_link_that_cannot_be_written_gives_the_name_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    one = world.publish("one")
    world.release(one)
    before = dict(world.server.loaded)

    def fail(*_: object) -> None:
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    two = world.publish("two", weights=b"two")
    monkeypatch.setattr(Path, "symlink_to", fail)
    with pytest.raises(TrainerError) as failed:
        world.release(two)
    assert world.server.loaded == before
    fix = "make the claim larger, or remove what no server reads"
    assert (
        failed.value.message
        == f"claim adapters: Disk quota exceeded: {fix}; bot was rolled back; before: s3://bucket/one"
    )


def test_results_that_are_held_leave_no_more_than_one_folder(world: World) -> None:
    results = [world.publish(name, weights=name.encode()) for name in ("one", "two", "three", "four")]
    world.release(results[0])
    for result in results[1:]:
        world.server.nats[world.folder_of(result)] = 2.0
        assert world.release(result).outcome is ReleaseOutcome.HELD
    kept = {world.folder_of(result) for result in (results[0], results[3])}
    assert {path.name for path in world.volume.glob("bot.*")} == kept


def test_before_a_copy_the_folders_of_link_status_and_server_are_kept(world: World) -> None:
    """A server that has lost what was loaded is started with the link."""
    one, two, three = (world.publish(name, weights=name.encode()) for name in ("one", "two", "three"))
    world.release(one)
    answering = world.release(two).answering
    world.server.loaded.clear()
    (world.volume / "bot").unlink()
    (world.volume / "bot").symlink_to(world.folder_of(one))
    world.server.answers[world.folder_of(three)] = "bad"
    assert world.release(three, answering=answering, require={"matchedPercent": 90}).outcome is ReleaseOutcome.HELD
    assert {path.name for path in world.volume.glob("bot.*")} == {world.folder_of(one) for one in (one, two, three)}


def test_answers_that_match_too_rarely_are_held_of_a_result_that_answers_already_too(world: World) -> None:
    one = world.publish("one")
    answering = world.release(one).answering
    world.server.answers[world.folder_of(one)] = "bad"
    found = world.release(one, require={"matchedPercent": 90}, answering=answering)
    assert found.outcome is ReleaseOutcome.HELD
    assert found.message.startswith("0 % of the expected answers match, and require.matchedPercent is 90; bot had this")
    assert (found.answering, world.server.loaded) == (answering, {"bot": f"/there/{world.folder_of(one)}"})


def test_the_name_of_the_base_model_is_refused(world: World) -> None:
    """The server answers with the base, whatever is loaded under its name, and that cannot be rolled back."""
    target = {"url": world.server.url, "adapterName": "base", "volume": {"claimName": "adapters", "path": "/there"}}
    found = world.release(world.publish("one"), {"vllm": target})
    assert found.outcome is ReleaseOutcome.REFUSED
    assert "base is the name of the server's base model: use another adapterName" in found.message
    assert (world.server.log, list(world.volume.iterdir())) == ([], [])


def test_an_adapter_that_the_server_was_started_with_is_replaced_and_can_come_back(world: World) -> None:
    """It is not on the volume, so its result is unknown, but its folder on the server is."""
    world.server.loaded["bot"] = "/models/first"
    world.server.dies_after_loading = "bot"
    found = world.release(world.publish("one"))
    assert (found.outcome, found.answering) == (ReleaseOutcome.ROLLED_BACK, None)
    assert world.server.loaded == {"bot": "/models/first"}


def test_a_pointer_names_the_result_and_the_one_before_it(world: World) -> None:
    target = {"files": {"uri": "s3://bucket/alias"}}
    one, two = world.publish("one"), world.publish("two", weights=b"two")
    world.release(one, target)
    found = world.release(two, target)
    assert (found.outcome, found.replaced and found.replaced.uri) == (ReleaseOutcome.RELEASED, "s3://bucket/one")
    pointer = json.loads((world.folder / "alias" / "release.json").read_text())
    assert pointer["released"]["manifestSHA256"] == two.manifest_sha256
    assert (pointer["folder"], pointer["maxLoraRank"]) == ("s3://bucket/two/adapter", 8)
    assert {one["path"] for one in pointer["files"]} == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    assert pointer["previous"]["uri"] == "s3://bucket/one"


def test_the_pointer_of_another_release_is_left_alone(world: World) -> None:
    text = json.dumps({"release": {"namespace": "team", "name": "other"}})
    (world.folder / "alias" / "release.json").write_text(text)
    found = world.release(world.publish("one"), {"files": {"uri": "s3://bucket/alias"}})
    assert (found.outcome, "belongs to another release" in found.message) == (ReleaseOutcome.REFUSED, True)
    assert (world.folder / "alias" / "release.json").read_text() == text


def test_for_kserve_the_pod_verifies_and_asks_nothing(world: World) -> None:
    found = world.release(world.publish("one"), {"kserve": {"name": "service", "adapterName": "bot"}})
    assert (found.outcome, world.server.log) == (ReleaseOutcome.VERIFIED, [])
