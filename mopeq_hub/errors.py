"""The errors a user can cause or meet; each one is a single line that says what, where and what to do."""

import errno


class MopeqError(Exception):
    """Something outside this program is wrong: an input, a destination, the machine.

    `what` names the trouble and where it is, `hint` the next step. `str()` of it is the one line that is printed.
    """

    def __init__(self, what: str, hint: str = "") -> None:
        self.what, self.hint = (_one_line(text) for text in (what, hint))
        super().__init__(f"{self.what}; {self.hint}" if self.hint else self.what)

    def __reduce__(self) -> tuple[type["MopeqError"], tuple[str, str]]:
        return type(self), (self.what, self.hint)


def _one_line(text: str) -> str:
    """Without line breaks, and without control characters: names in it come from strangers' files."""
    return "".join(character for character in " ".join(text.split()) if character.isprintable())


class UsageError(MopeqError):
    """The command or the recipe asks for something that does not exist; the exit code is 2."""


def described(error: Exception) -> str:
    """Any error in one line for the person who has to do something about it."""
    if isinstance(error, MopeqError):
        return str(error)
    if isinstance(error, OSError):
        return _one_line(_system_trouble(error))
    if isinstance(error, MemoryError):
        return "this machine has too little memory; use one with more"
    return _one_line(f"a fault in mopeq-hub itself: {type(error).__name__}: {error}; set MOPEQ_DEBUG=1 to see where")


def _system_trouble(error: OSError) -> str:
    where = f" at {error.filename}" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"the disk is full{where}; free some space there, or choose another place (caches are in MOPEQ_HOME)"
    return f"{(error.strerror or str(error)).lower()}{where}; check that the place exists and can be written to"
