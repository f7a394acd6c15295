"""The `corpus:` section of the task file: which documents, and how they become passages."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rung.retrieval.store import URL

Count = Annotated[int, Field(ge=1)]
ENCODER = "embedded-encoder"


class Corpus(BaseModel):
    """The documents that answers are looked up in."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    files: str | list[str] = Field(
        description="Files, folders and globs (txt, md, html, pdf, docx; csv, tsv, jsonl, json, parquet: a row is a "
        "document), or hf:org/name[:config][#split].",
        examples=["manuals/", ["handbook.pdf", "faq.csv", "notes/**/*.md"]],
    )
    text_column: str | None = Field(
        None, description="The column of tables that holds the text; without, all columns as `name: value` lines."
    )
    title_column: str | None = Field(None, description="The column of tables that holds the title.")
    id_column: str | None = Field(None, description="The column of tables that names a row; without, its line.")
    metadata: list[str] = Field(
        default_factory=list, description="Columns of tables that searches may filter by.", examples=[["product"]]
    )
    encoding: str = Field("utf-8", description="Text encoding of the files.", examples=["utf-8", "latin-1"])
    max_megabytes: Count = Field(50, description="Larger files are left out, counted and shown.")
    encoder: str = Field(ENCODER, description="The sentence encoder: embedded-encoder, a Hub id or a folder.")
    chunk_tokens: Count | None = Field(
        None, description="Longest passage in the encoder's tokens, headings included; without, 250 or its limit."
    )
    overlap_tokens: Annotated[int, Field(ge=0)] | None = Field(
        None, description="So many tokens of a passage, whole sentences, begin the next one too; without, a third."
    )
    store: str | None = Field(
        None,
        description="URL of the index in an object store, for more than a machine: s3://, gs:// or az://; without, "
        "it lies in the cache.",
        examples=["s3://bucket/index"],
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.files:
            raise ValueError("`files` names no file")
        if (
            self.chunk_tokens is not None
            and self.overlap_tokens is not None
            and self.overlap_tokens * 2 > self.chunk_tokens
        ):
            raise ValueError("`overlap_tokens` is more than half of `chunk_tokens`")
        if self.store is not None and not URL.fullmatch(self.store):
            raise ValueError("`store` has to be s3://BUCKET/PATH, gs://BUCKET/PATH or az://CONTAINER/PATH")
        try:
            "a".encode(self.encoding)
        except LookupError:
            raise ValueError(f"no text encoding is named {self.encoding!r}") from None
        return self

    @property
    def sources(self) -> tuple[str, ...]:
        """`files`, always as several."""
        return (self.files,) if isinstance(self.files, str) else tuple(self.files)
