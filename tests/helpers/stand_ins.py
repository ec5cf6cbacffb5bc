"""Stand-ins for the programs that launch scripts start, which record what they are given."""

import shutil
from pathlib import Path

# Writes its arguments into args.ID, then ends with the code in exit.ID (default 0), or waits for a signal where the
# file `wait` is there, writes its name into signal.ID and ends as that.
STUB = r"""#!/bin/sh
id=0
previous=
for argument in "$@"; do
  [ "$previous" = --distributed.process_id ] && id=$argument
  previous=$argument
done
[ "$1" = -c ] && exec "$REAL_PYTHON" "$@"
printf '%s\0' "$@" > "$STUB/args.$id.tmp"
end() { sleep 0.1; echo "$1" > "$STUB/signal.$id"; exit "$(cat "$STUB/exit.$id" 2>/dev/null || echo 0)"; }
trap 'end TERM' TERM
trap 'end INT' INT
trap 'end HUP' HUP
mv "$STUB/args.$id.tmp" "$STUB/args.$id"
while [ -e "$STUB/wait" ]; do sleep 0.05; done
exit "$(cat "$STUB/exit.$id" 2>/dev/null || echo 0)"
"""
# As ssh does, hands the command to a shell; scp only says what it was asked for.
GCLOUD = """#!/bin/sh
echo "$*" >> "$STUB/said.gcloud"
while [ $# -gt 1 ]; do shift; [ "$1" = --command ] && command=$2; done
[ -z "$command" ] || (cd "$STUB/home" && bash -c "$command")
"""


def install(path: Path) -> Path:
    """Stand-ins for python, srun, scontrol and gcloud in a directory, and a home with an environment; returns it."""
    environment = path / "home/loft_jax/.venv/bin"
    environment.mkdir(parents=True)
    for name, text in {
        "python": STUB,
        "srun": '#!/bin/sh\necho "$1" > "$STUB/said.srun"; shift; exec "$@"\n',
        "scontrol": '#!/bin/sh\necho "$*" > "$STUB/said.scontrol"\n',
        "gcloud": GCLOUD,
    }.items():
        (path / name).write_text(text)
        (path / name).chmod(0o755)
    shutil.copy(path / "python", environment)
    return path
