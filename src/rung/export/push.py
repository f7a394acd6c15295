"""Upload an exported folder to the Hugging Face Hub, with its model card."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rung.errors import ArtifactError, ConfigError, EngineError, needed_by
from rung.models.reference import HUB_ID


class Pushed(NamedTuple):
    """What was uploaded, and where it is."""

    url: str
    files: tuple[str, ...]
    megabytes: float


def push(folder: Path, repository: str, *, public: bool = False) -> Pushed:
    """Upload a folder that `rung export` wrote to a repository, which is made if it does not exist.

    Args:
        folder: an exported folder; its README.md is the model card.
        repository: `name`, below the user's own account, or `org/name`.
        public: let everybody read a new repository; an existing one keeps its visibility.

    Raises:
        ArtifactError: `no-such-file`: the folder has no model card.
        ConfigError: `bad-option`: the name is none of a repository.
        EngineError: `hub-refused`: the Hub does not take it, or does not answer.
    """
    if not (folder / "README.md").is_file():
        hint = "export it first: rung export ARTIFACT --to peft --out FOLDER"
        raise ArtifactError("no-such-file", f"{folder} has no model card (README.md)", hint=hint)
    if not HUB_ID.fullmatch(repository) and not HUB_ID.fullmatch(f"me/{repository}"):
        raise ConfigError("bad-option", f"{repository!r} names no repository", hint="give `org/name`")
    with needed_by("an upload to the Hub"):
        import httpx
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    api = HfApi()
    try:
        made = api.create_repo(repository, private=not public, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=made.repo_id, commit_message=f"Upload {folder.name}")
    except (HfHubHTTPError, LocalTokenNotFoundError, httpx.HTTPError, OSError) as error:
        hint = "log in: set HF_TOKEN to a token that may write, or run `hf auth login`"
        raise EngineError("hub-refused", f"{repository}: {str(error).strip().splitlines()[0]}", hint=hint) from error
    size = sum(file.stat().st_size for file in files) / 1e6
    return Pushed(str(made), tuple(str(file.relative_to(folder)) for file in files), size)
