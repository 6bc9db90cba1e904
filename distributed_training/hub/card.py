"""The model card of a release: the README.md that people see on the hub."""

from __future__ import annotations

from distributed_training.hub.hub import MANIFEST, Release

_FRONT = """\
---
library_name: transformers
pipeline_tag: text-generation
tags:
- distributed-training
- bittensor
---
"""


def card(release: Release, repository: str | None = None) -> str:
    """Markdown with the front matter that the Hugging Face Hub wants.

    `repository` is `org/name` there; without it the card tells how to load the folder it lies in.
    """
    place = f'"{repository}", revision="{release.epoch}"' if repository else '"path/to/this/folder"'
    rows = "\n".join(f"| {name} | {value} |" for name, value in _facts(release))
    files = "\n".join(f"| {file.name} | {file.size} | `{file.sha256}` |" for file in release.files)
    return f"""{_FRONT}
# {release.run_id}, epoch {release.epoch}

One language model, trained together by strangers. Each global update is published under its epoch number.

| | |
| --- | --- |
{rows}

## Load

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained({place})
```

## Files

`{MANIFEST}` holds this page for programs.

| name | bytes | sha256 |
| --- | --- | --- |
{files}
"""


def _facts(release: Release) -> list[tuple[str, str]]:
    loss = "not measured" if release.held_out_loss is None else f"{release.held_out_loss:.4f} nats a token"
    uids = ", ".join(map(str, release.participants)) or "none"
    return [
        ("run", f"`{release.run_id}`"),
        ("epoch", str(release.epoch)),
        ("samples in this update", str(release.samples)),
        (f"participants ({len(release.participants)})", f"uids {uids}" if release.participants else uids),
        ("held-out loss", loss),
        ("state hash", f"`{release.state_hash}`"),
    ]
