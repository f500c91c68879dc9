"""Where the experiments that come with the package are: beside it in a checkout, in the data folder of an installation.

`pip install` puts data files under `share/` of the environment, of the user, or of a `--target` folder.
"""

from __future__ import annotations

import os
import shutil
import sysconfig

from ..errors import UserError

FIRST = "first.py"
PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def gallery() -> str:
    """The folder of the shipped experiments. Raises UserError when the installation has lost it."""
    around = os.path.dirname(PACKAGE)
    places = [os.path.join(around, "experiments")]
    installed = [around, sysconfig.get_path("data"), sysconfig.get_path("data", sysconfig.get_preferred_scheme("user"))]
    places += [os.path.join(base, "share", "forgather_dsl", "experiments") for base in installed]
    for place in places:
        if os.path.isfile(os.path.join(place, FIRST)):
            return place
    raise UserError(
        f"the experiments that come with forgather_dsl are in none of {', '.join(places)}; install it again"
    )


def files() -> list[str]:
    """The Python files of the gallery, `first.py` first."""
    names = [name for name in os.listdir(gallery()) if name.endswith(".py")]
    return [os.path.join(gallery(), name) for name in sorted(names, key=lambda name: (name != FIRST, name))]


def first_target() -> str:
    """What `run` trains when it is given nothing."""
    return f"{short(os.path.join(gallery(), FIRST))}:First"


def copy_to(folder: str) -> list[str]:
    """Copy the gallery. Returns the new files; raises UserError, before copying, when one exists already."""
    pairs = [(source, os.path.join(folder, os.path.basename(source))) for source in files()]
    there = [target for _, target in pairs if os.path.exists(target)]
    if there:
        raise UserError(f"{', '.join(there)} would be overwritten; choose another folder")
    try:
        os.makedirs(folder, exist_ok=True)
        for source, target in pairs:
            shutil.copyfile(source, target)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror}; choose a folder that can be written") from error
    return [target for _, target in pairs]


def short(path: str) -> str:
    """Relative to the working directory when the path is below it."""
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
