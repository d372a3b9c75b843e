"""What every platform promises to the flows: one suite, run on each of them with real servers."""

from __future__ import annotations

import pytest

from tasks.endpoint import Client
from tasks.platforms import Platform
from tasks.release import BadInput, BootKind, Endpoint, Release, ReleaseFailed, ToolingError
from tests.platforms.modal_stand import ModalStand, say
from tests.platforms.stand import Stand

pytestmark = pytest.mark.real


@pytest.fixture(scope="module", params=["local", "modal"])
def stand_of(request: pytest.FixtureRequest) -> Stand | ModalStand:
    chosen: Stand | ModalStand = request.getfixturevalue("stand" if request.param == "local" else "modal_stand")
    return chosen


@pytest.fixture
def platform(stand_of: Stand | ModalStand) -> Platform:
    return stand_of.platform


def serves(platform: Platform, release: Release) -> Endpoint:
    """Staging serves it, however it was before."""
    return platform.deploy("staging", release, lambda endpoint: say(endpoint) == release.alias or pytest.fail("other"))


def answers(endpoint: Endpoint) -> bool:
    try:
        with Client(endpoint) as client:
            return client.get("/slots").status == 200
    except ToolingError:
        return False


def never(_: Endpoint) -> None:
    raise AssertionError("nothing was to be checked")


def test_a_stage_that_serves_nothing_has_no_endpoint_and_stopping_it_is_no_error(platform: Platform) -> None:
    platform.stop("production")
    with pytest.raises(BadInput, match="production serves nothing"):
        platform.endpoint("production")
    assert platform.idle("production") == 0


def test_a_deployed_release_answers_with_the_stages_key(stand_of: Stand | ModalStand) -> None:
    endpoint = serves(stand_of.platform, stand_of.first)
    assert say(endpoint) == "first"
    assert stand_of.platform.endpoint("staging") == endpoint
    assert endpoint.api_key == stand_of.key
    with Client(endpoint) as client:
        assert client.get("/slots", key=None).status == 401
    assert [boot.release for boot in stand_of.platform.boots("staging")][-1] == stand_of.first.id


def test_the_same_release_again_is_no_deployment(stand_of: Stand | ModalStand) -> None:
    serves(stand_of.platform, stand_of.first)
    before = stand_of.platform.boots("staging")
    stand_of.platform.deploy("staging", stand_of.first, never)
    assert stand_of.platform.boots("staging") == before


def test_another_generation_of_the_same_release_is_another_server_with_a_snapshot_of_its_own(
    stand_of: Stand | ModalStand,
) -> None:
    platform, release = stand_of.platform, stand_of.first
    serves(platform, release)
    known, asked = platform.boots("staging"), []
    for check in (lambda endpoint: asked.append(say(endpoint)), never):
        platform.deploy("staging", release, check, generation="2")
    assert (set(asked), platform.serving("staging")) == ({"first"}, (release.id, "2"))
    (boot,) = platform.boots("staging")[len(known) :]
    assert boot.kind in (BootKind.CREATED, BootKind.COLD) and boot.generation == "2", boot
    assert boot.snapshot is None or boot.snapshot not in [each.snapshot for each in known]
    assert say(platform.endpoint("staging")) == "first"


def test_after_a_forced_idle_window_the_first_request_brings_it_back(stand_of: Stand | ModalStand) -> None:
    platform = stand_of.platform
    serves(platform, stand_of.first)
    known = len(platform.boots("staging"))
    assert platform.idle("staging") == 0
    assert say(platform.endpoint("staging")) == "first"
    (boot,) = platform.boots("staging")[known:]
    assert boot.kind in (BootKind.RESTORED, BootKind.COLD), boot
    assert boot.health_s is not None


def test_another_release_takes_over_and_rollback_is_a_deploy_of_the_earlier_one(stand_of: Stand | ModalStand) -> None:
    for release in (stand_of.first, stand_of.second, stand_of.first):
        assert say(serves(stand_of.platform, release)) == release.alias


def test_what_a_check_raises_leaves_the_stage_as_it_was(stand_of: Stand | ModalStand) -> None:
    platform = stand_of.platform
    serves(platform, stand_of.first)

    def refuse(endpoint: Endpoint) -> None:
        assert say(endpoint) == "second"
        raise ReleaseFailed("refused")

    with pytest.raises(ReleaseFailed, match="refused"):
        platform.deploy("staging", stand_of.second, refuse)
    assert say(platform.endpoint("staging")) == "first"


def test_a_server_that_does_not_come_up_is_quoted_and_the_stage_is_as_it_was(stand_of: Stand | ModalStand) -> None:
    platform = stand_of.platform
    serves(platform, stand_of.first)
    bad = stand_of.second.model_copy(update={"argv": ("--model", "/no/such.gguf")})
    with pytest.raises(BadInput) as caught:
        platform.deploy("staging", bad, never)
    assert "failed to load model, '/no/such.gguf'" in caught.value.evidence
    assert say(platform.endpoint("staging")) == "first"


def test_a_trial_has_a_key_of_its_own_and_is_gone_on_exit(stand_of: Stand | ModalStand) -> None:
    with pytest.raises(ZeroDivisionError), stand_of.platform.trial(stand_of.second) as endpoint, Client(endpoint) as c:
        assert endpoint.api_key != stand_of.key
        assert c.get("/slots").status == 200
        assert c.get("/slots", key=stand_of.key).status == 401
        raise ZeroDivisionError
    assert not answers(endpoint)


def test_a_stopped_stage_serves_nothing(stand_of: Stand | ModalStand) -> None:
    serves(stand_of.platform, stand_of.first)
    stand_of.platform.stop("staging")
    stand_of.platform.stop("staging")
    with pytest.raises(BadInput, match="staging serves nothing"):
        stand_of.platform.endpoint("staging")


def test_it_is_seen_whether_anything_would_answer_and_what_was_stopped_is_not_brought_back(
    stand_of: Stand | ModalStand,
) -> None:
    platform = stand_of.platform
    serves(platform, stand_of.first)
    assert (platform.sight("staging").down, platform.revive("staging")) == ("", "")
    platform.stop("staging")
    assert platform.sight("staging").down
    assert platform.revive("staging") == ""
    with pytest.raises(BadInput, match="staging serves nothing"):
        platform.endpoint("staging")
