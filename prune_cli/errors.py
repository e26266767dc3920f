"""Every error a user can cause, and the exit code it ends the command line with.

PruneError
├── UsageError                     2  the command line or a call does not make sense by itself
├── InputError                     3  the input cannot be read, or is refused
├── RequestError                   4  the request does not fit this checkpoint or module
│   ├── SelectionError             4  a pattern matches nothing, or matches what cannot be pruned
│   ├── AmountError (ValueError)   4  the amount is impossible here
│   ├── AmountTypeError (TypeError) 4  the amount is neither an int nor a float
│   ├── DimError (IndexError)      4  the tensor has no such dim
│   ├── ParameterError (ValueError) 4  the parameter cannot be pruned as it is
│   ├── DeviceError                4  the device is not there
│   └── SchedulerError             4  the scheduler is not there, or its workers cannot do it
├── VerificationError              5  a file is not what its report says
├── OutputError                    6  the output cannot be written
└── SweepError                     7  trials of a sweep failed, or an assertion does not hold

Whatever is not a PruneError is a bug: it ends with a traceback and exit code 1.
"""

from typing import ClassVar


class PruneError(Exception):
    """The base class: catch this one to catch whatever the user of prune-cli can cause."""

    exit_code: ClassVar[int] = 1


class UsageError(PruneError):
    """The command line or a call does not make sense by itself, whatever the input."""

    exit_code = 2


class InputError(PruneError):
    """The input cannot be read, or is refused."""

    exit_code = 3


class RequestError(PruneError):
    """The request does not fit this checkpoint or module."""

    exit_code = 4


class SelectionError(RequestError):
    """A pattern matches nothing, or matches what cannot be pruned."""


class AmountError(RequestError, ValueError):
    """The amount is impossible here; a ValueError, as torch raises."""


class AmountTypeError(RequestError, TypeError):
    """The amount is neither an int nor a float; a TypeError, as torch raises."""


class DimError(RequestError, IndexError):
    """The tensor has no such dim; an IndexError, as torch raises."""


class ParameterError(RequestError, ValueError):
    """The parameter cannot be pruned as it is; a ValueError, as torch raises."""


class DeviceError(RequestError):
    """The device is not there."""


class SchedulerError(RequestError):
    """The scheduler is not there or was lost, or its workers cannot do what they are asked for."""


class VerificationError(PruneError):
    """A file is not what its report says."""

    exit_code = 5


class OutputError(PruneError):
    """The output cannot be written."""

    exit_code = 6


class SweepError(PruneError):
    """Trials of a sweep failed, or an assertion about it does not hold."""

    exit_code = 7
