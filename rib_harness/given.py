"""What users give as files and values, read alike by every verb, variable, file and Python call."""

from __future__ import annotations

import codecs
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rib_harness.errors import ConfigError, nearest

#: Beyond it no array has a size, and no computation a number.
LARGEST = 2**63 - 1


def user_path(path: str | Path) -> Path:
    """A path with `~` as its user's home; a name that begins so and is nobody's home stays."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def read_toml(file: Path, what: str) -> dict[str, Any]:
    """A TOML file in UTF-8, with or without a byte-order mark.

    Args:
        what: for messages, e.g. `The configuration file`.

    Raises:
        ConfigError: it is missing, or not valid.
    """
    try:
        data = file.read_bytes()
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise ConfigError([f"{file} is UTF-16, and TOML is UTF-8: save it as that."])
        return parse_toml(data.decode("utf-8-sig"), str(file))
    except FileNotFoundError:
        close = nearest(file.name, [p.name for p in file.parent.glob("*.toml")])
        raise ConfigError(
            [f"{what} {file} does not exist.{close} Name one that is there."]
        ) from None
    except OSError as error:
        raise ConfigError([f"{file} cannot be read: {error.strerror}."]) from None
    except UnicodeDecodeError as error:
        raise ConfigError([f"{file} is not valid TOML: it is no UTF-8: {error}"]) from None


def parse_toml(text: str, what: str) -> dict[str, Any]:
    """TOML's tables.

    Raises:
        ConfigError: not valid, nested too deeply, or with a number of thousands of digits.
    """
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ConfigError([f"{what} is nested too deeply: write it with fewer levels."]) from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError([f"{what} is not valid TOML: {error}"]) from None
    except ValueError:  # Python's limit of digits
        raise ConfigError(
            [f"{what} has a number of more digits than a number may have: write a smaller one."]
        ) from None


def plain_values(value: Any) -> Any:
    """The value with NumPy's numbers and arrays as Python's own."""
    if isinstance(value, Mapping):
        return {name: plain_values(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(one) for one in value]
    # Without NumPy, whose import would be felt at each start.
    return value.tolist() if type(value).__module__ == "numpy" else value


def no_number(value: Any) -> str:
    """What is wrong with a value where a number or a text is expected; empty if nothing is.

    A boolean is one of Python's integers, and would be taken as 0 or 1.
    """
    if isinstance(value, list | tuple):
        return next(filter(None, map(no_number, value)), "")
    if isinstance(value, bool):
        return f"a number or a text is expected, not {str(value).lower()}"
    if isinstance(value, int) and abs(value) > LARGEST:
        return f"a number of at most {LARGEST} is expected"
    return ""
