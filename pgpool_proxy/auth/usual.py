"""What most users' secrets are like: so does the secret of a user seem to be that there is not.

Knows what of a secret shows to whom is logging in: what is asked for, how long the answer takes, the iteration count of SCRAM.
Must not know where the secrets are from.
"""

from __future__ import annotations

from typing import Final

from pgpool_proxy.auth.secret import MD5, PLAIN, SCRAM, Secret

MAX_COUNTS: Final = 1000  # different iteration counts; one server has one or two


class UsualSecrets:
    """Counts secrets. The same secrets give the same answers, in whatever order and process they are counted."""

    __slots__ = ("_iterations", "_kinds", "_usual_iterations")

    def __init__(self) -> None:
        self._kinds: dict[str, int] = {}
        self._iterations: dict[int, int] = {}
        self._usual_iterations = 0

    def __repr__(self) -> str:
        return f"<UsualSecrets {self._kinds} iterations={self._usual_iterations}>"

    @property
    def is_empty(self) -> bool:
        return not any(self._kinds.values())

    def count(self, secret: Secret, more: int = 1) -> None:
        """One more user has such a secret or, with -1, one less. An empty one proves nobody, so it looks like none."""
        if secret.is_empty:
            return
        self._kinds[secret.kind] = self._kinds.get(secret.kind, 0) + more
        stored = secret.scram
        if stored is None:
            return
        count = self._iterations.pop(stored.iterations, 0) + more
        if count > 0 and len(self._iterations) < MAX_COUNTS:
            self._iterations[stored.iterations] = count
        usual, most = 0, 0
        for iterations, count in self._iterations.items():
            if (count, iterations) > (most, usual):
                usual, most = iterations, count
        self._usual_iterations = usual

    def kind(self, method: str) -> str:
        """PLAIN or SCRAM: what of the two most secrets look like in logins by `method`; SCRAM when they are as many.

        An md5 hash is asked for and takes as long as a plain password does. With scram-sha-256, where it proves nobody, it is
        not counted.
        """
        scram = self._kinds.get(SCRAM, 0)
        others = self._kinds.get(PLAIN, 0)
        if method != "scram-sha-256":
            others += self._kinds.get(MD5, 0)
        return SCRAM if scram and scram >= others else PLAIN

    def iterations(self, otherwise: int) -> int:
        """Those of most SCRAM secrets, the greater number when two are as frequent; `otherwise` where there are none."""
        return self._usual_iterations or otherwise
