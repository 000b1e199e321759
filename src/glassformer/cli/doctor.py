"""`glassformer doctor`: is this machine ready?"""

from __future__ import annotations

from dataclasses import asdict

import glassformer as gf
from glassformer.cli.terminal import ANSWER_IS_NO, document, note, table


def doctor(*, json: bool = False) -> int:
    """Check that this machine is ready, and say what to do where it is not.

    Args:
        json: One JSON document instead of a table.
    """
    rows = [asdict(check) for check in gf.checkup()]
    failed = [row["name"] for row in rows if row["status"] == "fail"]
    if json:
        document({"ready": not failed, "checks": rows}, "doctor")
    else:
        table([{name: value or None for name, value in row.items()} for row in rows])
    if failed:
        note(f"This machine is not ready: {', '.join(failed)}. The last column says what to do.")
    return ANSWER_IS_NO if failed else 0
