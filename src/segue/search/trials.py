"""The ledger of a search: one SQLite file, one writer. Every candidate, what it came to, and why.

A row is written whole and once, in one transaction; killing the search at any moment loses the running candidates and
nothing else. A candidate that failed has an error and no reward: a reward of 0 would teach the search something false.
"""

import json
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import segue
from segue.errors import DataError
from segue.records import expecting


@dataclass(frozen=True)
class Trial:
    """One candidate.

    Args:
        trial: its number, from 0.
        genotype: in its text form.
        state: ``stopped`` by the gate, ``done`` after training end to end, or ``failed``.
        log_probability: by the policy that proposed it; None for strategies without one.
        error: type and message of what made it fail; empty otherwise.
        error_type: its type alone.
        reward1: after the short training of its decoder; None if that failed, and there where the second one did.
        parts1: the parts of that reward, by name.
        mu, s, temperature, u: what the gate decided by.
        verdict: ``accepted`` or ``stopped`` by the gate; empty for one that failed before.
        reward2: after training end to end; None where the gate stopped it.
        parts2: the parts of that reward, by name.
        parameters: of the decoder.
        macs: multiply-accumulates of the decoder's convolutions for one training crop.
        latency: estimated milliseconds at the target's size; None without a target.
        seconds1: of the short training.
        seconds2: of the training end to end.
        cpu1: CPU seconds of the short training.
        cpu2: CPU seconds of the training end to end.
        tokens: the decisions that the genotype consists of, in their order.
        policy_version: rewards that the strategy had been told when it proposed it.
        host: name of the machine that tried it.
        started: seconds since 1970.
        finished: seconds since 1970.
    """

    trial: int
    genotype: str
    state: str
    log_probability: float | None = None
    error: str = ""
    error_type: str = ""
    reward1: float | None = None
    parts1: Mapping[str, float] = field(default_factory=dict)
    mu: float = 0.0
    s: float = 0.0
    temperature: float = 0.0
    u: float = 0.0
    verdict: str = ""
    reward2: float | None = None
    parts2: Mapping[str, float] = field(default_factory=dict)
    parameters: int = 0
    macs: int = 0
    latency: float | None = None
    seconds1: float = 0.0
    seconds2: float = 0.0
    cpu1: float = 0.0
    cpu2: float = 0.0
    tokens: tuple[int, ...] = ()
    policy_version: int = 0
    host: str = ""
    started: float = 0.0
    finished: float = 0.0


LEDGER = "trials.sqlite"  # its name in a run folder
FORMAT = 2  # raised where a candidate comes to other numbers than before
DIED = "ProcessDied"  # type of the error of a candidate whose process the system ended
REMEDIES = {  # by SQLite's code: what keeps the file from being used and says nothing of what is in it
    **dict.fromkeys((sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR), "make room on the disk"),
    sqlite3.SQLITE_CANTOPEN: "make room on the disk, or its folder writable,",
    **dict.fromkeys((sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM), "make it and its folder writable"),
    **dict.fromkeys(
        (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL), "end the other program that holds it"
    ),
}
_COLUMNS = [f.name for f in fields(Trial)]
_JSON = {"parts1", "parts2", "tokens"}


def computing(trials: Iterable[Trial]) -> float:
    """CPU seconds of all their trainings: what else a machine does counts towards no limit."""
    return sum(t.cpu1 + t.cpu2 for t in trials)


def is_beyond(trials: Mapping[int, Trial], minutes: float, number: int) -> bool:
    """Whether ``minutes`` of computing (0: no limit) were spent when candidate ``number`` was to be tried."""
    seconds = computing(t for n, t in trials.items() if n < number)  # not of what ran beside it
    return bool(minutes) and seconds > 60 * minutes


