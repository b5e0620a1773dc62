"""The one exception a user is meant to see: what is wrong, where, and what to do about it."""

from __future__ import annotations

import errno

_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


class InputError(Exception):
    """Input that the user can put right. The runner prints it as one line and exits with code 2.

    Args:
        where: The file (with the line, where there is one), the config key or the stage.
        problem: What is wrong, as a clause without a full stop.
        remedy: What to do, as a sentence without a full stop.
    """

    def __init__(self, where: str, problem: str, remedy: str) -> None:
        # All three go to Exception's args, so that the error survives pickling between Ray processes.
        super().__init__(where, problem, remedy)
        self.where, self.problem, self.remedy = where, problem, remedy

    def __str__(self) -> str:
        return f"{self.where}: {self.problem}. {self.remedy}."


def find_input_error(error: BaseException) -> InputError | None:
    """Returns the InputError inside an exception, through causes and Ray's wrappers, or None.

    A full disk counts as one, and so does a place that may not be used: the user can put it right, and what is
    committed stays.
    """
    seen: set[int] = set()
    queue: list[BaseException | None] = [error]
    while queue:
        current = queue.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        if isinstance(current, InputError) and len(current.args) == 3:
            return InputError(*current.args)
        if isinstance(current, OSError) and _is_full(current):
            return InputError(str(current.filename or "the disk"), "no space is left",
                              "Free some and run again: what is committed stays")  # fmt: skip
        if isinstance(current, OSError) and current.errno in _NOT_ALLOWED and current.filename:
            return InputError(str(current.filename), str(current.strerror).lower(),
                              "Give another place, or make this one usable, and run again")  # fmt: skip
        # RayTaskError keeps the original in `.cause`; Ray Train's group error keeps one error a worker.
        queue += [current.__cause__, getattr(current, "cause", None)]
        queue += (getattr(current, "worker_failures", None) or {}).values()
    return None


def _is_full(error: OSError) -> bool:
    # Arrow's own errors have no number.
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space left on device" in str(error)
