"""Fetches the source package of a Python package as plain bytes, from where pip is configured to look for packages. No torch.

`pip download` would run the build code of a source package to learn its metadata, before anybody could compare its hash. Here
pip's own library searches (its index, mirrors, proxy, certificates and keys count) and the file is written, not opened. It runs
in a process of its own, as pip's library wants it.
"""

import io
import logging
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from minirlaif.errors import UserError
from minirlaif.video.child_process import ChildLost, ChildProcess, serve

SECONDS = 3600.0


def download(package: str, path: Path, limit: int) -> None:
    """Write the file named `path.name`, of at most `limit` bytes, to `path`. UserError with the reason when it cannot be."""
    request = {"package": package, "path": str(path), "limit": limit}
    with closing(ChildProcess((sys.executable, "-P", "-m", "minirlaif.gguf.export.source_package"))) as child:
        try:
            reply = child.ask(request, seconds=SECONDS)
        except ChildLost as lost:
            reply = {"error": f"stopped after {SECONDS:.0f} s" if lost.timed_out else (lost.printed or ["no output"])[-1][:300]}
    if "error" in reply:
        path.unlink(missing_ok=True)
        raise UserError(reply["error"])


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    """In the child: search and write. UserError when there is no such file, or it is too long."""
    # From pip's internals, as it offers no interface: a search that does not prepare what it finds.
    from pip._internal.commands import create_command
    from pip._internal.utils.misc import redact_auth_from_url

    log = io.StringIO()  # where pip says which index it could not read
    logging.basicConfig(stream=log, level=logging.DEBUG, format="%(message)s")
    path = Path(request["path"])
    command: Any = create_command("download")
    options, _ = command.parse_args(["--no-input", "--quiet", "--disable-pip-version-check"])
    with command.main_context():
        session = command.get_default_session(options)
        candidates = command._build_package_finder(options, session).find_all_candidates(request["package"])
        link = next((each.link for each in candidates if each.link.filename == path.name), None)
        if link is None:
            failures = [line for line in log.getvalue().splitlines() if line.startswith("Could not fetch URL")]
            raise UserError(failures[-1] if failures else f"{path.name} is not at {redact_auth_from_url(options.index_url)}")
        with session.get(link.url_without_fragment, headers={"Accept-Encoding": "identity"}, stream=True) as response:
            response.raise_for_status()
            with path.open("wb") as file:
                for block in response.iter_content(1 << 20):
                    if file.tell() + len(block) > request["limit"]:
                        raise UserError(f"{link}: longer than {request['limit']} bytes")
                    file.write(block)
    return {}


if __name__ == "__main__":
    serve(_answer)
