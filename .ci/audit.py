"""``make audit``: known weaknesses of the pinned packages, by pip-audit. Exit status 1 for one, 0 without network."""

import json
import subprocess
import sys


def audited(requirements: str) -> tuple[str, str]:
    """(JSON, errors) of pip-audit; the JSON is empty where it could not ask."""
    options = ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json", "--timeout", "20"]
    command = [sys.executable, "-m", "pip_audit", *options, "--requirement", requirements]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)  # noqa: S603  our own words
    except subprocess.TimeoutExpired:
        return "", "no answer within 600 s"
    return done.stdout, done.stderr


def verdict(found: str, errors: str) -> tuple[int, list[str]]:
    """Exit status and lines for the person who waits.

    Args:
        found: what pip-audit wrote as JSON.
        errors: what it said beside it.
    """
    try:
        packages = json.loads(found)["dependencies"]
    except (ValueError, KeyError, TypeError):
        why = next((line for line in reversed(errors.splitlines()) if line.strip()), "it said nothing")
        return 0, [f"not audited: pip-audit could not ask the package index ({why})"]
    asked = [package for package in packages if "vulns" in package]
    lines = [
        f"{package['name']} {package['version']}: {weakness['id']}, mended in "
        f"{', '.join(weakness['fix_versions']) or 'no version yet'}"
        for package in asked
        for weakness in package["vulns"]
    ]
    unknown = len(packages) - len(asked)
    told = f"audited {len(asked)} of {len(packages)} packages: {len(lines)} weaknesses"
    return int(bool(lines)), [*lines, told + (f"; the index did not know {unknown}" if unknown else "")]


if __name__ == "__main__":
    status, said = verdict(*audited(sys.argv[1]))
    print("\n".join(said))  # noqa: T201
    raise SystemExit(status)