class Trials:
    """The ledger in ``path``.

    Args:
        path: of the SQLite file; made if missing.
        identity: what the search is of: settings and fingerprint of its data.
        about: what all its trials have in common, by name: seed, strategy, fingerprint of the data and the like.

    Raises:
        DataError: the file is of another search, or no ledger, or the disk does not let it be opened.
    """

    def __init__(self, path: Path, identity: str, about: Mapping[str, object] | None = None) -> None:
        self.path = path
        identity = f"{FORMAT}: {identity}"
        with self._open("it cannot be opened", "is no ledger of a search") as ledger:
            ledger.execute("CREATE TABLE IF NOT EXISTS search (identity TEXT NOT NULL, about TEXT, started REAL)")
            columns = ", ".join(name + (" INTEGER PRIMARY KEY" if name == "trial" else "") for name in _COLUMNS)
            ledger.execute(f"CREATE TABLE IF NOT EXISTS trials ({columns})")
            there = [row[1] for row in ledger.execute("PRAGMA table_info(trials)")]
            known = ledger.execute("SELECT identity FROM search").fetchone()
            if known is None:
                of_all = json.dumps({"segue": segue.__version__, **(about or {})})
                ledger.execute("INSERT INTO search VALUES (?, ?, ?)", (identity, of_all, time.time()))
        if there != _COLUMNS:
            raise DataError(f"{path} was written by another version of Segue; name another folder for --out")
        if known is not None and known[0] != identity:
            raise DataError(
                f"{path} is the ledger of another search, of other data or of another version; name another --out"
            )

    @contextmanager
    def _open(self, refused: str, faulty: str = "is damaged") -> Iterator[sqlite3.Connection]:
        """The file, open for one transaction.

        Args:
            refused: what is said where the disk or another program is at fault.
            faulty: what is said of the file where its content is.

        Raises:
            DataError: either; a ledger that is sound is never said to be given up.
        """
        try:
            with closing(sqlite3.connect(self.path, timeout=30)) as ledger:
                ledger.execute("PRAGMA journal_mode = WAL")
                ledger.execute("PRAGMA synchronous = FULL")
                with ledger:
                    yield ledger
        except (sqlite3.Error, OverflowError) as error:
            remedy = REMEDIES.get(getattr(error, "sqlite_errorcode", 0) & 0xFF)  # without what details the code
            if remedy is None:
                raise DataError(f"{self.path} {faulty} ({error}); name another folder for --out") from None
            raise DataError(
                f"{self.path}: {refused} ({error}). The candidates in it are kept: {remedy} and give the same command "
                "again"
            ) from None

    def add(self, trial: Trial) -> None:
        """Writes a candidate; a second time it changes nothing.

        Raises:
            DataError: the disk is full, or the file cannot be written.
        """
        row = [json.dumps(value) if name in _JSON else value for name, value in asdict(trial).items()]
        marks = ", ".join("?" * len(_COLUMNS))
        with self._open(f"candidate {trial.trial} cannot be written") as ledger:
            ledger.execute(f"INSERT OR IGNORE INTO trials VALUES ({marks})", row)  # noqa: S608  marks are "?"

    def all(self) -> dict[int, Trial]:
        """The candidates by number, in their order.

        Raises:
            DataError: the file cannot be read, or is damaged.
        """
        with expecting(self.path, "the ledger of a search"):
            with self._open("it cannot be read") as ledger:
                rows = ledger.execute("SELECT * FROM trials ORDER BY trial").fetchall()
            found = [Trial(**dict(zip(_COLUMNS, map(_read, _COLUMNS, row), strict=True))) for row in rows]
            return {trial.trial: trial for trial in found}

    def resumed(self, generation: int) -> dict[int, Trial]:
        """`all`, less those of the last ``generation`` candidates whose process died: they are taken out.

        What the system did says nothing of a genotype, and no other was asked for since.

        Raises:
            DataError: the file cannot be read or written, or is damaged.
        """
        known = self.all()
        first = max(known, default=0) // generation * generation
        for number in [n for n, trial in known.items() if n >= first and trial.error_type == DIED]:
            with self._open(f"candidate {number}, whose process died, cannot be taken out") as ledger:
                ledger.execute("DELETE FROM trials WHERE trial = ?", (number,))
            del known[number]
        return known


def _read(name: str, value: Any) -> Any:
    """A stored value as the field of a `Trial`."""
    found = json.loads(value) if name in _JSON else value
    return tuple(found) if name == "tokens" else found
