"""The client's environment as a list of exact versions, for a pod that runs Linux."""

import re
from importlib.metadata import Distribution, PackageNotFoundError, distribution

from packaging.requirements import Requirement

from src.utils.errors import UserError

PROJECT = "em-persona-decomposition"
ON_THE_POD = {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix", "platform_machine": "x86_64"}


def pinned_requirements(project: str = PROJECT) -> list[str]:
    """`name==version` of everything that the installed project needs at run time, sorted, the project left out.

    Markers are read for the pod. What a marker asks for only there and is not installed here is left to nobody: such
    packages come with torch, which the pod has. Raises `UserError` if the project itself is not installed.
    """
    try:
        root = distribution(project)
    except PackageNotFoundError as error:
        raise UserError(f"{project}: is not installed in this environment; run `uv sync`") from error
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    todo: list[tuple[Distribution, str]] = [(root, "")]
    while todo:
        package, extra = todo.pop()
        for line in package.requires or []:
            requirement = Requirement(line)
            if requirement.marker and not requirement.marker.evaluate({**ON_THE_POD, "extra": extra}):
                continue
            try:
                needed = distribution(requirement.name)
            except PackageNotFoundError:
                continue
            name = re.sub(r"[-_.]+", "-", needed.metadata["Name"]).lower()
            found[name] = needed.version
            for wanted in {"", *requirement.extras}:
                if (name, wanted) not in seen:
                    seen.add((name, wanted))
                    todo.append((needed, wanted))
    return sorted(f"{name}=={version.partition('+')[0]}" for name, version in found.items())
