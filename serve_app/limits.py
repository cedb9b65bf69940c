"""How large what clients ask for may be: the section `limits` of the configuration, for whoever makes a value."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

VALUE_SHARE, TASK_SHARE = 4, 2
"""One value, and all of a task, may fill one part in so many of the memory that their process has."""


class SizeLimits(BaseModel):
    """Beyond these a job ends in error, or is refused, before memory is taken for it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_pixels: Annotated[int, Field(ge=1, le=178_956_970)] = 134_217_728
    """Pixels of one image that is read from a file, or of one frame. More than the maximum no decoder here takes."""
    value_bytes: Annotated[int, Field(ge=0)] = 0
    """Of all that one node makes: tensors, text, every frame of a file; 0 is a quarter of the memory there is."""
    task_bytes: Annotated[int, Field(ge=0)] = 0
    """Of all that the nodes of one task make, which stays until it ends; 0 is half of the memory there is."""
    text_characters: Annotated[int, Field(ge=1)] = 4_000_000
    """Of one text that a node makes."""
    prompt_bytes: Annotated[int, Field(ge=1)] = 65_536
    """Of one text that a text encoder reads, in UTF-8: some take time and memory that grow with its square."""
    generated_tokens: Annotated[int, Field(ge=1)] = 8_192
    """Of one text that a language model generates; what it keeps of each stays until the last."""
    shown_bytes: Annotated[int, Field(ge=1024)] = 32 * 1024 * 1024
    """Of what the nodes of one task show its client, which the scheduler, the database and the history carry."""
    graph_nodes: Annotated[int, Field(ge=1)] = 20_000
    """Nodes of one workflow, those that its nodes make among them."""
    renders: Annotated[int, Field(ge=1)] = 2
    """Images that one ingress draws at once for GET /view with a preview or a channel; more wait for one of them."""

    def within(self, memory_bytes: int) -> SizeLimits:
        """Return them for a process that has so much memory."""
        value_bytes = self.value_bytes or memory_bytes // VALUE_SHARE
        task_bytes = self.task_bytes or max(value_bytes, memory_bytes // TASK_SHARE)
        return self.model_copy(update={"value_bytes": value_bytes, "task_bytes": task_bytes})
