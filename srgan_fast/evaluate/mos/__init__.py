"""Mean opinion scores: stimuli, a page on which people rate them, and the statistics of what they said.

Single stimulus and blind, on the five-point scale of ITU-T P.910 with a hidden reference, as Ledig et al. did it
(section 3.3 and appendix A.3): `prepare` -> a folder -> `serve` -> ratings -> `analyse`.
"""

from __future__ import annotations

from importlib.util import find_spec

from srgan_fast.errors import BackendUnavailable

# ITU-T P.910, absolute category rating.
LABELS = {1: "Bad", 2: "Poor", 3: "Fair", 4: "Good", 5: "Excellent"}


def needs(*packages: str) -> None:
    """Make sure that packages of the extra `mos` are there.

    Raises:  BackendUnavailable that names the missing ones and the cure
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        raise BackendUnavailable(f"{' and '.join(missing)} not installed; pip install 'srgan-fast[mos]'")
