"""Where pip put a package that carries model weights, and the cache for what is derived from them."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from graftwork.errors import MissingExtra


def package_folder(module: str, install: str) -> Path:
    """The folder of an installed package, found without importing it.

    Parameters
    ----------
    module : str
        The package's import name.
    install : str
        The command that installs it, named in the error.

    Raises
    ------
    MissingExtra
        If the package is not installed.
    """
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(f"the package {module} is not installed", remedy=install)
    return Path(next(iter(spec.submodule_search_locations)))


def require(*modules: str, install: str) -> None:
    """Raise MissingExtra naming ``install`` unless every module can be found."""
    absent = [module for module in modules if find_spec(module) is None]
    if absent:
        raise MissingExtra(f"not installed: {', '.join(absent)}", remedy=install)


def cache_folder() -> Path:
    """``$GRAFTWORK_CACHE``, else ``$XDG_CACHE_HOME/graftwork``, else ``~/.cache/graftwork``; not created."""
    if own := os.environ.get("GRAFTWORK_CACHE"):
        return Path(own)
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "graftwork"
