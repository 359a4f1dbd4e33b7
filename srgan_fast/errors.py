"""What can go wrong, as exceptions that say what was expected, what came, and what to do next.

    SRGANFastError                 exit code 1
      InputError (ValueError)      2   a file, array or folder that cannot be used
        ShapeError                 2   a size, rank or dtype outside the contract
        UsageError                 2   options that contradict each other or name nothing
      OutputError                  4   the result cannot be written
      BackendUnavailable           3   the backend asked for cannot run here
      ParityError                  6   a fast path disagrees with its reference
      WeightsError (ValueError)    5   not weights, damaged weights, or weights of another network
      CheckpointError              5   a training checkpoint that cannot be resumed
      MemoryBudgetError            7   the memory budget cannot hold even the smallest tile
      TrainingError                8   training cannot go on (it diverged again and again)
      DistributedError             9   another rank or worker of the run is gone, or was never there
      IncompleteError             10   the result was written, but lacks something that the input has
      Interrupted                130   stopped by the user; what was finished is kept

The command line turns each into one line and the exit code; a traceback is always a bug.
"""

from __future__ import annotations


class SRGANFastError(Exception):
    """Root of all errors that this package raises on purpose."""

    exit_code = 1


class InputError(SRGANFastError, ValueError):
    """A file, an array or a folder cannot be used as it is."""

    exit_code = 2


class ShapeError(InputError):
    """An array has a size, rank or dtype outside the contract."""


class UsageError(InputError):
    """Options contradict each other, or name something that does not exist."""


class OutputError(SRGANFastError):
    """The result cannot be written."""

    exit_code = 4


class BackendUnavailable(SRGANFastError):
    """The backend that was asked for cannot run here; says the cause and the cure."""

    exit_code = 3


class ParityError(SRGANFastError):
    """A fast path disagrees with its reference by more than the tolerance rule admits."""

    exit_code = 6


class WeightsError(SRGANFastError, ValueError):
    """A file holds no weights, damaged weights, or weights of a network that is not known."""

    exit_code = 5


class CheckpointError(SRGANFastError):
    """A training checkpoint cannot be read or does not fit the run that resumes it."""

    exit_code = 5


class MemoryBudgetError(SRGANFastError):
    """The memory budget cannot hold even the smallest tile."""

    exit_code = 7


class TrainingError(SRGANFastError):
    """Training cannot go on; the last good checkpoint is kept."""

    exit_code = 8


class DistributedError(SRGANFastError):
    """Another rank or worker of a run on several processes is gone, silent, unlike the others, or cannot be reached."""

    exit_code = 9


class IncompleteError(SRGANFastError):
    """The result was written, but lacks something that the input has or says that it has."""

    exit_code = 10


class Interrupted(SRGANFastError):
    """The user stopped the run; what was finished is kept."""

    exit_code = 130
