"""Looks the pinned packages up among known vulnerabilities, by pip-audit: python tools/audit.py

Ends with 1 where one is known. Where no database can be reached this is said, and the exit code is 0: nothing was found
out. pip-audit alone would call that a success as well.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).resolve().parent.parent / "requirements.lock"

# What stands in its last words where a connection failed.
_UNREACHABLE = ("ConnectionError", "ConnectTimeout", "ReadTimeout", "HTTPError", "ServiceError")


def verdict(report: dict[str, Any]) -> tuple[str, int]:
    """What pip-audit's report amounts to, and the exit code."""
    packages = report["dependencies"]
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    lines = [
        f"{one['name']} {one['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version yet'}"
        for one in packages
        for flaw in one.get("vulns", ())
    ]
    looked_up = len(packages) - len(skipped)
    if not looked_up:
        return "no database of vulnerabilities can be reached from here: nothing was looked up", 0
    lines.append(f"{looked_up} of {len(packages)} packages looked up, {len(lines)} known vulnerabilities")
    if skipped:
        lines.append(f"not looked up: {', '.join(skipped)}")
    return "\n".join(lines), int(any(one.get("vulns") for one in packages))


def main() -> int:
    """Run pip-audit over the lock file."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(LOCK), "--no-deps", "--disable-pip"]
    done = subprocess.run(
        [*command, "--progress-spinner", "off", "--format", "json"], capture_output=True, text=True, check=False
    )
    try:
        said, code = verdict(json.loads(done.stdout))
    except ValueError:  # it reports nothing where its connection breaks
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        if not any(sign in done.stderr for sign in _UNREACHABLE):
            print(f"pip-audit failed: {last}", file=sys.stderr)
            return 2
        said, code = f"no database of vulnerabilities can be reached from here: nothing was looked up ({last:.120})", 0
    print(said)
    return code


if __name__ == "__main__":
    sys.exit(main())
