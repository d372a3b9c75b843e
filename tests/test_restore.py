import pytest

from tasks.endpoint import Stream
from tasks.release import BootKind, Verdict
from tasks.restore import judge
from tasks.settings import RestoreSettings
from tests.test_release import a_release


def said(text: str, status: int = 200) -> Stream:
    events = [{"choices": [{"delta": {"content": text}}]}] if text else []
    return Stream(status, events, [0.5] * len(events), True)


SAME = said("The sea is wide.")


@pytest.mark.parametrize(
    ("before", "after", "boots", "accept_cold", "verdict"),
    [
        (SAME, SAME, [BootKind.RESTORED], False, Verdict.PASSED),
        (SAME, SAME, [BootKind.COLD], True, Verdict.PASSED),
        (SAME, SAME, [BootKind.COLD], False, Verdict.INCONCLUSIVE),
        (SAME, SAME, [BootKind.FELL_BACK], True, Verdict.FAILED),
        (SAME, SAME, [BootKind.CRASHED, BootKind.COLD], True, Verdict.FAILED),
        (SAME, SAME, [BootKind.COLD, BootKind.COLD], True, Verdict.FAILED),
        (SAME, SAME, [], True, Verdict.ERRORED),
        (SAME, said("The sea is deep."), [BootKind.RESTORED], True, Verdict.FAILED),
        (SAME, said("", 503), [BootKind.RESTORED], True, Verdict.FAILED),
        (said("", 503), SAME, [BootKind.RESTORED], True, Verdict.ERRORED),
        (said(""), said(""), [BootKind.RESTORED], True, Verdict.ERRORED),
    ],
)
def test_only_one_good_boot_with_the_same_answer_passes(
    before: Stream, after: Stream, boots: list[BootKind], accept_cold: bool, verdict: Verdict
) -> None:
    found = judge(a_release(), before, after, SAME, boots, RestoreSettings(accept_cold=accept_cold))
    assert found.verdict is verdict
