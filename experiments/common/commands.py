"""What a script that was run as a command of its own said."""


def error_line(said: str, returncode: int) -> str:
    """A script's own `error: ...`, without the prefix; else its last line."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return [f"ended with status {returncode}", *lines[-1:], *errors][-1]
