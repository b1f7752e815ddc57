"""Options that a user can get wrong, told in one form."""

from rib_harness import ConfigError


def expect(fine: bool, method: str, expected: str, got: object) -> None:
    """Raise `METHOD: expected …, got ….` unless it is fine.

    Raises:
        ConfigError: it is not.
    """
    if not fine:
        raise ConfigError([f"{method}: expected {expected}, got {got}."])
