"""Which of a promotion's two flags stands for what: production that serves, and a newest point at which a volume was not in step."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from playhead.copy import Copies
from playhead.errors import PlayheadError


class Standing(Copies):
    """One copy that stands as it is told; nothing else of a group is looked at."""

    def __init__(self, *, consistent: bool, opened: bool) -> None:
        state, reason = (
            "synchronised" if opened else "initialising",
            None if consistent else "point 7 lies in a resynchronisation",
        )
        self._found: Any = SimpleNamespace(
            path="db/near", group="db", directory="/copy", state=state, reason=reason, consistent=consistent
        )
        self._opened: Any = SimpleNamespace(engine=SimpleNamespace(group=lambda: object() if opened else None))

    def show(self, _name: str) -> Any:
        return self._found

    def _get(self, _name: str) -> Any:
        return self._opened


@pytest.mark.parametrize("serving", [False, True])
@pytest.mark.parametrize("consistent", [False, True])
@pytest.mark.parametrize("while_serving", [False, True])
@pytest.mark.parametrize("allow_inconsistent", [False, True])
def test_each_flag_says_one_thing(
    serving: bool, consistent: bool, while_serving: bool, allow_inconsistent: bool
) -> None:
    copies = Standing(consistent=consistent, opened=True)

    def check() -> Path:
        return copies.check_promotable(
            "near", serving=serving, while_serving=while_serving, allow_inconsistent=allow_inconsistent
        )

    if (serving and not while_serving) or (not consistent and not allow_inconsistent):
        with pytest.raises(PlayheadError) as refused:
            check()
        wanted = "--while-serving" if serving and not while_serving else "--allow-inconsistent"
        assert refused.value.code == "conflict"
        assert wanted in refused.value.next_step
    else:
        assert check() == Path("/copy")


def test_a_copy_whose_synchronisation_is_not_over_is_never_promoted() -> None:
    with pytest.raises(PlayheadError, match="initialising"):
        Standing(consistent=False, opened=False).check_promotable(
            "near", serving=False, while_serving=True, allow_inconsistent=True
        )
