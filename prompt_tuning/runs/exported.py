"""Read an export: its tasks, and their rows as the token ids of a request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import prompt_tuning.models.layered_llama  # noqa: F401 - it lets transformers load an export with layer vectors
from prompt_tuning.arguments.data_args import DataArguments
from prompt_tuning.encoding.row_encoder import Encoder
from prompt_tuning.errors import DataError
from prompt_tuning.models.adapter_config import read_adapter_config
from prompt_tuning.models.loading import load_config, load_tokenizer
from prompt_tuning.runs.predictor import read_run, run_encoder, with_saved_text
from prompt_tuning.runs.saved_tasks import read_saved_task
from prompt_tuning.support.run_folder import RunFolder

PREFIX = "<|prompt:"
"""The text that opens every token that an export adds."""


@dataclass(frozen=True)
class AddedTokens:
    """The tokens that an export adds for a task.

    Args:
        ids: of the P virtual tokens before every source.
        text_ids: of the S trained tokens inside the text.
        first_id: V, the number of embeddings of the base model. Encoded rows count trained tokens from there.
    """

    ids: Sequence[int]
    text_ids: Sequence[int]
    first_id: int

    def ids_of(self, source: Sequence[int]) -> list[int]:
        """Return the ids of a request `[P + T]` for an encoded source `[T]`."""
        text = [self.text_ids[id - self.first_id] if id >= self.first_id else id for id in source]
        return [*self.ids, *text]


@dataclass(frozen=True)
class ExportedTask:
    """A task of an export.

    Args:
        name: its name.
        tokens: those that the export adds for it.
        encoder: writes rows as token ids.
        data: says what rows may call their columns.
        max_tokens: the largest number of new tokens.
        checksum: of the adapter's file.
        logit_bias: what every request carries for servers that tie the head.
    """

    name: str
    tokens: AddedTokens
    encoder: Encoder
    data: DataArguments
    max_tokens: int
    checksum: str
    logit_bias: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: str | Path, name: str, *, trust_remote_code: bool = False) -> ExportedTask:
        """Read a task of the folder that `export` wrote.

        Raises:
            DataError: there is no prompts.json, it is damaged, or it has no such task.
            PromptTuningError: the task's recipe, its template or the tokenizer cannot be read.
        """
        prompt = read_saved_task(folder, name)
        saved = prompt.task
        run = RunFolder(Path(folder)).exported_task(name)
        RunFolder(Path(folder)).check_links(run.recipe, run.template, run.adapter_config)
        recipe, template = read_run(run, str(folder), trust_remote_code=trust_remote_code)
        config, tokenizer = load_config(recipe.model), load_tokenizer(recipe.model)
        tokens = AddedTokens(saved["ids"], saved["text_ids"], prompt.num_embeddings)
        size = config.get_text_config().vocab_size
        # The base model's table may have rows for the first of them already, which its tokenizer has no tokens for.
        added = {id for id, token in tokenizer.added_tokens_decoder.items() if token.content.startswith(PREFIX)}
        for id in (*tokens.ids, *tokens.text_ids):
            if id not in added or id >= size:
                where = f"{prompt.file}: {name}"
                raise DataError(f"{where}: the id {id} is not that of an added token. Export the run again.")
        # Trained text has ids from the end of the base model's vocabulary.
        encoder = replace(run_encoder(recipe, template, tokenizer, config), num_embeddings=tokens.first_id)
        if run.adapter_config.is_file():
            encoder = with_saved_text(encoder, read_adapter_config(run), run.path)
        trained = encoder.trained_text.tokens if encoder.trained_text else ()
        if len(tokens.text_ids) != len(trained):
            raise DataError(
                f"{prompt.file}: {name}: text_ids are not those of {run.adapter_config}. Export the run again."
            )
        return cls(
            name,
            tokens,
            encoder,
            recipe.data,
            saved["max_tokens"],
            saved["source_checksum"],
            saved.get("logit_bias", {}),
        )
